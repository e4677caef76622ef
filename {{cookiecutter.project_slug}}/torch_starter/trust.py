"""What an untrusted run folder may make a command do: see torch_starter/untrusted_run_folders.md."""

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

# What the config of a run folder may name as `_target_`: the public classes of these modules, and the functions of
# some. Not all of torch, torchvision and Lightning, which can run a command, load a pickle, or write to any file. Add
# what your configs need.
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
    # Not audio, multimodal, text and the other metrics of images, which load models by name or path.
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
    # Not lambda_function, which calls anything, and spike, which writes to the current folder.
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
    # Not those that send to an address: saved_config.py allows them as far as they are those of this project's configs.
    "lightning.pytorch.loggers.csv_logs",
    "lightning.pytorch.loggers.tensorboard",
    "lightning.pytorch.plugins.io.async_plugin",
    "lightning.pytorch.plugins.layer_sync",
    "lightning.pytorch.plugins.precision",
    # Not xla, which listens on a port.
    "lightning.pytorch.profilers.advanced",
    "lightning.pytorch.profilers.base",
    "lightning.pytorch.profilers.pytorch",
    "lightning.pytorch.profilers.simple",
    # Not deepspeed, which reads and writes files of its own.
    "lightning.pytorch.strategies.ddp",
    "lightning.pytorch.strategies.fsdp",
    "lightning.pytorch.strategies.model_parallel",
    "lightning.pytorch.strategies.single_device",
    "lightning.pytorch.trainer.trainer",
)
ALLOWED = (*CLASSES_OF, *FUNCTIONS_OF)
# What may write files, wherever it is in a config.
WRITERS = (
    "lightning.",
    "torch_starter.",
    *(f"{package}.{folder}." for package in PACKAGES for folder in ("callbacks", "figures")),
)
# Keys that are paths. In callbacks, loggers and trainer they must be in the run folder.
PATHS = re.compile(r"(.*_)?(dir|dirpath|directory|folder|root|path|split_file|weights)")
# What a format may stand for in a file name: a name, and how many digits. `{epoch:c}` would be a dot in epoch 46.
FORMAT = re.compile(r"\{[^{}:!]*(:[\d.]*[defg]?)?\}")
# In a checkpoint, what a ModelCheckpoint reads from and deletes.
CHECKPOINT_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


def refuse_links(folder: Path) -> None:
    """Refuses a run or study folder if something in it leads out of it.

    Args:
        folder: may itself be a link, and need not exist.

    Raises:
        Mistake: if a link within it leads out of it, or something in it is neither a file nor a folder.
    """
    root = os.path.realpath(folder)
    waiting = [root] if os.path.isdir(root) else []
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                # Before Python 3.12, Windows' junctions are not told apart from folders.
                if entry.is_symlink() or (hasattr(entry, "is_junction") and entry.is_junction()):
                    target = os.path.realpath(entry.path)
                    if not Path(target).is_relative_to(root):
                        raise UserError(
                            f"{entry.path} is a link that leads out of the run folder, to {target}: refused, and "
                            "nothing was written. Put what it points to in its place."
                        )
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    raise UserError(
                        f"{entry.path} is neither a file nor a folder: refused, and nothing was written. Remove it."
                    )


def refuse_resolvers(config: Any, replaced: set[str], key: str = "") -> None:
    """Refuses values such as ``${oc.env:HOME}``, which call a function when they are read.

    Args:
        config: dicts, lists and values, not resolved.
        replaced: keys with dots whose values do not matter, for they will be replaced.
        key: where ``config`` is.

    Raises:
        Mistake: if there is one.
    """
    for name, value in _items(config):
        path = f"{key}.{name}" if key else str(name)
        # Nested ones too, such as ${${a}:b}.
        if isinstance(value, str) and "${" in value and ":" in value.partition("${")[2] and path not in replaced:
            raise UserError(f"{path} of the run's config is {value}, which could run code: refused. Set {path}=…")
        refuse_resolvers(value, replaced, path)


def refuse_control_characters(config: Any, where: str) -> None:
    """Refuses text that a terminal acts on when it is printed, such as an escape sequence.

    Args:
        config: dicts, lists and values.
        where: the file that it is from, for the message.

    Raises:
        Mistake: if a key or a value has a control character; a value may have tabs and line breaks.
    """
    for name, value in _items(config):
        for text, is_clean in ((name, str(name).isprintable()), (value, True)):
            if isinstance(text, str) and (printable(text) != text or not is_clean):
                raise UserError(f"{where} has control characters in {text!a}: refused. Remove them.")
        refuse_control_characters(value, where)


def refuse_untrusted_targets(config: Any, known: Collection[str] = (), key: str = "") -> None:
    """Refuses a ``_target_``, however deep, that is not in the lists above.

    Args:
        config: dicts, lists and values, resolved.
        known: keys with dots, such as ``logger.wandb._target_``, that are not asked about.
        key: where ``config`` is.

    Raises:
        Mistake: if there is one.
    """
    for name, value in _items(config):
        path = f"{key}.{name}" if key else str(name)
        if name == "_target_" and path not in known and not is_trusted(value):
            package = str(value).partition(".")[0]
            # Finding a package that is not within another runs nothing of it.
            is_missing = package not in sys.modules and importlib.util.find_spec(package) is None
            if isinstance(value, str) and package.isidentifier() and is_missing:
                ours = ", ".join(PACKAGES)
                raise UserError(
                    f"{path} of the run's config is {value}, but there is no package {package} here; this project's is "
                    f"{ours}.\nIf it was renamed, write {ours}. for {package}. in each _target_ of the run's "
                    ".hydra/config.yaml. Otherwise install it."
                )
            # Of what the lists name in parts, no more than the part; of any other package all.
            is_in_parts = any(module.partition(".")[0] == package for module in ALLOWED)
            module = str(value).rpartition(".")[0] if is_in_parts else package
            parts = key.split(".")
            skip = f", or leave it out: {key}=null" if parts[0] in ("callbacks", "logger") and len(parts) == 2 else ""
            raise UserError(
                f"{path} of the run's config is {value}, which a run may not use: refused, and nothing was run.\n"
                f'If your own project needs it, add "{module}" in torch_starter/trust.py: to CLASSES_OF for a class, '
                f"to FUNCTIONS_OF for a function{skip}."
            )
        refuse_untrusted_targets(value, known, path)


