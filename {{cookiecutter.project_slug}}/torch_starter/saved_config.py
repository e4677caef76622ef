"""Completes the config of a run with values from its data, and reads it back without trusting it."""

import contextlib
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from . import project
from .compat import REPLACE, VERSION_BASE
from .files import display_path, write_text
from .mistakes import UserError
from .run_lookup import has_checkpoint
from .trust import (
    is_trusted,
    refuse_control_characters,
    refuse_paths_outside,
    refuse_resolvers,
    refuse_untrusted_targets,
)

if TYPE_CHECKING:
    from torch import Tensor


# Arguments of remote loggers that do not affect the destination; run folders may choose them.
LABELS = ("name", "run_name", "group", "job_type", "notes", "tags")
# Interpolations other than ``run_dir`` and resolvers.
REFERENCE = re.compile(r"\$\{(?!run_dir\}|[\w.]+:)")


def complete_config(config: DictConfig, data: Any) -> None:
    """Fill in values that depend on the data, such as the number of classes.

    The config of the model refers to these values. The run folder stores them, so the run can be loaded without the
    data.

    Args:
        config: Config of the run; modified in place.
        data: Data module instantiated from ``config.data``. ``facts()``, if defined, returns values for keys of
            ``config.data``; ``class_counts()`` determines the weights of ``loss.weight=balanced``.

    Raises:
        UserError: If a value contains text that a config cannot represent, or the class counts of a balanced loss are
            not available.
    """
    before = OmegaConf.to_container(config)
    for key, value in data.facts().items() if hasattr(data, "facts") else ():
        for name in _texts(value):
            if re.search(r"^\?{3}$|\$\{|[\x00-\x1f\x7f]", name):
                raise UserError(f"data.{key} contains {name!a}, which has a special meaning in a config. Rename it.")
        OmegaConf.update(config, f"data.{key}", value)
    if _is_balanced(config):
        if not hasattr(data, "class_counts"):
            raise UserError(
                f"loss.weight=balanced needs the number of samples per class, but {type(data).__name__} has no "
                "class_counts. Set one number per class: loss.weight=[1,2]"
            )
        counts = data.class_counts()
        # Each class has the same total weight, and the mean weight of all samples is 1.
        config.loss.weight = [sum(counts) / (len(counts) * max(1, count)) for count in counts]
    save(config, before)


def save(config: DictConfig, before: Any) -> None:
    """Write a config to its run folder, if that has one, and record the keys that differ from ``before``.

    These values were found, not chosen; comparisons ignore them, so runs that differ only in the seed have equal
    settings.

    Args:
        config: Completed config of the run.
        before: Container of the config before it was completed.
    """
    folder = Path(config.run_dir, ".hydra")
    found = [key.removeprefix(".") for key, *_ in _differences(before, OmegaConf.to_container(config), "")]
    if found and (folder / "config.yaml").exists():
        write_text(folder / "config.yaml", OmegaConf.to_yaml(config))
        found += map(str, _read_list(folder / "found.yaml"))
        write_text(folder / "found.yaml", yaml.safe_dump(sorted(set(found))))


def save_found_values(config: DictConfig, saved: dict[str, Any]) -> None:
    """Copy found values of a resumed run to its config: the learning rate and the source of its initial weights.

    Args:
        config: Config of the resuming command; modified in place.
        saved: Config in the run folder.
    """
    rate = saved.get("find_lr")
    if config.get("find_lr") is True and isinstance(rate, float):
        config.find_lr = config.optimizer.lr = rate
    if config.get("weights") is not None and saved.get("weights"):
        config.weights = saved["weights"]
        if "weights" in config.model:
            config.model.weights = saved["model"].get("weights")


