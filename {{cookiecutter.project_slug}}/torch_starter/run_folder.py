"""A run folder: what a run leaves in it, and who may write to it.

outputs/EXPERIMENT/DATE_TIME/
├── .hydra/                  the composed config, completed by what only the data know, and the overrides
├── checkpoints/best.ckpt    best by the monitored validation metric
├── checkpoints/last.ckpt    after the last epoch that ended, or within one: callbacks.last_checkpoint.every
├── events.out.tfevents.*    TensorBoard
├── figures/*.png            the pictures of the run, the same that TensorBoard shows
├── hparams.yaml             what TensorBoard's HPARAMS shows
├── tracking.json            with logger=wandb or logger=mlflow: the id of its run there
├── wandb/                   with logger=wandb: what is sent, or waits for `wandb sync`
├── results.json             final metrics by name, best checkpoint, epochs, wall time; there once the run is finished
├── environment.json         for each start: command, git commit, versions, device
├── split.csv                of a folder of pictures: which is in which split
├── error.txt                of a run of a multirun or a sweep that failed: why
├── train.log
└── .lock                    held by the process that trains; .lock.json says which one it is
"""

import contextlib
import functools
import logging
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf

from . import processes, project
from .files import display_path, read_json, write_json, write_text
from .mistakes import UserError
from .run_lookup import has_checkpoint, record_in_journal
from .saved_config import (
    is_job_of_multirun,
    merge_overrides,
    read_overrides,
    read_saved,
    refuse_without_effect,
    save_found_values,
    swept_keys,
    typed_overrides,
)
from .trust import refuse_links

if TYPE_CHECKING:
    from filelock import BaseFileLock

log = logging.getLogger(__name__)


class InUse(UserError):
    """A run folder holds another run, or is being trained by another process: nothing in it was changed."""


def is_finished(config: DictConfig) -> bool:
    """Whether the run that ``config`` would go on with has ended, and was started with the same overrides; says so."""
    run = Path(config.run_dir)
    results = read_json(run / "results.json") if config.ckpt_path == "last" else None
    if not results or results["overrides"] != read_overrides(run):
        return False
    log.info(f"{display_path(run)} is finished. resume.py trainer.max_epochs=… lengthens it.")
    return True


@contextlib.contextmanager
def open_run_folder(config: DictConfig, changes: Sequence[str] = (), is_kept: bool = False) -> Iterator[None]:
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
    is_kept |= is_job_of_multirun()
    run.mkdir(parents=True, exist_ok=True)
    refuse_links(run)
    found = {*run.iterdir(), run / ".lock", run / ".lock.json"}
    logged = _times(run, "train.log")[0]
    try:
        with hold_lock(run):
            overrides = typed_overrides() or merge_overrides(run, changes)
            saved = read_saved(run)
            if config.ckpt_path == "last":
                save_found_values(config, saved)
            _refuse_another(config, overrides, run, saved)
            before = {path: path.read_text(encoding="utf-8") for path in (run / ".hydra").glob("*.yaml")}
            if before:
                record_in_journal(run)  # a new one is found without
            started, trained = _times(run, "environment.json"), _times(run, "checkpoints/last.ckpt", "results.json")
            if HydraConfig.initialized() or changes:
                _write_config(run, config, overrides)
            try:
                yield
            finally:
                if _times(run, "checkpoints/last.ckpt", "results.json") == trained:
                    for path, text in before.items():
                        write_text(path, text)
                if _times(run, "environment.json") != started:
                    record_in_journal(run)
                elif before or not is_kept:
                    _remove(set(run.iterdir()) - found)
                    if logged:  # by which it would be the latest run
                        os.utime(run / "train.log", ns=(logged, logged))
    finally:
        if run != Path.cwd():
            remove_empty([run])


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
    handlers = [handler for handler in logging.root.handlers if isinstance(handler, logging.FileHandler)]
    for handler in handlers:
        handler.close()  # Windows removes no open file
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for handler in handlers:
        if not Path(handler.baseFilename).exists():  # the next line would open it again, in a folder that is gone
            logging.root.removeHandler(handler)


