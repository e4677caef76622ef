"""A run folder: what a run leaves in it, and how to find it, read it and go on with it.

outputs/EXPERIMENT/DATE_TIME/
├── .hydra/                  the composed config, completed by what only the data know, and the overrides
├── checkpoints/best.ckpt    best by the monitored validation metric
├── checkpoints/last.ckpt    after the last epoch that ended
├── events.out.tfevents.*    TensorBoard
├── figures/*.png            the pictures of the run, the same that TensorBoard shows
├── hparams.yaml             what TensorBoard's HPARAMS shows
├── results.json             final metrics by name, best checkpoint, epochs, wall time; there once the run is finished
├── environment.json         for each start: command, git commit, versions, device
├── split.csv                of a folder of pictures: which is in which split
├── error.txt                of a run of a multirun or a sweep that failed: why
├── train.log
└── .lock                    held by the process that trains; .lock.json says which one it is
"""

import atexit
import contextlib
import difflib
import functools
import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import processes
from compat import REPLACE, VERSION_BASE, instantiate_only_targets_of
from errors import IS_FULL, Mistake, explanation, printable
from trust import (
    PACKAGES,
    refuse_checkpoint_paths,
    refuse_control_characters,
    refuse_links,
    refuse_paths_outside,
    refuse_resolvers,
    refuse_untrusted_targets,
)

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from lightning import LightningModule, Trainer
    from torch import Tensor

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent
CONFIGS = str(ROOT / "configs")
# How a run is asked, whatever it was trained on.
ALONE = ("++trainer.accelerator=auto", "++trainer.devices=1", "++trainer.num_nodes=1", "++trainer.strategy=auto")


# Starting and ending a run


def run_name(choices: DictConfig, overrides: ListConfig) -> str:
    """Returns the name of a run's folder: its experiment or, without one, its data and its model.

    Args:
        choices: the chosen file of each group.
        overrides: those of the command line. Those of a multirun may give several choices to a group.
    """
    given = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    experiment, data, model = (given.get(group) or choices.get(group) for group in ("experiment", "data", "model"))
    # Not linear_linear_regression.
    name = experiment or (model if str(model).startswith(str(data)) else f"{data}_{model}")
    return re.sub(r"[^\w.+-]+", "-", name.replace(",", "+")).strip("-")