def _texts(value: Any) -> Iterator[str]:
    """Yield all strings in a value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry)


def _is_balanced(config: Any) -> bool:
    loss = config.get("loss")
    return bool(loss) and loss.get("weight") == "balanced"


def read_overrides(run: Path) -> list[str]:
    """Return the overrides of a run, including those of later resumes, without ckpt_path."""
    return [line for line in _read_list(run / ".hydra/overrides.yaml") if not line.startswith("ckpt_path=")]


def _read_list(path: Path) -> list[str]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None) or []


def read_choices(run: Path) -> dict[str, str]:
    """Return the choice of a run for each config group, typed or default; groups with a list of choices are skipped."""
    path = run / ".hydra/hydra.yaml"
    try:
        choices: Any = OmegaConf.select(OmegaConf.load(path), "hydra.runtime.choices") if path.exists() else None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError):
        choices = None  # the run may be untrusted
    named = choices.items() if isinstance(choices, DictConfig) else ()
    return {str(group): choice for group, choice in named if isinstance(choice, str) and project.is_group(str(group))}


def read_hyperparameters(run: Path) -> dict[str, bool | int | float | str]:
    """Return the hyperparameters of a run, except found values, which may depend on the seed."""
    found = _read_list(run / ".hydra/found.yaml")
    return {name: value for name, value in hyperparameters(read_saved(run)) if name not in found}


def hyperparameters(config: Any, name: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """Yield the hyperparameters in a composed config as (dotted name, value); classes are given by name.

    It skips references to other values (``${…}``), descriptions of the data, callbacks, loggers, metrics and folders.

    Args:
        config: Config, or a part of it.
        name: Dotted name of ``config``.
    """
    left_out = ("_partial_", "class_names", "columns")
    left_out_at_root = ("callbacks", "logger", "metrics", "ckpt_path", "run_dir")
    if isinstance(config, dict):
        for key, value in config.items():
            if key == "_target_":
                yield name, value.rpartition(".")[2]
            elif key not in left_out and (name or key not in left_out_at_root):
                yield from hyperparameters(value, f"{name}.{key}" if name else key)
    elif isinstance(config, bool | int | float):
        yield name, config
    elif "${" not in str(config) and "_target_" not in str(config):
        yield name, str(config)


def merge_overrides(run: Path, overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a run that is resumed with more overrides, which replace earlier ones."""
    changed = {line.partition("=")[0].lstrip("+~") for line in overrides}
    kept = [line for line in read_overrides(run) if line.partition("=")[0].lstrip("+~") not in changed]
    return [*kept, *overrides]


def typed_overrides() -> list[str]:
    """Return the overrides of the current Hydra job; none in resume.py, which runs no Hydra job."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def is_job_of_multirun() -> bool:
    """Return whether this process runs a job of a Hydra multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def multirun_command() -> str | None:
    """Return the command that resumes the multirun of this job; None outside a multirun or in a launcher's process."""
    if not is_job_of_multirun() or Path(sys.argv[0]).name != "train.py":
        return None
    kept = [word for word in sys.argv if not word.startswith(("ckpt_path=", "hydra.sweep.dir="))]
    return shlex.join(
        ["python", *kept, f"hydra.sweep.dir={display_path(HydraConfig.get().sweep.dir)}", "ckpt_path=last"]
    )


def swept_keys() -> set[str]:
    """Return the keys that have several values in the multirun of the current Hydra job."""
    config, path = HydraConfig.get(), Path(HydraConfig.get().sweep.dir, "multirun.yaml")
    lines = OmegaConf.load(path).hydra.overrides.task if path.exists() else []
    swept = {line.key_or_group for line in OverridesParser.create().parse_overrides(lines) if line.is_sweep_override()}
    return swept | set(config.sweeper.get("params") or {})