def refuse_paths_outside(
    config: Any, run: Path, replaced: set[str], groups: tuple[str, ...], key: str = "", is_strict: bool = False
) -> None:
    """Refuses values that make a callback, a logger or the trainer read, write or connect outside of the run folder.

    Args:
        config: dicts, lists and values, resolved.
        run: the run folder, resolved.
        replaced: keys with dots that the user typed, which may be anything.
        groups: keys at the root that are instantiated and may write.
        key: where ``config`` is.
        is_strict: whether ``config`` is in one of ``groups``, or in an object of such a kind.

    Raises:
        Mistake: if there is one.
    """
    target = str(config.get("_target_")) if isinstance(config, dict) else ""
    is_strict |= target.startswith(WRITERS)
    for name, value in _items(config):
        path = f"{key}.{name}" if key else str(name)
        if path in replaced or name == "_target_":
            continue
        if not key and name not in groups and name in ("callbacks", "logger"):
            continue  # of no use to this command
        is_in_group = is_strict or (not key and name in groups)
        argument = str(name) if isinstance(config, dict) else key.rpartition(".")[2]
        reason = ""
        if isinstance(value, str) and (is_in_group or name == "split_file" or path == "weights"):
            reason = _reason_outside(argument, value, run)
        if is_in_group and value is not None and name == "model_registry":
            reason = "it names a model on a server"
        if is_in_group and str(value).startswith(("deepspeed", "xla")) and name in ("strategy", "profiler"):
            reason = "it opens files or a port of its own"
        if reason:
            raise UserError(
                f"{path} of the run's config is {value}: {reason}; refused, and nothing was run.\n"
                f"If you trust it, type it: {path}=…"
            )
        refuse_paths_outside(value, run, replaced, groups, path, is_in_group)


def _reason_outside(name: str, value: str, run: Path) -> str:
    """Why a value leads out of the run folder; empty if it does not."""
    if PATHS.fullmatch(name) and name != "sub_dir":  # which begins where the logger writes
        path = Path(os.path.abspath(value))  # lexically: `..` is gone
        if "://" in value or "::" in value or not path.is_relative_to(run):
            return f"it leads out of the run folder, {run}"
        value = str(path.relative_to(run))
    parts = re.split(r"[\\/]", value)
    is_absolute = (len(parts) > 1 and not parts[0]) or parts[0].startswith("~") or re.match("[A-Za-z]:", value)
    if is_absolute or ".." in parts:
        return "it could lead out of the run folder"
    if "://" in value or "::" in value:
        return "it could be an address"
    if "$" in value or re.search(r"%\w+%", value):
        return "it could become the value of an environment variable"
    if "filename" in name and set(FORMAT.sub("", value)) & {"{", "}"}:
        return "a file name may have {name} and {name:.2f}, and no other format"
    return ""


def refuse_checkpoint_paths(saved: dict[str, Any], checkpoint: Path) -> None:
    """Refuses a checkpoint that would make a ModelCheckpoint read or delete a file that is not beside it.

    Args:
        saved: what is in the checkpoint.
        checkpoint: where it is, for the message.

    Raises:
        Mistake: if one of its paths is not in the folder that it calls its own.
    """
    for state in (saved.get("callbacks") or {}).values():
        if not isinstance(state, dict) or "dirpath" not in state:
            continue
        best = state.get("best_k_models") or {}
        for path in map(str, filter(None, [*(state.get(name) for name in CHECKPOINT_PATHS), *best])):
            # Windows' paths may have either slash, so that this reads what any system wrote.
            pure = PureWindowsPath(path)
            if not pure.is_relative_to(str(state["dirpath"])) or ".." in pure.parts or "://" in path:
                raise UserError(f"{checkpoint} refers to {path}, outside of its folder {state['dirpath']}: refused.")


def _items(config: Any) -> Iterator[tuple[Any, Any]]:
    yield from config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()


def is_trusted(target: Any) -> bool:
    """Whether ``target`` is a class or function that is allowed by where it is defined, not by where it is found."""
    if not isinstance(target, str):
        return False
    parent = target.rpartition(".")[0] + "."
    if not any(target.startswith(f"{module}.") or f"{module}.".startswith(parent) for module in ALLOWED):
        return False  # before anything of it is imported
    found = hydra.utils.get_object(target)
    modules = CLASSES_OF if inspect.isclass(found) else FUNCTIONS_OF if inspect.isfunction(found) else ()
    name = getattr(found, "__qualname__", ".")
    is_public = "." not in name and not name.startswith("_")  # no method, and nothing that skips a check
    return is_public and any(f"{found.__module__}.".startswith(f"{module}.") for module in modules)