def epochs_between(validations: int, max_epochs: int | None, max_steps: int | None) -> int:
    """Returns every how many epochs a run is validated, for some ``validations`` in all, one of them in its last epoch.

    Each epoch of a run with fewer epochs, of unknown length, or that ends by ``max_steps``.
    """
    if not isinstance(max_epochs, int) or max_epochs < 1 or (max_steps or 0) > 0:
        return 1
    return max(n for n in range(1, max(1, max_epochs // validations) + 1) if max_epochs % n == 0)


OmegaConf.register_new_resolver("epochs_between", epochs_between, replace=True)
# The cache gives the jobs of a multirun the name of the multirun.
OmegaConf.register_new_resolver("run_name", run_name, replace=True, use_cache=True)


class InUse(Mistake):
    """A run folder holds another run, or is being trained by another process: nothing in it was changed."""


def is_finished(config: DictConfig) -> bool:
    """Whether the run that ``config`` would go on with has ended, and was started with the same overrides."""
    results = _read_json(Path(config.run_dir, "results.json"))
    return config.ckpt_path == "last" and bool(results) and results["overrides"] == read_overrides(Path(config.run_dir))


@contextlib.contextmanager
def opened(config: DictConfig, changes: Sequence[str] = (), is_kept: bool = False) -> Iterator[None]:
    """Keeps a run folder for this process, and writes into it what the run is.

    What is refused changes nothing: Hydra writes nothing into the folder (``hydra.output_subdir`` is null, and its log
    file waits for a first line), this does, once it is known that the folder may be used. A changed config is taken
    back if no epoch was trained with it, and what is new in the folder is removed if training never began.

    Args:
        config: of the run.
        changes: overrides with which resume.py goes on.
        is_kept: whether a new run stays in any case. A job of a multirun does, which leaves its error in its folder.

    Raises:
        InUse: if the folder holds another run, or another process trains in it.
        Mistake: if a link leads out of the folder, or the config contradicts the checkpoint that the run starts from.
    """
    run = Path(config.run_dir).resolve()
    # As a number: in a run folder, which others may be given, a resolver is refused.
    if "check_val_every_n_epoch" in config.trainer:
        config.trainer.check_val_every_n_epoch = config.trainer.check_val_every_n_epoch
    is_kept |= _is_job_of_multirun()
    run.mkdir(parents=True, exist_ok=True)
    refuse_links(run)
    found = {*run.iterdir(), run / ".lock", run / ".lock.json"}
    logged = _times(run, "train.log")[0]
    try:
        with locked(run):
            overrides = _typed() or with_changes(run, changes)
            refuse_another(config, overrides, run)
            before = {path: path.read_text(encoding="utf-8") for path in (run / ".hydra").glob("*.yaml")}
            started, trained = _times(run, "environment.json"), _times(run, "checkpoints/last.ckpt", "results.json")
            if HydraConfig.initialized() or changes:
                _write_config(run, config, overrides)
            try:
                yield
            finally:
                if _times(run, "checkpoints/last.ckpt", "results.json") == trained:
                    for path, text in before.items():
                        write_text(path, text)
                if _times(run, "environment.json") == started and (before or not is_kept):
                    _remove(set(run.iterdir()) - found)
                    if logged:  # by which it would be the latest run
                        os.utime(run / "train.log", ns=(logged, logged))
    finally:
        if run != Path.cwd():
            _remove_empty([run])


def _times(run: Path, *names: str) -> list[int | None]:
    """When files of a run were written; None for one that is not there."""
    return [(run / name).stat().st_mtime_ns if (run / name).exists() else None for name in names]


def _write_config(run: Path, config: DictConfig, overrides: Sequence[str]) -> None:
    """What Hydra would write."""
    (run / ".hydra").mkdir(exist_ok=True)
    write_text(run / ".hydra/config.yaml", OmegaConf.to_yaml(config))
    write_text(run / ".hydra/overrides.yaml", yaml.safe_dump(list(overrides)))
    if HydraConfig.initialized():
        write_text(run / ".hydra/hydra.yaml", OmegaConf.to_yaml(HydraConfig.instance().cfg))
    (run / "train.log").touch()


def _remove(paths: Iterable[Path]) -> None:
    for handler in logging.root.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.close()  # Windows removes no open file
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def refuse_another(config: DictConfig, overrides: Sequence[str], run: Path) -> None:
    """Makes sure that a run does not overwrite another one, and goes on with none but itself.

    Raises:
        InUse: if the folder holds a run, and ``config`` does not go on with it or contradicts it.
    """
    saved = _read_saved(run)
    is_trial = bool((saved.get("trainer") or {}).get("fast_dev_run"))
    if not has_checkpoint(run) and (is_trial or not (run / "results.json").exists()):
        return
    if config.ckpt_path != "last":
        key = "sweep" if _is_job_of_multirun() else "run"
        raise InUse(
            f"{shown(run)} holds a run, which was not changed. Choose another hydra.{key}.dir, or go on with that run "
            "by ckpt_path=last."
        )
    try:
        refuse_without_effect(saved, config, overrides, shown(run), "Start another run for it.")
    except Mistake as error:
        raise InUse(str(error)) from None


@functools.cache
def lock_of(folder: Path) -> "BaseFileLock":
    """The lock of a run folder, an absolute path; in a process always the same one, which it can take repeatedly."""
    from filelock import FileLock

    return FileLock(folder / ".lock")


@contextlib.contextmanager
def locked(run_dir: str | Path) -> Iterator[None]:
    """Keeps other processes from training in a run folder. The system takes the lock from a process that dies.

    Raises:
        InUse: if another process trains in it; it says which one.
    """
    if not processes.is_first():
        yield
        return
    from filelock import Timeout

    folder = Path(run_dir).resolve()
    holder, is_held = folder / ".lock.json", True
    folder.mkdir(parents=True, exist_ok=True)
    try:
        try:
            lock_of(folder).acquire(timeout=0)
        except Timeout:
            if not _is_dead(_read_holder(holder)):
                raise
            lock_of(folder).acquire(timeout=15)  # until the workers notice that load data for it, and inherit the lock
    except Timeout:
        by = _read_holder(holder)
        who = f"process {by['pid']} on {by['host']}, since {by['since']}" if by else "another process"
        raise InUse(f"{shown(folder)} is being trained by {who}. Wait for it, or stop it first.") from None
    except (OSError, NotImplementedError) as error:
        is_held = False
        _warn_once(f"{folder} cannot be locked ({error}): do not train in it twice at once.")
    try:
        if is_held:
            since = datetime.now().astimezone().isoformat(timespec="seconds")
            write_json(holder, {"pid": os.getpid(), "host": platform.node(), "since": since})
        yield
    finally:
        if is_held:
            holder.unlink(missing_ok=True)
            lock_of(folder).release()


def _read_holder(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        return _read_json(path)
    return None


def _is_dead(holder: dict[str, Any] | None) -> bool:
    """Whether the process was on this machine, and is no longer."""
    if holder is None or holder["host"] != platform.node():
        return False
    if sys.platform == "win32":  # where no signal asks without ending
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


@functools.cache
def _warn_once(message: str) -> None:
    log.warning(message)


def claim(config: DictConfig) -> str | None:
    """Returns the checkpoint that a run starts from, if any.

    ``ckpt_path=last`` goes on in the run's own folder: from ``last.ckpt`` if it is there and whole, otherwise from
    ``best.ckpt``, otherwise from the beginning. Any other value is a file of another run, from which a new one goes on.

    Raises:
        Mistake: if there is no such file, no checkpoint of the folder is whole, one refers to files elsewhere, or the
            run cannot go on from it.
    """
    if config.ckpt_path is None or not processes.is_first():
        return config.ckpt_path
    if config.ckpt_path != "last":
        refuse_start(config)
        return str(config.ckpt_path)
    folder = Path(config.run_dir, "checkpoints")
    there = [path for path in (folder / "last.ckpt", folder / "best.ckpt") if path.exists()]
    for path in there:
        if not is_whole(path):
            log.warning(f"{path} is damaged.")
            continue
        saved = read_checkpoint(path)
        refuse_checkpoint_paths(saved, path)
        if is_after_epoch(saved):
            _refuse_shorter(config, saved, f"{shown(folder.parent)} was trained for", "")
            return str(path)
        # That there is no last.ckpt, although it is written after each epoch, says that none has ended.
        if saved["epoch"] == 0 and there == [folder / "best.ckpt"] and config.callbacks.get("last_checkpoint"):
            log.warning(f"No epoch of {shown(folder.parent)} has ended; it starts from the beginning.")
            return None
        log.warning(f"{path} is from the middle of an epoch, from where a run cannot go on as it was.")
    if there:
        raise Mistake(
            f"No checkpoint in {folder} is whole and from the end of an epoch. Delete them to start this run once more "
            "from the beginning."
        )
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What is in a checkpoint; tensors stay on the disk until they are used.

    Raises:
        UnpicklingError: if it holds something else than numbers and text.
    """
    import torch

    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def is_after_epoch(saved: dict[str, Any]) -> bool:
    """Whether a checkpoint was written after the last batch of an epoch, and not between two others."""
    return bool(saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"])


def refuse_start(config: DictConfig) -> None:
    """Makes sure that a new run can go on from the checkpoint of another one.

    Raises:
        Mistake: if there is no such checkpoint, it leaves nothing to train, or the config contradicts it.
    """
    if config.weights is not None:
        raise Mistake("ckpt_path and weights are both set, and a run starts from one of them. Leave out the other.")
    path = existing_checkpoint("ckpt_path", config.ckpt_path)
    weights = f"begin anew with its weights: weights={path} instead of ckpt_path"
    saved = read_checkpoint(path)
    if not is_after_epoch(saved):
        raise Mistake(
            f"ckpt_path is {path}, from the middle of an epoch, from where a run cannot go on as it was. Take its "
            f"last.ckpt, or {weights}."
        )
    _refuse_shorter(config, saved, f"{path} comes after", f", or {weights}", least=1)
    refuse_without_effect(
        _read_saved(path.resolve().parent.parent), config, _typed(), path, f"Leave that out, or {weights}."
    )


def _refuse_shorter(config: DictConfig, saved: dict[str, Any], what: str, remedy: str, least: int = 0) -> None:
    """Refuses a run that shall end before its checkpoint, or has fewer than ``least`` epochs or steps after it."""
    if config.trainer.get("fast_dev_run"):
        raise Mistake(f"trainer.fast_dev_run tries out a new run, and this one goes on from a checkpoint{remedy}.")
    for key, done, count in (("max_epochs", "epoch", 1), ("max_steps", "global_step", 0)):
        limit, trained = config.trainer.get(key), saved[done] + count
        if isinstance(limit, int) and 0 <= limit < trained + least:
            raise Mistake(
                f"trainer.{key} is {limit}, but {what} {trained} {key[4:]}, which leaves none to train. Take more, as "
                f"in trainer.{key}={2 * trained}{remedy}."
            )


def existing_checkpoint(key: str, value: object) -> Path:
    """The path of a whole checkpoint.

    Raises:
        Mistake: if there is none at ``value``.
    """
    path = Path(str(value))
    if not path.is_file():
        raise Mistake(f"{key} is {value}: there is no such file. Name a checkpoint, such as RUN/checkpoints/best.ckpt.")
    if not is_whole(path):
        raise Mistake(f"{key} is {value}, which is damaged. Name another checkpoint.")
    return path


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
    for key, value in (saved.get("data") or {}).items():
        if now["data"].get(key, "") is None:
            now["data"][key] = value  # what only the data know
    # What a model may refer to; the folder may be untrusted.
    saved = {key: value for key, value in saved.items() if key not in ("run_dir", "callbacks", "logger", "trainer")}
    try:
        refuse_resolvers(saved, set())
        before, after = (OmegaConf.to_container(OmegaConf.create(c).model, resolve=True) for c in (saved, now))
        refuse_untrusted_targets(before)
    except (Mistake, OmegaConfBaseException):
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
            raise Mistake(
                f"{key.removesuffix('._target_')} is {new}, but {source} holds the state of {part} with {old}, so that "
                f"it would have no effect. {remedy}"
            )
    if found:
        # Dropout, for example, may change.
        of_before, of_after = (_initial_weights(model) for model in (before, after))
        key, old, new = found[0]
        what = f"{key.removesuffix('._target_')} is {new}, but {source} has the weights of a model with {old}"
        if [(name, w.shape) for name, w in of_before.items()] != [(name, w.shape) for name, w in of_after.items()]:
            raise Mistake(f"{what}, which do not fit. Start another run for it.")
        if not all(value.equal(of_after[name]) for name, value in of_before.items()):
            raise Mistake(f"{what}, so that it would have no effect. {remedy}")


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


def _is_job_of_multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _typed() -> list[str]:
    """The overrides of the job that Hydra runs; none where resume.py does without Hydra's job."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def entries(config: DictConfig, group: str) -> list[Any]:
    """Instantiates what a group of callbacks or loggers holds, one per name; null leaves one out.

    Raises:
        Mistake: if the file of the group has no names in it, or an entry is neither null nor has arguments.
    """
    if "_target_" in config[group]:
        raise Mistake(
            f"{group}._target_ is {config[group]._target_}: each entry of {group} has a name. Put a line such as "
            "`mine:` above it in its file, and indent the rest."
        )
    for name, entry in config[group].items():
        if entry is not None and not isinstance(entry, DictConfig):
            raise Mistake(
                f"{group}.{name} is {entry}. It has a _target_ and its arguments, in a file in configs/{group}, or is "
                "left out: null"
            )
    nameless = [name for name, entry in config[group].items() if entry and "_target_" not in entry]
    for name in nameless:
        log.warning(
            f"{group}.{name} has no _target_ and is left out. If your file in configs/{group} is to add to the default "
            "one, begin it with:\ndefaults: [default]"
        )
    return [hydra.utils.instantiate(entry) for name, entry in config[group].items() if entry and name not in nameless]


def complete(config: DictConfig, data: Any) -> None:
    """Fills in what only the data know, such as the number of classes; the config of the model refers to it.

    The run folder keeps it, so that whoever reads the run later needs no data.

    Args:
        config: of the run; changed in place.
        data: made from ``config.data``. Its ``facts()``, if it has that, are values for keys of ``config.data``.

    Raises:
        Mistake: if one is a text that a config cannot hold.
    """
    if not hasattr(data, "facts"):
        return
    before = OmegaConf.to_yaml(config)
    for key, value in data.facts().items():
        for name in value if isinstance(value, list | tuple) else [value]:
            if isinstance(name, str) and re.search(r"^\?{3}$|\$\{|[\x00-\x1f\x7f]", name):
                raise Mistake(f"data.{key} has {name!a}, which means something else in a config: rename it.")
        OmegaConf.update(config, f"data.{key}", value)
    path, completed = Path(config.run_dir, ".hydra/config.yaml"), OmegaConf.to_yaml(config)
    if path.exists() and completed != before:
        write_text(path, completed)


def with_weights(model: "LightningModule", config: DictConfig, checkpoint: str | None) -> "LightningModule":
    """Returns a model with the weights of ``config.weights``, a checkpoint.

    As it is without one, or if the run goes on from ``checkpoint``, which has its own.

    Raises:
        Mistake: if there is no such checkpoint, or the network starts from other weights, too.
    """
    if config.weights is None or checkpoint:
        return model
    if config.model.get("weights"):
        raise Mistake(
            f"weights and model.weights={config.model.weights} both say what the network starts from. Leave out the "
            "former, or add model.weights=null."
        )
    model.load_state_dict(read_checkpoint(existing_checkpoint("weights", config.weights))["state_dict"])
    return model


def is_whole(checkpoint: Path) -> bool:
    """Whether all of a file that torch.save wrote is there, by the checksums of the zip archive that it is."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False


def record_environment(run_dir: str, trainer: "Trainer") -> None:
    """Adds to environment.json, when the training or the test begins, what this start of the run depends on."""
    from lightning.pytorch.callbacks import LambdaCallback

    is_recorded = False

    def record(trainer: "Trainer", model: "LightningModule") -> None:
        nonlocal is_recorded
        if not is_recorded and trainer.is_global_zero:
            path = Path(run_dir, "environment.json")
            write_json(path, [*(_read_json(path) or []), _environment(trainer)])
        is_recorded = True

    trainer.callbacks.append(LambdaCallback(on_train_start=record, on_test_start=record))


def _environment(trainer: "Trainer") -> dict[str, Any]:
    import torch

    device = trainer.strategy.root_device
    return {
        "command": shlex.join(["python", *sys.argv]),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git": _git(),
        "python": platform.python_version(),
        "packages": dict(sorted(_packages())),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": trainer.num_devices * trainer.num_nodes,
        "cpu_cores": os.cpu_count(),
        "platform": platform.platform(),
        "host": platform.node(),
    }


def _packages() -> Iterator[tuple[str, str]]:
    """Names and versions of all that is installed."""
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata  # read from its file each time that it is asked for
        yield metadata["Name"], metadata["Version"]


def _git() -> dict[str, Any] | None:
    """Commit of the project, and what is not committed; None if it is in no repository, or git is not there."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace").stdout

    try:
        git("ls-files", "--error-unmatch", "train.py")  # or it only lies within the repository of something else
        commit, status = git("rev-parse", "HEAD").strip(), git("status", "--porcelain")
        return {"commit": commit, "dirty": bool(status), "status": status, "diff": git("diff", "HEAD")}
    except (OSError, subprocess.CalledProcessError):
        return None


def save_results(run_dir: str, trainer: "Trainer", metrics: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Writes results.json, and returns what is in it.

    Args:
        run_dir: the run folder.
        trainer: after fit and test.
        metrics: numbers or tensors of one element, by name.
        seconds: wall time since the run was started or resumed.
    """
    checkpoint: Any = trainer.checkpoint_callback
    best = getattr(checkpoint, "best_model_path", "")
    score = getattr(checkpoint, "best_model_score", None)
    results = {
        "metrics": {name: float(value) for name, value in sorted(metrics.items())},
        # What best.ckpt was chosen by, and is the best of.
        "monitored": None
        if score is None
        else {"metric": checkpoint.monitor, "mode": checkpoint.mode, "value": float(score)},
        # Relative to the run folder, which may be moved.
        "best_checkpoint": Path(os.path.relpath(best, run_dir)).as_posix() if best else None,
        # Without one that was cut short.
        "epochs": trainer.current_epoch - (trainer.current_epoch > 0 and not trainer.is_last_batch),
        "steps": trainer.global_step,
        "seconds": round(seconds, 1),
        "overrides": read_overrides(Path(run_dir)),
    }
    write_json(Path(run_dir, "results.json"), results)
    Path(run_dir, "error.txt").unlink(missing_ok=True)  # of an earlier start
    return results


def report(run_dir: str, results: dict[str, Any]) -> str:
    """The lines that end a run: its test metrics, its folder, and what to type next."""
    folder = shown(run_dir)
    # The folder that all runs are in, unless the run is elsewhere or right here.
    log_dir = folder if folder.is_absolute() or not folder.parts else folder.parts[0]
    tests = {name: f"{value:.4f}" for name, value in results["metrics"].items() if name.startswith("test/")}
    lines = {
        **tests,
        "epochs": results["epochs"],
        "seconds": results["seconds"],
        "run folder": folder,
        **({"pictures": folder / "figures"} if Path(run_dir, "figures").exists() else {}),
        "look at it": f"tensorboard --logdir {log_dir}",
        **(
            {"predict": f"python predict.py {'latest' if folder.parts[:1] == ('outputs',) else folder} INPUT…"}
            if has_checkpoint(Path(run_dir))
            else {"checkpoints": "none: no epoch has ended"}
        ),
        "vary it": "python train.py --help",
    }
    return "\n".join(f"{name:<15} {value}" for name, value in lines.items())


def shown(folder: str | Path) -> Path:
    """A folder as somebody would type it: relative where it is beneath the current one."""
    folder = Path(folder).resolve()
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def make_folder_of(path: Path) -> None:
    """Makes sure, before the work, that the file of an ``--output`` can be written.

    Raises:
        Mistake: if it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent, suffix=path.name):
            pass
    except OSError as error:
        raise Mistake(f"--output {path} cannot be written: {error.strerror}. Choose another.") from None


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is there whole or, if the process is killed before, as it was."""
    write_text(path, to_json(value) + "\n")


def to_json(value: Any) -> str:
    """JSON, which has no NaN and no infinity: they become null."""
    return json.dumps(_with_null(value), indent=2, allow_nan=False)


def _with_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_null(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_with_null(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


# Finding and reading a run


def find(words: Sequence[str], is_usable: Callable[[Path], bool]) -> tuple[Path, list[str]]:
    """The run folder that ``words`` begin with, or the latest one; and the rest of the words.

    The latest run is the one beneath ``outputs`` that was started or resumed last, of those that can be used.

    Args:
        words: of the command line.
        is_usable: whether a run can be used for what is asked: ``has_checkpoint`` or ``can_go_on``.

    Raises:
        Mistake: if there is no such run, or something in it leads out of it.
    """
    if words and is_run(Path(words[0])):
        return _checked(Path(words[0])), list(words[1:])
    rest = list(words[1:] if words and words[0] == "latest" else words)
    runs = latest_first()
    if not runs:
        raise Mistake(f"There is no run in {Path('outputs').resolve()}. Make one: python train.py")
    for run in runs:
        if is_usable(run):
            return _checked(run), rest
    raise Mistake(
        f"No run in {Path('outputs').resolve()} has a checkpoint; the latest is {runs[0]}. Make one: python train.py"
    )


def is_run(folder: Path) -> bool:
    return (folder / ".hydra/config.yaml").exists()


def find_runs(folder: Path) -> Iterator[Path]:
    """The run folders beneath a folder."""
    for path, folders, _ in os.walk(folder):
        if ".hydra" in folders and is_run(Path(path)):
            yield Path(path)
            # No run is in them, and of thousands of runs they are most of what there is to walk through.
            folders[:] = [name for name in folders if name not in (".hydra", "checkpoints", "figures")]


def latest_first() -> list[Path]:
    """The runs beneath ``outputs``, by when they were started or resumed."""
    logs = [run / "train.log" for run in find_runs(Path("outputs")) if (run / "train.log").exists()]
    return [path.parent for path in sorted(logs, key=lambda path: path.stat().st_mtime_ns, reverse=True)]


def has_checkpoint(run: Path) -> bool:
    return any((run / "checkpoints").glob("*.ckpt"))


def can_go_on(run: Path) -> bool:
    """Whether there is something to resume: not in a run that ended without a checkpoint, such as a fast_dev_run."""
    return has_checkpoint(run) or not (run / "results.json").exists()


def _checked(folder: Path) -> Path:
    """Returns the absolute path of a run folder that nothing leads out of, see ``refuse_links``."""
    refuse_links(folder)
    return folder.resolve()


def find_with_overrides(words: Sequence[str], is_usable: Callable[[Path], bool]) -> tuple[Path, list[str]]:
    """As ``find``, where nothing but overrides may follow.

    Raises:
        Mistake: if a word is neither a run folder in the first place nor ``key=value``.
    """
    for word in words:
        if "=" not in word and not word.startswith("~") and word != "latest" and not is_run(Path(word)):
            raise Mistake(_no_run(word))
    run, overrides = find(words, is_usable)
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            raise Mistake(f"{word} is a second run, after {shown(run)}. Name one.")
    return run, overrides


def refuse_mistyped(word: str, is_input: bool) -> None:
    """Refuses what stands where a run may stand, and is neither a run nor an input.

    Args:
        word: the first one of a command line that may begin with a run and goes on with inputs.
        is_input: whether it is an input for sure, such as a number.

    Raises:
        Mistake: if it is a folder of runs, or nothing that there is; it names the nearest run.
    """
    path = Path(word)
    if any(folder.name == "checkpoints" and is_run(folder.parent) for folder in (path, *path.parents)):
        raise Mistake(_no_run(word))
    if word == "latest" or is_run(path) or is_input or path.is_file():
        return
    if path.is_dir():
        is_mistyped = (path / "checkpoints").is_dir() or any(is_run(f) for p in ("*", "*/*") for f in path.glob(p))
    else:  # beside runs, or without an ending: a run is seldom called x.jpg
        is_beside_runs = path.parent != Path() and any(map(is_run, path.parent.glob("*")))
        is_mistyped = is_beside_runs or not re.search(r"\.[A-Za-z]\w*$", path.name)
    if is_mistyped:
        raise Mistake(_no_run(word))


def _no_run(word: str) -> str:
    """That a folder is no run, and which one may be meant."""
    path, latest = Path(word), latest_first()
    for folder in (path, *path.parents):
        if folder.name == "checkpoints" and is_run(folder.parent):
            name = path.stem if path.suffix == ".ckpt" else "best"
            return f"{word} is in a run folder. Name that: {folder.parent} --checkpoint={name}"
    beside = [run for folder in (path, path.parent) for run in folder.glob("*") if is_run(run)]
    near = difflib.get_close_matches(word, {"latest", *map(str, (*beside, *latest))}, n=1)
    return (
        f"{word} is no run folder: there is no {path / '.hydra/config.yaml'}."
        + (f" Did you mean {near[0]}?" if near else "")
        + (f"\nLatest: {latest[0]}" if latest else "")
    )


def choose_checkpoint(run: Path, name: str) -> str:
    """Path of ``checkpoints/NAME.ckpt``; ``best`` is the one that results.json names if it has another file name.

    Raises:
        Mistake: if it is not there or damaged; it says which are whole.
    """
    if Path(name).name != name:
        raise Mistake(f"--checkpoint {name}: write the name of a file in {shown(run) / 'checkpoints'}, without .ckpt.")
    path = run / "checkpoints" / f"{name.removesuffix('.ckpt')}.ckpt"
    if name == "best" and not path.exists():
        best = (_read_json(run / "results.json") or {}).get("best_checkpoint") or path.name
        path = path.with_name(Path(best).name)
    if path.exists() and is_whole(path):
        return str(path)
    others = sorted(other.stem for other in path.parent.glob("*.ckpt") if is_whole(other))
    remedy = "There is no other: train first."
    if others:
        remedy = f"Whole ones: {', '.join(others)}; choose by --checkpoint, as in --checkpoint={others[-1]}"
    raise Mistake(
        f"{shown(run) / 'checkpoints' / path.name} is {'damaged' if path.exists() else 'not there'}. {remedy}"
    )


def read_overrides(run: Path) -> list[str]:
    """The overrides that a run was started with and, if it was resumed with more, those too; without ckpt_path."""
    path = run / ".hydra/overrides.yaml"
    lines = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    return [line for line in lines or [] if not line.startswith("ckpt_path=")]


def read_config(run: Path, overrides: Sequence[str] = (), is_trained: bool = True) -> DictConfig:
    """The config of a run with some changes, once it is known that nothing in it can run code or lead elsewhere.

    The folder may come from somebody else, may have been moved, and may be older than a key that the configs
    have today: such a key gets the value that ``train.py`` would give it.

    Args:
        run: a run folder.
        overrides: ``key=value`` in Hydra's grammar.
        is_trained: whether its callbacks and loggers are instantiated.

    Raises:
        Mistake: if the config cannot be read, or trust.py refuses something in it.
        ConfigCompositionException: if an override is none, or its key does not exist.
    """
    saved = _read_saved(run)
    # The only key that asks Hydra where it is, and a folder may have been moved.
    saved["run_dir"] = str(run)
    for key in ("defaults", "hydra"):
        saved.pop(key, None)  # Hydra never writes these there; it would act on them.
    refuse_control_characters(saved, f"{run / '.hydra/config.yaml'}")
    refuse_control_characters(read_overrides(run), f"{run / '.hydra/overrides.yaml'}")
    config = _with_new_keys(saved, _config_of_today(run))

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in parsed:
        line, key = str(override.input_line), override.key_or_group
        other = f"python train.py {shlex.join(with_changes(run, [line]))}"
        if key.startswith(("optimizer.", "scheduler.")):
            raise Mistake(
                f"{line}: a checkpoint holds the state of optimizer and scheduler, so it would have no effect. Start "
                f"another run: {other}"
            )
        if Path(CONFIGS, key).is_dir():
            raise Mistake(
                f"{line}: a run keeps the choices that it was started with. Change a key, as in trainer.max_epochs=20, "
                f"or start another: {other}"
            )
        if key in ("ckpt_path", "run_dir", "weights") or key.startswith("hydra."):
            raise Mistake(f"{line}: a run has its own folder and checkpoints, so it has no effect. Leave it out.")
    if not is_trained:
        config["logger"] = {}  # so that a run with any logger can be asked
    typed = {override.key_or_group for override in parsed}
    if has_checkpoint(run):
        typed.add("weights")  # the run goes on from its own
    refuse_resolvers(config, typed)
    ConfigStore.instance().store("run", config, **REPLACE)
    with hydra.initialize(config_path=None, **VERSION_BASE):
        composed = hydra.compose("run", list(overrides))
    if isinstance(composed.trainer, DictConfig) and composed.trainer.get("default_root_dir") is None:
        # Lightning would write to the current folder.
        OmegaConf.update(composed, "trainer.default_root_dir", str(run), force_add=True)
    resolved = OmegaConf.to_container(composed, resolve=True)
    refuse_untrusted_targets(resolved)
    refuse_paths_outside(resolved, run, typed, ("callbacks", "logger", "trainer") if is_trained else ("trainer",))
    if overrides:
        refuse_without_effect(config, composed, overrides, shown(run), "Start another run for it: python train.py …")
    return composed


def _read_saved(run: Path) -> dict[str, Any]:
    """The config that lies in a run folder, as it is; empty if there is none."""
    path = run / ".hydra/config.yaml"
    try:
        saved: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {}
        if not isinstance(saved, dict):
            raise ValueError("it is a list")
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise Mistake(f"{path} cannot be read: {error}") from error
    return saved


def _config_of_today(run: Path) -> Any:
    """What ``train.py`` would compose today from the overrides of a run, unresolved."""
    # Hydra's own keys, whatever stands before them, could name a package to import for its configs.
    lines = read_overrides(run)
    overrides = [line for line in lines if "${" not in line and "hydra" not in line.partition("=")[0]]
    with hydra.initialize_config_dir(CONFIGS, **VERSION_BASE):
        try:
            config = hydra.compose("train", overrides)
        except (HydraException, ValueError):  # a choice or a key that is gone since
            return {}
    return OmegaConf.to_container(config)


def _with_new_keys(saved: Any, today: Any) -> Any:
    """``saved``, and what only ``today`` has, where both configure the same target."""
    if not (isinstance(saved, dict) and isinstance(today, dict)) or saved.get("_target_") != today.get("_target_"):
        return saved
    return today | {key: _with_new_keys(value, today.get(key)) for key, value in saved.items()}


# Asking a run


def load(run: Path, checkpoint: str, overrides: Sequence[str]) -> tuple[DictConfig, Any, Any, "Trainer", str]:
    """What ``evaluate.py``, ``predict.py`` and ``export.py`` need of a run.

    Args:
        run: a run folder; of a run on any accelerator, also one that is not here.
        checkpoint: ``best`` or ``last``.
        overrides: as in ``read_config``.

    Returns:
        config, data module, model (with the weights that it starts from), a trainer that leaves no trace, and the
        path of the checkpoint.

    Raises:
        Mistake: see ``read_config`` and ``choose_checkpoint``.
    """
    processes.leave_others()
    config = read_config(run, [*ALONE, *overrides], is_trained=False)
    path = choose_checkpoint(run, checkpoint)
    if "compile" in config.model:
        config.model.compile = False  # it takes a minute, which one pass over the data does not repay
    # As configs/train.yaml has it: what Lightning says about itself.
    for name in ("utilities.rank_zero", "accelerators.cuda"):
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.WARNING)
    with instantiate_only_targets_of(config):
        data = hydra.utils.instantiate(config.data, _convert_="all")
        model = hydra.utils.instantiate(config.model, _convert_="all")
        trainer = hydra.utils.instantiate(config.trainer, logger=False, enable_checkpointing=False)
        if trainer.num_devices * trainer.num_nodes > 1:  # each process would start the command once more
            raise Mistake(
                f"trainer.devices={config.trainer.devices} trainer.num_nodes={config.trainer.num_nodes}: a run is "
                "asked by one process. Leave them out; one GPU of several is trainer.devices=[1]"
            )
        # Of all callbacks, whose paths were not looked at, the one that writes nothing.
        known_batches = config.callbacks.get("known_batches") or {}
        if known_batches in [{"_target_": f"{name}.callbacks.known_batches.KnownBatches"} for name in PACKAGES]:
            trainer.callbacks.append(hydra.utils.instantiate(known_batches))
    return config, data, model, trainer, path


# Going on


def log_to(run: Path) -> None:
    """Sends the log where ``train.py`` sends it: to the console, and to the train.log of the run."""
    with hydra.initialize_config_dir(CONFIGS, **VERSION_BASE):
        config = hydra.compose("train", return_hydra_config=True)
    config.hydra.runtime.output_dir = str(run)
    config.hydra.job.name = "train"
    configure_log(config.hydra.job_logging)


def with_changes(run: Path, overrides: Sequence[str]) -> list[str]:
    """The overrides of a run that goes on with some more."""
    changed = {line.partition("=")[0].lstrip("+~") for line in overrides}
    kept = [line for line in read_overrides(run) if line.partition("=")[0].lstrip("+~") not in changed]
    return [*kept, *overrides]


# Many runs


class Multirun(Callback):
    """Ends `python train.py -m …` with a table of its runs, best first. Hydra calls it.

    The order is that of the metric by which best.ckpt is chosen, at that checkpoint. A run that fails leaves its error
    in its folder, in error.txt, and does not keep the others from running; the exit status is then 1.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before Hydra writes: it would turn an exception of a callback into a warning."""
        folder = Path(config.hydra.sweep.dir).resolve()
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        there = (folder / "multirun.yaml").read_bytes() if (folder / "multirun.yaml").exists() else None
        _during_multirun.callback(_remove_empty, missing)
        atexit.register(_during_multirun.close)  # where Hydra refuses an override before the first job
        try:
            refuse_links(folder)
            _during_multirun.enter_context(locked(folder))
            _during_multirun.callback(_take_back, folder, there)
        except Mistake as mistake:
            sys.exit(printable(str(mistake)))
        shutil.rmtree(folder / JOBS, ignore_errors=True)
        (folder / JOBS).mkdir(parents=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        error = job_return._return_value if job_return.status == JobStatus.FAILED else None
        message = explanation(error) if error else None
        if config.hydra.mode != RunMode.MULTIRUN:
            if message and not IS_FULL:
                sys.exit(printable(message))  # Hydra would print a line of its own before it
            return
        run, folder = Path(config.hydra.runtime.output_dir), Path(config.hydra.sweep.dir).resolve()
        short = None
        if error:
            short = message or f"{type(error).__name__}: {error}"
            if isinstance(error, InUse):  # the folder and its log are another run's
                print(printable(short), file=sys.stderr)
            else:
                log.error(short, exc_info=None if message else error)
                write_text(run / "error.txt", short + "\n")
            # Hydra would raise it after the last run, instead of calling on_multirun_end.
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        # In a file, for a launcher may run jobs in other processes.
        job = {"run": os.path.relpath(run, folder), "overrides": list(config.hydra.overrides.task), "error": short}
        write_json(folder / JOBS / f"{config.hydra.job.num}.json", job)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        jobs = [_read_json(path) for path in (folder / JOBS).glob("*.json")]
        jobs.sort(key=lambda job: _natural(job["run"]))
        _during_multirun.close()
        for job in jobs:
            job["results"] = (None if job["error"] else _read_json(folder / job["run"] / "results.json")) or {}
        _print_table(jobs)
        print(f"run folders  {folder}")
        if failed := sum(bool(job["error"]) for job in jobs):
            sys.exit(f"{failed} of {len(jobs)} runs failed.")


# Where the jobs of a multirun leave how they ended, until it ends.
JOBS = ".jobs"
# Not in the callback, which Hydra sends to the processes of a launcher.
_during_multirun = contextlib.ExitStack()


def _take_back(folder: Path, there: bytes | None) -> None:
    """Removes what only a multirun under way needs; where no job has ended, also what Hydra wrote before the first.

    Args:
        folder: of the multirun.
        there: what multirun.yaml was before; None if it was not there.
    """
    has_run = any((folder / JOBS).glob("*"))
    shutil.rmtree(folder / JOBS, ignore_errors=True)
    if has_run:
        return
    if there is None:
        (folder / "multirun.yaml").unlink(missing_ok=True)
    else:
        (folder / "multirun.yaml").write_bytes(there)


def _remove_empty(folders: list[Path]) -> None:
    """Removes folders, the deepest first, up to one that has more in it than a lock."""
    with contextlib.suppress(OSError):  # also where another process has just begun to train in one
        for folder in folders:
            if {path.name for path in folder.iterdir()} == {".lock"}:
                (folder / ".lock").unlink()
            folder.rmdir()


def _natural(name: str) -> list[tuple[int, str]]:
    """By which job 2 comes before job 10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _print_table(jobs: list[dict[str, Any]]) -> None:
    """Prints runs with the metric that they were chosen by and the test metrics, best first.

    Args:
        jobs: each with ``run``, ``overrides``, ``error`` (None if it has none) and ``results``, those of results.json.
    """
    import rich
    import rich.box
    import rich.markup
    import rich.table

    def metrics(job: dict[str, Any]) -> dict[str, float]:
        best = job["results"].get("monitored")
        values = {name: value for name, value in job["results"].get("metrics", {}).items() if name.startswith("test/")}
        values |= {best["metric"]: best["value"]} if best else {}
        return {name: math.nan if value is None else value for name, value in values.items()}  # JSON has no NaN

    best = [job["results"].get("monitored") or {} for job in jobs]
    monitors = list(dict.fromkeys(found["metric"] for found in best if found))
    names = [*monitors, *sorted({name for job in jobs for name in metrics(job)} - {*monitors})]

    def rank(job: dict[str, Any]) -> tuple[Any, ...]:
        found = job["results"].get("monitored")
        if found is None:
            return bool(job["error"]), True, any(map(math.isnan, metrics(job).values()))
        value = math.nan if found["value"] is None else found["value"]
        sign = 1 if found["mode"] == "min" else -1
        return bool(job["error"]), False, monitors.index(found["metric"]), math.isnan(value), sign * value

    shared = set.intersection(*(set(job["overrides"]) for job in jobs)) if jobs else set()
    has_errors = any(job["error"] for job in jobs)
    table = rich.table.Table("run", "overrides", *map(printable, names), box=rich.box.SIMPLE)
    if has_errors:
        table.add_column("failed")
    for job in sorted(jobs, key=rank):
        differing = [override for override in job["overrides"] if override not in shared]
        values = [f"{value:.4f}" if (value := metrics(job).get(name)) is not None else "" for name in names]
        cells = [job["run"], " ".join(differing), *values, *([job["error"] or ""] if has_errors else [])]
        # Rich would take the brackets of `logger=[csv]` for a style.
        table.add_row(*(rich.markup.escape(printable(cell)) for cell in cells))
    rich.print(table)