def read_config(run: Path, overrides: Sequence[str] = (), is_trained: bool = True) -> DictConfig:
    """Read the config of a run and apply overrides, after checking that it cannot execute code or access other places.

    The folder may be untrusted, moved, or older than a key in today's configs. A missing key gets the value that
    ``train.py`` would give it.

    Args:
        run: Run folder.
        overrides: ``key=value`` in Hydra's grammar.
        is_trained: Whether callbacks and loggers will be instantiated.

    Raises:
        UserError: If the config cannot be read, or trust.py refuses part of it.
        ConfigCompositionException: If an override is invalid, or its key does not exist.
    """
    saved = read_saved(run)
    # The only key that refers to Hydra's output folder; the run may have been moved.
    saved["run_dir"] = str(run)
    for key in ("defaults", "hydra"):
        saved.pop(key, None)  # Hydra never writes these keys, but would act on them.
    refuse_control_characters(saved, f"{run / '.hydra/config.yaml'}")
    refuse_control_characters(read_overrides(run), f"{run / '.hydra/overrides.yaml'}")
    config = _with_new_keys(_with_former_loss(saved), _config_of_today(run))

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in parsed:
        line, key = str(override.input_line), override.key_or_group
        if key.startswith(("optimizer.", "scheduler.")):
            raise UserError(
                f"{line} would have no effect, because the checkpoint holds the state of optimizer and scheduler. "
                f"Start a new run: {_command_of_another(run, line)}"
            )
        if project.is_group(key):
            raise UserError(
                f"{line} is not possible: a run keeps the choices that it was started with. Change a key, as in "
                f"trainer.max_epochs=20, or start a new run: {_command_of_another(run, line)}"
            )
        is_of_start = key in ("weights", "weights_strict") and has_checkpoint(run)
        if key in ("ckpt_path", "run_dir") or key.startswith("hydra.") or is_of_start:
            raise UserError(f"{line} has no effect: a run has its own folder and checkpoints. Remove it.")
    if not is_trained:
        config["logger"] = {}  # so that runs with any logger can be read
    typed = {override.key_or_group for override in parsed}
    if has_checkpoint(run):
        typed.add("weights")  # the run resumes from its own checkpoint
    ours = _loggers_of_the_project(run) if is_trained else {}
    known = _known_values(config.get("logger"), ours)
    refuse_resolvers(config, typed | known)
    ConfigStore.instance().store("run", config, **REPLACE)
    # A folder without configs: hydra.initialize would search all imported modules for its caller.
    with hydra.initialize_config_dir(str(Path(__file__).parent), **VERSION_BASE):
        composed = hydra.compose("run", list(overrides))
    if isinstance(composed.trainer, DictConfig) and composed.trainer.get("default_root_dir") is None:
        # Lightning would write to the current folder.
        OmegaConf.update(composed, "trainer.default_root_dir", str(run), force_add=True)
    resolved: Any = OmegaConf.to_container(composed, resolve=True)
    known = _known_destinations(resolved["logger"], ours, typed)
    refuse_untrusted_targets(resolved, known)
    refuse_paths_outside(
        resolved, run, typed | known, ("callbacks", "logger", "trainer") if is_trained else ("trainer",)
    )
    if overrides:
        refuse_without_effect(config, composed, overrides, display_path(run), "Start a new run: python train.py …")
    return composed


def _command_of_another(run: Path, override: str) -> str:
    return f"python train.py {shlex.join(merge_overrides(run, [override]))}"


def read_saved(run: Path) -> dict[str, Any]:
    """Return the config in a run folder without interpolation or checks; empty if there is none."""
    path = run / ".hydra/config.yaml"
    try:
        saved: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {}
        if not isinstance(saved, dict):
            raise ValueError("it is a list")
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return _with_present_targets(saved)


# Former modules of the user's package in runs from before 2026-12, and their present names.
FORMER_MODULES = {
    "callbacks.classifier_figures": "{package}.figures.classifier",
    "callbacks.regression_figures": "{package}.figures.regression",
    **{
        f"callbacks.{name}": f"torch_starter.callbacks.{name}"
        for name in (
            "curves",
            "fine_tuning",
            "finite_loss",
            "global_batch",
            "known_batches",
            "known_monitors",
            "last_checkpoint",
            "progress",
            "resumable",
            "run_description",
        )
    },
}


# Loss and metrics of models in runs from before 2026-12, whose configs do not contain them.
FORMER_LOSSES = {
    "models.linear_regression.LinearRegression": ({"_target_": "torch.nn.MSELoss"}, {}),
    **dict.fromkeys(
        ("models.image_classifier.ImageClassifier", "models.torchvision_classifier.TorchvisionClassifier"),
        (
            {"_target_": "torch.nn.CrossEntropyLoss"},
            {
                "acc": {
                    "_target_": "torchmetrics.classification.MulticlassAccuracy",
                    "num_classes": "${model.num_classes}",
                    "average": "micro",
                }
            },
        ),
    ),
}


