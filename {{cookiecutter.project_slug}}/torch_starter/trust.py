"""Checks on untrusted run folders; see torch_starter/untrusted_run_folders.md."""

import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

import hydra

from .mistakes import UserError, printable
from .project import PACKAGES

# Modules whose functions, or whose public classes, may be a `_target_` in the config of a run folder. Most of torch,
# torchvision and Lightning is excluded because it can run commands, load pickles, or write to any file. Add the modules
# that your configs need.
FUNCTIONS_OF = (
    *(f"{package}.models" for package in PACKAGES),
    "torch.distributed.fsdp.wrap",
    "torch.nn.functional",
    "torchmetrics.functional.classification",
    "torchmetrics.functional.regression",
    "torchvision.models",
    "torchvision.transforms",
)
CLASSES_OF = (
    *PACKAGES,
    "torch_starter.callbacks",
    "torch_starter.data.batch_augmentation",
    "torch_starter.muon",
    "torch_starter.schedulers",
    "torch.nn.modules",
    "torch.optim",
    "torchvision.models",
    "torchvision.ops",
    "torchvision.transforms",
    # Audio, multimodal, text and other image metrics load models by name or path.
    *(
        f"torchmetrics.{module}"
        for module in (
            "aggregation",
            "classification",
            "clustering",
            "collections",
            "image.psnr",
            "image.ssim",
            "nominal",
            "regression",
            "retrieval",
            "segmentation",
            "wrappers",
        )
    ),
    # Excluded: lambda_function calls any function, and spike writes to the current folder.
    *(
        f"lightning.pytorch.callbacks.{module}"
        for module in (
            "batch_size_finder",
            "callback",
            "device_stats_monitor",
            "early_stopping",
            "finetuning",
            "gradient_accumulation_scheduler",
            "lr_finder",
            "lr_monitor",
            "model_checkpoint",
            "model_summary",
            "on_exception_checkpoint",
            "progress",
            "pruning",
            "rich_model_summary",
            "stochastic_weight_avg",
            "throughput_monitor",
            "timer",
            "weight_averaging",
        )
    ),
    # Other loggers send data to an address; saved_config.py allows those that match this project's configs.
    "lightning.pytorch.loggers.csv_logs",
    "lightning.pytorch.loggers.tensorboard",
    "lightning.pytorch.plugins.io.async_plugin",
    "lightning.pytorch.plugins.layer_sync",
    "lightning.pytorch.plugins.precision",
    # Excluded: xla listens on a port.
    "lightning.pytorch.profilers.advanced",
    "lightning.pytorch.profilers.base",
    "lightning.pytorch.profilers.pytorch",
    "lightning.pytorch.profilers.simple",
    # Excluded: deepspeed reads and writes its own files.
    "lightning.pytorch.strategies.ddp",
    "lightning.pytorch.strategies.fsdp",
    "lightning.pytorch.strategies.model_parallel",
    "lightning.pytorch.strategies.single_device",
    "lightning.pytorch.trainer.trainer",
)
ALLOWED = (*CLASSES_OF, *FUNCTIONS_OF)
# Prefixes of targets that may write files, anywhere in a config.
WRITERS = (
    "lightning.",
    "torch_starter.",
    *(f"{package}.{folder}." for package in PACKAGES for folder in ("callbacks", "figures")),
)
# Names of path arguments. In callbacks, loggers and trainer, the paths must be inside the run folder.
PATHS = re.compile(r"(.*_)?(dir|dirpath|directory|folder|root|path|split_file|weights)")
# Allowed formats in a file name: a name and a number of digits. `{epoch:c}` would become a dot in epoch 46.
FORMAT = re.compile(r"\{[^{}:!]*(:[\d.]*[defg]?)?\}")
# Entries of a checkpoint that name files which ModelCheckpoint reads and deletes.
CHECKPOINT_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