def remove_empty(folders: list[Path]) -> None:
    """Removes folders, the deepest first, up to one that has more in it than a lock."""
    with contextlib.suppress(OSError):  # also where another process has just begun to train in one
        for folder in folders:
            if {path.name for path in folder.iterdir()} == {".lock"}:
                (folder / ".lock").unlink()
            folder.rmdir()


def _refuse_another(config: DictConfig, overrides: Sequence[str], run: Path, saved: dict[str, Any]) -> None:
    """Makes sure that a run does not overwrite another one, and goes on with none but itself.

    Raises:
        InUse: if the folder holds a run, and ``config`` does not go on with it or contradicts it.
    """
    is_trial = bool((saved.get("trainer") or {}).get("fast_dev_run"))
    if not has_checkpoint(run) and (is_trial or not (run / "results.json").exists()):
        return
    if config.ckpt_path != "last":
        key = "sweep" if is_job_of_multirun() else "run"
        raise InUse(
            f"{display_path(run)} holds a run, which was not changed. "
            f"Choose another hydra.{key}.dir, or go on with that run by ckpt_path=last."
        )
    if is_job_of_multirun():
        _refuse_another_job(overrides, run)
    try:
        refuse_without_effect(saved, config, overrides, display_path(run), "Start another run for it.")
    except UserError as error:
        raise InUse(str(error)) from None


def _refuse_another_job(overrides: Sequence[str], run: Path) -> None:
    """Makes sure that a job of a multirun with another grid does not take the checkpoint of the job of that number.

    Raises:
        InUse: if a key that has several values in the multirun has another one in the folder.
    """
    now, before = ({line.partition("=")[0]: line for line in lines} for lines in (overrides, read_overrides(run)))
    others = [key for key in now if key in swept_keys() and before.get(key) != now[key]]
    if others:
        there = " ".join(before.get(key, f"no {key}") for key in others)
        raise InUse(
            f"{display_path(run)} holds {there}, not {' '.join(now[key] for key in others)}; it was not changed. "
            "In the same folder a grid can grow at the end of its first key alone. Choose another hydra.sweep.dir."
        )


@functools.cache
def get_lock(folder: Path) -> "BaseFileLock":
    """The lock of a run folder, an absolute path; in a process always the same one, which it can take repeatedly."""
    from filelock import FileLock

    return FileLock(folder / ".lock")


@contextlib.contextmanager
def hold_lock(run_dir: str | Path) -> Iterator[None]:
    """Keeps other processes from training in a run folder. The system takes the lock from a process that dies.

    Raises:
        InUse: if another process trains in it; it says which one.
    """
    if not processes.is_rank_zero():
        yield
        return
    from filelock import Timeout

    folder = Path(run_dir).resolve()
    holder, is_held = folder / ".lock.json", True
    folder.mkdir(parents=True, exist_ok=True)
    try:
        try:
            get_lock(folder).acquire(timeout=0)
        except Timeout:
            if not _is_dead(_read_holder(holder)):
                raise
            get_lock(folder).acquire(timeout=15)  # until the workers notice that load data for it, and inherit the lock
    except Timeout:
        by = _read_holder(holder)
        who = f"process {by['pid']} on {by['host']}, since {by['since']}" if by else "another process"
        raise InUse(f"{display_path(folder)} is being trained by {who}. Wait for it, or stop it first.") from None
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
            get_lock(folder).release()


def _read_holder(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        return read_json(path)
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


def configure_logging(run: Path) -> None:
    """Sends the log where ``train.py`` sends it: to the console, and to the train.log of the run."""
    config = project.compose([], return_hydra_config=True)
    config.hydra.runtime.output_dir = str(run)
    config.hydra.job.name = "train"
    configure_log(config.hydra.job_logging)