def _with_former_loss(config: dict[str, Any]) -> dict[str, Any]:
    """Add the loss and metrics that a model had before they were part of configs."""
    model = config.get("model")
    if not isinstance(model, dict) or "loss" in model:
        return config
    package, _, name = str(model.get("_target_")).partition(".")
    if package not in project.PACKAGES or name not in FORMER_LOSSES:
        return config
    loss, metrics = FORMER_LOSSES[name]
    return config | {"loss": loss, "metrics": metrics, "model": model | {"loss": "${loss}", "metrics": "${metrics}"}}


def _with_present_targets(config: Any) -> Any:
    """Replace each ``_target_`` that has moved by its present name."""
    if isinstance(config, list):
        return [_with_present_targets(entry) for entry in config]
    if not isinstance(config, dict):
        return config
    config = {key: _with_present_targets(value) for key, value in config.items()}
    package, _, rest = str(config.get("_target_")).partition(".")
    for former, present in FORMER_MODULES.items():
        if package in project.PACKAGES and rest.startswith(f"{former}."):
            config["_target_"] = present.format(package=package) + rest.removeprefix(former)
            break
    return config


def _config_of_today(run: Path) -> Any:
    """Return the unresolved config that ``train.py`` composes today from the overrides of a run."""
    # Hydra's own keys, with any prefix, could make it import a package for its configs.
    lines = read_overrides(run)
    overrides = [line for line in lines if "${" not in line and "hydra" not in line.partition("=")[0]]
    try:
        return OmegaConf.to_container(project.compose(overrides))
    except (HydraException, ValueError):  # a choice or key has been removed since
        return {}


def _loggers_of_the_project(run: Path) -> dict[str, tuple[Any, Any]]:
    """Return this project's config of each remote logger, by name, as a pair of unresolved and resolved values.

    Only the choices among the run's overrides are used, such as ``logger=wandb``, because they select files of the
    project.
    """
    choices = project.groups()
    found = {}
    for line in read_overrides(run):
        group, _, names = line.partition("=")
        if set(names.strip("[]").replace(" ", "").split(",")) <= set(choices.get(group, ())):
            found[group] = line
    try:
        config = project.compose(list(found.values()))
    except (HydraException, ValueError):
        return {}
    config.run_dir = str(run)
    entries = {}
    for name, entry in config.logger.items():
        with contextlib.suppress(OmegaConfBaseException):  # refers to a value that the run does not have
            pair = OmegaConf.to_container(entry), OmegaConf.to_container(entry, resolve=True)
            if not is_trusted(entry.get("_target_")):
                entries[str(name)] = pair
    return entries


def _known_values(loggers: Any, ours: dict[str, tuple[Any, Any]]) -> set[str]:
    """Return the dotted keys whose unresolved values in a run folder's loggers equal those of this project.

    Values that refer to keys other than ``run_dir`` are excluded, because the run folder may define those keys.
    """
    if not isinstance(loggers, dict):
        return set()
    known = set()
    for name, (own, _) in ours.items():
        mine, theirs = dict(_leaves(own, f"logger.{name}")), dict(_leaves(loggers.get(name), f"logger.{name}"))
        known |= {key for key, value in mine.items() if theirs.get(key) == value and not REFERENCE.search(str(value))}
    return known


def _known_destinations(loggers: Any, ours: dict[str, tuple[Any, Any]], typed: set[str]) -> set[str]:
    """Check that remote loggers have the destinations of this project's configs, or typed ones.

    Args:
        loggers: Resolved loggers of the run.
        ours: See ``_loggers_of_the_project``.
        typed: Dotted keys that the user typed.

    Returns:
        The dotted keys that were checked, such as ``logger.wandb.project``.

    Raises:
        UserError: If an argument other than a label differs.
    """
    known = set()
    for name, (_, own) in ours.items():
        entry = loggers.get(name)
        if not entry or entry.get("_target_") != own.get("_target_"):
            continue
        differing = set()
        for key, value, found in _differences(own, entry, f"logger.{name}"):
            differing.add(key)
            is_typed = any(key == one or key.startswith(f"{one}.") for one in typed)
            if not is_typed and not (key.split(".")[2] in LABELS and _is_text(found)):
                raise UserError(
                    f"{key} of the run's config is {found}, and {value} in this project's configs; a run folder may "
                    "not choose the destination of its data: refused, and nothing was executed.\n"
                    f"If you trust it, type it: {key}=…; or disable the logger: logger.{name}=null"
                )
        # Keys of this project's config, because a label in the run's config may be a dict with any content.
        known |= {key for key, _ in _leaves(own, f"logger.{name}")} - differing
    return known