def refuse_links(folder: Path) -> None:
    """Refuse a run or study folder that contains links to places outside it.

    Args:
        folder: Folder to check. It may itself be a link, and need not exist.

    Raises:
        UserError: If a link in the folder points outside, or an entry is neither a file nor a folder.
    """
    root = os.path.realpath(folder)
    waiting = [root] if os.path.isdir(root) else []
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                # Before Python 3.12, Windows junctions cannot be distinguished from folders.
                if entry.is_symlink() or (hasattr(entry, "is_junction") and entry.is_junction()):
                    target = os.path.realpath(entry.path)
                    if not Path(target).is_relative_to(root):
                        raise UserError(
                            f"{entry.path} is a link to {target}, outside the run folder: refused, and nothing was "
                            "written. Replace the link with its target."
                        )
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    raise UserError(
                        f"{entry.path} is neither a file nor a folder: refused, and nothing was written. Remove it."
                    )


def refuse_resolvers(config: Any, replaced: set[str], key: str = "") -> None:
    """Refuse values such as ``${oc.env:HOME}``, which call a function when they are read.

    Args:
        config: Unresolved config of dicts, lists and values.
        replaced: Dotted keys whose values are ignored because they will be replaced.
        key: Dotted key of ``config``.

    Raises:
        UserError: If the config contains such a value.
    """
    for name, value in _items(config):
        path = f"{key}.{name}" if key else str(name)
        # Nested ones too, such as ${${a}:b}.
        if isinstance(value, str) and "${" in value and ":" in value.partition("${")[2] and path not in replaced:
            raise UserError(f"{path} of the run's config is {value}, which could execute code: refused. Set {path}=…")
        refuse_resolvers(value, replaced, path)


def refuse_control_characters(config: Any, where: str) -> None:
    """Refuse text that a terminal interprets when it is printed, such as an escape sequence.

    Args:
        config: Config of dicts, lists and values.
        where: File of the config, for the message.

    Raises:
        UserError: If a key or value contains a control character. Values may contain tabs and line breaks.
    """
    for name, value in _items(config):
        for text, is_clean in ((name, str(name).isprintable()), (value, True)):
            if isinstance(text, str) and (printable(text) != text or not is_clean):
                raise UserError(f"{where} contains control characters in {text!a}: refused. Remove them.")
        refuse_control_characters(value, where)


def refuse_untrusted_targets(config: Any, known: Collection[str] = (), key: str = "") -> None:
    """Refuse every ``_target_``, at any depth, that ``CLASSES_OF`` and ``FUNCTIONS_OF`` do not allow.

    Args:
        config: Resolved config of dicts, lists and values.
        known: Dotted keys that are not checked, such as ``logger.wandb._target_``.
        key: Dotted key of ``config``.

    Raises:
        UserError: If a target is not allowed.
    """
    for name, value in _items(config):
        path = f"{key}.{name}" if key else str(name)
        if name == "_target_" and path not in known and not is_trusted(value):
            package = str(value).partition(".")[0]
            # Finding a top-level package does not execute it.
            is_missing = package not in sys.modules and importlib.util.find_spec(package) is None
            if isinstance(value, str) and package.isidentifier() and is_missing:
                ours = ", ".join(PACKAGES)
                raise UserError(
                    f"{path} of the run's config is {value}, but package {package} is not installed; this project's is "
                    f"{ours}.\nIf it was renamed, write {ours}. for {package}. in each _target_ of the run's "
                    ".hydra/config.yaml. Otherwise install it."
                )
            # If the lists name modules of the package, advise to add one module; otherwise the whole package.
            is_in_parts = any(module.partition(".")[0] == package for module in ALLOWED)
            module = str(value).rpartition(".")[0] if is_in_parts else package
            parts = key.split(".")
            skip = f", or disable it: {key}=null" if parts[0] in ("callbacks", "logger") and len(parts) == 2 else ""
            raise UserError(
                f"{path} of the run's config is {value}, which run folders may not use: refused, and nothing was "
                f'executed.\nIf your project needs it, add "{module}" in torch_starter/trust.py: to CLASSES_OF '
                f"for a class, to FUNCTIONS_OF for a function{skip}."
            )
        refuse_untrusted_targets(value, known, path)


