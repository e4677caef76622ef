"""The config in a run folder: completed by what only the data know, and read again without trusting it."""

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


# Arguments of a logger that sends elsewhere which do not say where to: the folder of a run may have its own.
LABELS = ("name", "run_name", "group", "job_type", "notes", "tags")
# What an interpolation may refer to beside ``run_dir`` and a resolver of letters.
REFERENCE = re.compile(r"\$\{(?!run_dir\}|[\w.]+:)")


def complete_config(config: DictConfig, data: Any) -> None:
    """Fills in what only the data know, such as the number of classes; the config of the model refers to it.

    The run folder keeps it, so that the run can be read later without the data.

    Args:
        config: of the run; changed in place.
        data: made from ``config.data``. Its ``facts()``, if it has that, are values for keys of ``config.data``; its
            ``class_counts()`` are what becomes of ``loss.weight=balanced``.

    Raises:
        Mistake: if one is a text that a config cannot hold, or the numbers of a balanced loss are not known.
    """
    before = OmegaConf.to_container(config)
    for key, value in data.facts().items() if hasattr(data, "facts") else ():
        for name in _texts(value):
            if re.search(r"^\?{3}$|\$\{|[\x00-\x1f\x7f]", name):
                raise UserError(f"data.{key} has {name!a}, which means something else in a config: rename it.")
        OmegaConf.update(config, f"data.{key}", value)
    if _is_balanced(config):
        if not hasattr(data, "class_counts"):
            raise UserError(
                f"loss.weight=balanced needs to know how many samples each class has, and {type(data).__name__} has no "
                "class_counts. Give a number per class: loss.weight=[1,2]"
            )
        counts = data.class_counts()
        # Each class as a whole counts the same, and the average sample 1.
        config.loss.weight = [sum(counts) / (len(counts) * max(1, count)) for count in counts]
    save(config, before)


def save(config: DictConfig, before: Any) -> None:
    """Writes a config into its run folder, if that has one, and which of its keys differ from ``before``.

    These were found and not chosen: without them, runs that differ in nothing but the seed have the same settings.
    """
    folder = Path(config.run_dir, ".hydra")
    found = [key.removeprefix(".") for key, *_ in _differences(before, OmegaConf.to_container(config), "")]
    if found and (folder / "config.yaml").exists():
        write_text(folder / "config.yaml", OmegaConf.to_yaml(config))
        found += map(str, _read_list(folder / "found.yaml"))
        write_text(folder / "found.yaml", yaml.safe_dump(sorted(set(found))))


def save_found_values(config: DictConfig, saved: dict[str, Any]) -> None:
    """Lets the command of a run that goes on have what its start has found: the rate, and whose weights it took."""
    rate = saved.get("find_lr")
    if config.get("find_lr") is True and isinstance(rate, float):
        config.find_lr = config.optimizer.lr = rate
    if config.get("weights") is not None and saved.get("weights"):
        config.weights = saved["weights"]
        if "weights" in config.model:
            config.model.weights = saved["model"].get("weights")


def _texts(value: Any) -> Iterator[str]:
    """All text in a value, however deep."""
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
    """The overrides that a run was started with and, if it was resumed with more, those too; without ckpt_path."""
    return [line for line in _read_list(run / ".hydra/overrides.yaml") if not line.startswith("ckpt_path=")]


def _read_list(path: Path) -> list[str]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None) or []


def read_choices(run: Path) -> dict[str, str]:
    """The file that a run has chosen of each group, typed or by default; not of a list of choices."""
    path = run / ".hydra/hydra.yaml"
    try:
        choices: Any = OmegaConf.select(OmegaConf.load(path), "hydra.runtime.choices") if path.exists() else None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError):
        choices = None  # of an untrusted run
    named = choices.items() if isinstance(choices, DictConfig) else ()
    return {str(group): choice for group, choice in named if isinstance(choice, str) and project.is_group(str(group))}