def _is_text(value: Any) -> bool:
    return value is None or all(isinstance(entry, str) for entry in (value if isinstance(value, list) else [value]))


def _leaves(config: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for all values in nested dicts; a list is a single value."""
    for name, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, dict):
            yield from _leaves(value, f"{key}.{name}")
        else:
            yield f"{key}.{name}", value


def _with_new_keys(saved: Any, today: Any) -> Any:
    """Add keys of ``today`` that ``saved`` lacks, where both configure the same target."""
    if not (isinstance(saved, dict) and isinstance(today, dict)) or saved.get("_target_") != today.get("_target_"):
        return saved
    return today | {key: _with_new_keys(value, today.get(key)) for key, value in saved.items()}


def refuse_without_effect(
    saved: dict[str, Any], config: DictConfig, overrides: Sequence[str], source: str | Path, remedy: str
) -> None:
    """Refuse a config whose model, optimizer or scheduler differs from the state in a checkpoint.

    Args:
        saved: Config of the run that wrote the checkpoint, as dicts, lists and values; empty if it is not known.
        config: Config that resumes from the checkpoint.
        overrides: Overrides that the user typed.
        source: Name of the checkpoint in messages.
        remedy: Last sentence of messages.

    Raises:
        UserError: If a difference would have no effect, or does not fit the weights.
    """
    now: Any = OmegaConf.to_container(config)
    if now.get("find_lr") is True and saved.get("find_lr") is not True:
        raise UserError(f"find_lr is true, but {source} has a learning rate, so it would have no effect. {remedy}")
    for key, value in (saved.get("data") or {}).items():
        if now["data"].get(key, "") is None:
            now["data"][key] = value  # values that depend on the data
    if _is_balanced(now):
        now["loss"]["weight"] = (saved.get("loss") or {}).get("weight")  # depends on the data, too
    # Keep only keys that a model may refer to; the folder may be untrusted.
    saved = {key: value for key, value in saved.items() if key not in ("run_dir", "callbacks", "logger", "trainer")}
    try:
        refuse_resolvers(saved, set())
        before, after = (OmegaConf.to_container(OmegaConf.create(c).model, resolve=True) for c in (saved, now))
        refuse_untrusted_targets(before)
    except (UserError, OmegaConfBaseException):
        return  # an untrusted or old run cannot be compared
    typed = {override.key_or_group for override in OverridesParser.create().parse_overrides(list(overrides))}
    found = [
        (key, old, new)
        for key, old, new in _differences(before, after, "model")
        if key != "model.compile" and (old is not None or key in typed or key.removeprefix("model.") in typed)
    ]
    for key, old, new in found:
        if key.startswith(("model.optimizer.", "model.scheduler.")):
            key = key.removeprefix("model.")
            part = "an optimizer" if key.startswith("optimizer") else "a scheduler"
            raise UserError(
                f"{key.removesuffix('._target_')} is {new}, but {source} holds the state of {part} with {old}, so "
                f"it would have no effect. {remedy}"
            )
    if found:
        # Some differences are allowed, such as another dropout rate.
        of_before, of_after = (_initial_weights(model) for model in (before, after))
        key, old, new = found[0]
        what = f"{key.removesuffix('._target_')} is {new}, but {source} has the weights of a model with {old}"
        if [(name, w.shape) for name, w in of_before.items()] != [(name, w.shape) for name, w in of_after.items()]:
            raise UserError(f"{what}, which do not fit. Start a new run for it.")
        if not all(value.equal(of_after[name]) for name, value in of_before.items()):
            raise UserError(f"{what}, so it would have no effect. {remedy}")


def _initial_weights(model: Any) -> "dict[str, Tensor]":
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return hydra.utils.instantiate(OmegaConf.create(model), _convert_="all").state_dict()


def _differences(before: Any, after: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted key, value before, value after) for each difference; a missing value is None."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in before | after:
            yield from _differences(before.get(name), after.get(name), f"{key}.{name}")
    elif before != after:
        yield key, before, after