def refuse_paths_outside(
    config: Any, run: Path, replaced: set[str], groups: tuple[str, ...], key: str = "", is_strict: bool = False
) -> None:
    """Refuse values that let a callback, a logger or the trainer access files or addresses outside the run folder.

    Args:
        config: Resolved config of dicts, lists and values.
        run: Resolved path of the run folder.
        replaced: Dotted keys that the user typed; their values are not restricted.
        groups: Root keys that are instantiated and may write.
        key: Dotted key of ``config``.
        is_strict: Whether ``config`` is inside one of ``groups``, or inside an object that may write.

    Raises:
        UserError: If the config contains such a value.
    """
    target = str(config.get("_target_")) if isinstance(config, dict) else ""
    is_strict |= target.startswith(WRITERS)
    for name, value in _items(config):
        path = f"{key}.{name}" if key else str(name)
        if path in replaced or name == "_target_":
            continue
        if not key and name not in groups and name in ("callbacks", "logger"):
            continue  # not used by this command
        is_in_group = is_strict or (not key and name in groups)
        argument = str(name) if isinstance(config, dict) else key.rpartition(".")[2]
        reason = ""
        if isinstance(value, str) and (is_in_group or name == "split_file" or path == "weights"):
            reason = _reason_outside(argument, value, run)
        if is_in_group and value is not None and name == "model_registry":
            reason = "it refers to a model on a server"
        if is_in_group and str(value).startswith(("deepspeed", "xla")) and name in ("strategy", "profiler"):
            reason = "it opens its own files or port"
        if reason:
            raise UserError(
                f"{path} of the run's config is {value}: {reason}; refused, and nothing was executed.\n"
                f"If you trust it, type it: {path}=…"
            )
        refuse_paths_outside(value, run, replaced, groups, path, is_in_group)


def _reason_outside(name: str, value: str, run: Path) -> str:
    """Return why a value could point outside the run folder, or an empty string if it cannot."""
    if PATHS.fullmatch(name) and name != "sub_dir":  # sub_dir is relative to the logger's folder
        path = Path(os.path.abspath(value))  # resolves `..` lexically
        if "://" in value or "::" in value or not path.is_relative_to(run):
            return f"it is outside the run folder, {run}"
        value = str(path.relative_to(run))
    parts = re.split(r"[\\/]", value)
    is_absolute = (len(parts) > 1 and not parts[0]) or parts[0].startswith("~") or re.match("[A-Za-z]:", value)
    if is_absolute or ".." in parts:
        return "it could be outside the run folder"
    if "://" in value or "::" in value:
        return "it could be an address"
    if "$" in value or re.search(r"%\w+%", value):
        return "it could expand to an environment variable"
    if "filename" in name and set(FORMAT.sub("", value)) & {"{", "}"}:
        return "the only formats allowed in a file name are {name} and {name:.2f}"
    return ""


def refuse_checkpoint_paths(saved: dict[str, Any], checkpoint: Path) -> None:
    """Refuse a checkpoint that would make ModelCheckpoint read or delete a file outside the checkpoint's folder.

    Args:
        saved: Contents of the checkpoint.
        checkpoint: Path of the checkpoint, for the message.

    Raises:
        UserError: If a path in the state of a ModelCheckpoint is outside its ``dirpath``.
    """
    for state in (saved.get("callbacks") or {}).values():
        if not isinstance(state, dict) or "dirpath" not in state:
            continue
        best = state.get("best_k_models") or {}
        for path in map(str, filter(None, [*(state.get(name) for name in CHECKPOINT_PATHS), *best])):
            # PureWindowsPath accepts both slashes, so it reads paths from any system.
            pure = PureWindowsPath(path)
            if not pure.is_relative_to(str(state["dirpath"])) or ".." in pure.parts or "://" in path:
                raise UserError(f"{checkpoint} refers to {path}, outside its folder {state['dirpath']}: refused.")


def _items(config: Any) -> Iterator[tuple[Any, Any]]:
    yield from config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()


def is_trusted(target: Any) -> bool:
    """Return whether ``target`` is a class or function whose defining module is allowed."""
    if not isinstance(target, str):
        return False
    parent = target.rpartition(".")[0] + "."
    if not any(target.startswith(f"{module}.") or f"{module}.".startswith(parent) for module in ALLOWED):
        return False  # before importing any part of it
    found = hydra.utils.get_object(target)
    modules = CLASSES_OF if inspect.isclass(found) else FUNCTIONS_OF if inspect.isfunction(found) else ()
    name = getattr(found, "__qualname__", ".")
    is_public = "." not in name and not name.startswith("_")  # no method, no function that skips checks
    return is_public and any(f"{found.__module__}.".startswith(f"{module}.") for module in modules)