def read_hyperparameters(run: Path) -> dict[str, bool | int | float | str]:
    """The hyperparameters of a run, without those that it has found, which may depend on the seed."""
    found = _read_list(run / ".hydra/found.yaml")
    return {name: value for name, value in hyperparameters(read_saved(run)) if name not in found}


def hyperparameters(config: Any, name: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """The values that stand in a composed config, by their dotted names; a class by its name alone.

    Left out is what only repeats another value (``${…}``), what describes the data, and how a run is watched:
    callbacks, loggers, metrics and folders.
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
    """The overrides of a run that goes on with some more."""
    changed = {line.partition("=")[0].lstrip("+~") for line in overrides}
    kept = [line for line in read_overrides(run) if line.partition("=")[0].lstrip("+~") not in changed]
    return [*kept, *overrides]


def typed_overrides() -> list[str]:
    """The overrides of the job that Hydra runs; none where resume.py does without Hydra's job."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def is_job_of_multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def multirun_command() -> str | None:
    """The command that goes on with the multirun of this job; None if it is no such job, or in a launcher's process."""
    if not is_job_of_multirun() or Path(sys.argv[0]).name != "train.py":
        return None
    kept = [word for word in sys.argv if not word.startswith(("ckpt_path=", "hydra.sweep.dir="))]
    return shlex.join(
        ["python", *kept, f"hydra.sweep.dir={display_path(HydraConfig.get().sweep.dir)}", "ckpt_path=last"]
    )


def swept_keys() -> set[str]:
    """The keys that have several values in the multirun whose job Hydra runs."""
    config, path = HydraConfig.get(), Path(HydraConfig.get().sweep.dir, "multirun.yaml")
    lines = OmegaConf.load(path).hydra.overrides.task if path.exists() else []
    swept = {line.key_or_group for line in OverridesParser.create().parse_overrides(lines) if line.is_sweep_override()}
    return swept | set(config.sweeper.get("params") or {})


def read_config(run: Path, overrides: Sequence[str] = (), is_trained: bool = True) -> DictConfig:
    """The config of a run with some changes, once it is known that nothing in it can run code or lead elsewhere.

    The folder may be untrusted, moved, or older than a key that the configs
    have today: such a key gets the value that ``train.py`` would give it.

    Args:
        run: a run folder.
        overrides: ``key=value`` in Hydra's grammar.
        is_trained: whether its callbacks and loggers are instantiated.

    Raises:
        Mistake: if the config cannot be read, or trust.py refuses something in it.
        ConfigCompositionException: if an override is none, or its key does not exist.
    """
    saved = read_saved(run)
    # The only key that asks Hydra where it is, and a folder may have been moved.
    saved["run_dir"] = str(run)
    for key in ("defaults", "hydra"):
        saved.pop(key, None)  # Hydra never writes these there; it would act on them.
    refuse_control_characters(saved, f"{run / '.hydra/config.yaml'}")
    refuse_control_characters(read_overrides(run), f"{run / '.hydra/overrides.yaml'}")
    config = _with_new_keys(_with_former_loss(saved), _config_of_today(run))

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in parsed:
        line, key = str(override.input_line), override.key_or_group
        if key.startswith(("optimizer.", "scheduler.")):
            raise UserError(
                f"{line}: a checkpoint holds the state of optimizer and scheduler, so it would have no effect. Start "
                f"another run: {_command_of_another(run, line)}"
            )
        if project.is_group(key):
            raise UserError(
                f"{line}: a run keeps the choices that it was started with. Change a key, as in trainer.max_epochs=20, "
                f"or start another: {_command_of_another(run, line)}"
            )
        is_of_start = key in ("weights", "weights_strict") and has_checkpoint(run)
        if key in ("ckpt_path", "run_dir") or key.startswith("hydra.") or is_of_start:
            raise UserError(f"{line}: a run has its own folder and checkpoints, so it has no effect. Leave it out.")
    if not is_trained:
        config["logger"] = {}  # so that a run with any logger can be asked
    typed = {override.key_or_group for override in parsed}
    if has_checkpoint(run):
        typed.add("weights")  # the run goes on from its own
    ours = _loggers_of_the_project(run) if is_trained else {}
    known = _known_values(config.get("logger"), ours)
    refuse_resolvers(config, typed | known)
    ConfigStore.instance().store("run", config, **REPLACE)
    # A folder without configs, for hydra.initialize would look through all modules that are imported for its caller.
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
        refuse_without_effect(
            config, composed, overrides, display_path(run), "Start another run for it: python train.py …"
        )
    return composed


def _command_of_another(run: Path, override: str) -> str:
    return f"python train.py {shlex.join(merge_overrides(run, [override]))}"


def read_saved(run: Path) -> dict[str, Any]:
    """The config that lies in a run folder, as it is; empty if there is none."""
    path = run / ".hydra/config.yaml"
    try:
        saved: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {}
        if not isinstance(saved, dict):
            raise ValueError("it is a list")
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return _with_present_targets(saved)


# Modules of the user's package that runs from before 2026-12 name, and where they are since.
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


# What models of runs from before 2026-12, whose configs have no loss and metrics, were trained with.
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
    """``config``, with the loss and the metrics that its model had before they were in configs."""
    model = config.get("model")
    if not isinstance(model, dict) or "loss" in model:
        return config
    package, _, name = str(model.get("_target_")).partition(".")
    if package not in project.PACKAGES or name not in FORMER_LOSSES:
        return config
    loss, metrics = FORMER_LOSSES[name]
    return config | {"loss": loss, "metrics": metrics, "model": model | {"loss": "${loss}", "metrics": "${metrics}"}}


def _with_present_targets(config: Any) -> Any:
    """``config``, in which each ``_target_`` that has moved is where it is now."""
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
    """What ``train.py`` would compose today from the overrides of a run, unresolved."""
    # Hydra's own keys, whatever stands before them, could name a package to import for its configs.
    lines = read_overrides(run)
    overrides = [line for line in lines if "${" not in line and "hydra" not in line.partition("=")[0]]
    try:
        return OmegaConf.to_container(project.compose(overrides))
    except (HydraException, ValueError):  # a choice or a key that is gone since
        return {}


def _loggers_of_the_project(run: Path) -> dict[str, tuple[Any, Any]]:
    """What the configs of this project have for the loggers that send elsewhere, by name: as it stands, and resolved.

    Of the overrides of the run only choices count, such as ``logger=wandb``, for these are files of the project.
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
        with contextlib.suppress(OmegaConfBaseException):  # what refers to something that the run does not have
            pair = OmegaConf.to_container(entry), OmegaConf.to_container(entry, resolve=True)
            if not is_trusted(entry.get("_target_")):
                entries[str(name)] = pair
    return entries


def _known_values(loggers: Any, ours: dict[str, tuple[Any, Any]]) -> set[str]:
    """Keys with dots of what ``loggers``, as they stand in a run folder, have letter for letter as this project has it.

    What refers to another key than ``run_dir`` is left out, for that key may be the folder's own.
    """
    if not isinstance(loggers, dict):
        return set()
    known = set()
    for name, (own, _) in ours.items():
        mine, theirs = dict(_leaves(own, f"logger.{name}")), dict(_leaves(loggers.get(name), f"logger.{name}"))
        known |= {key for key, value in mine.items() if theirs.get(key) == value and not REFERENCE.search(str(value))}
    return known


def _known_destinations(loggers: Any, ours: dict[str, tuple[Any, Any]], typed: set[str]) -> set[str]:
    """Makes sure that loggers which send elsewhere send where those of this project do, or where the user typed.

    Args:
        loggers: of the run, resolved.
        ours: see ``_loggers_of_the_project``.
        typed: keys with dots.

    Returns:
        The keys with dots, such as ``logger.wandb.project``, that have been looked at here.

    Raises:
        Mistake: if an argument other than a label differs.
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
                    f"{key} of the run's config is {found}, and {value} in this project's configs; a run folder does "
                    "not choose where its curves are sent: refused, and nothing was run.\n"
                    f"If you trust it, type it: {key}=…; or leave it out: logger.{name}=null"
                )
        # Of this project's, not of the run's, in which a label may have become a dict with anything in it.
        known |= {key for key, _ in _leaves(own, f"logger.{name}")} - differing
    return known


def _is_text(value: Any) -> bool:
    return value is None or all(isinstance(entry, str) for entry in (value if isinstance(value, list) else [value]))


def _leaves(config: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Keys with dots and values, lists as one, of what is no dict."""
    for name, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, dict):
            yield from _leaves(value, f"{key}.{name}")
        else:
            yield f"{key}.{name}", value


def _with_new_keys(saved: Any, today: Any) -> Any:
    """``saved``, and what only ``today`` has, where both configure the same target."""
    if not (isinstance(saved, dict) and isinstance(today, dict)) or saved.get("_target_") != today.get("_target_"):
        return saved
    return today | {key: _with_new_keys(value, today.get(key)) for key, value in saved.items()}


def refuse_without_effect(
    saved: dict[str, Any], config: DictConfig, overrides: Sequence[str], source: str | Path, remedy: str
) -> None:
    """Refuses a config in which model, optimizer or scheduler are not those that a checkpoint brings with it.

    Args:
        saved: the config of the run that the checkpoint is from, as dicts, lists and values; empty if it is not known.
        config: of what goes on from the checkpoint.
        overrides: that the user typed.
        source: what the message calls the checkpoint.
        remedy: the end of the message.

    Raises:
        Mistake: if a difference would have no effect, or would not fit.
    """
    now: Any = OmegaConf.to_container(config)
    if now.get("find_lr") is True and saved.get("find_lr") is not True:
        raise UserError(f"find_lr is true, but {source} has a learning rate, so that it would have no effect. {remedy}")
    for key, value in (saved.get("data") or {}).items():
        if now["data"].get(key, "") is None:
            now["data"][key] = value  # what only the data know
    if _is_balanced(now):
        now["loss"]["weight"] = (saved.get("loss") or {}).get("weight")  # likewise
    # What a model may refer to; the folder may be untrusted.
    saved = {key: value for key, value in saved.items() if key not in ("run_dir", "callbacks", "logger", "trainer")}
    try:
        refuse_resolvers(saved, set())
        before, after = (OmegaConf.to_container(OmegaConf.create(c).model, resolve=True) for c in (saved, now))
        refuse_untrusted_targets(before)
    except (UserError, OmegaConfBaseException):
        return  # an untrusted or an old run, which cannot be compared
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
                f"{key.removesuffix('._target_')} is {new}, but {source} holds the state of {part} with {old}, so that "
                f"it would have no effect. {remedy}"
            )
    if found:
        # Dropout, for example, may change.
        of_before, of_after = (_initial_weights(model) for model in (before, after))
        key, old, new = found[0]
        what = f"{key.removesuffix('._target_')} is {new}, but {source} has the weights of a model with {old}"
        if [(name, w.shape) for name, w in of_before.items()] != [(name, w.shape) for name, w in of_after.items()]:
            raise UserError(f"{what}, which do not fit. Start another run for it.")
        if not all(value.equal(of_after[name]) for name, value in of_before.items()):
            raise UserError(f"{what}, so that it would have no effect. {remedy}")


def _initial_weights(model: Any) -> "dict[str, Tensor]":
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return hydra.utils.instantiate(OmegaConf.create(model), _convert_="all").state_dict()


def _differences(before: Any, after: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Key, value before and value after, of what differs; None for what is not there."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in before | after:
            yield from _differences(before.get(name), after.get(name), f"{key}.{name}")
    elif before != after:
        yield key, before, after
