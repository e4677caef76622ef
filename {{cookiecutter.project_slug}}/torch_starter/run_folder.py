"""Creates, locks and cleans up run folders.

outputs/EXPERIMENT/DATE_TIME/
├── .hydra/                  overrides and composed config, completed with values that depend on the data
├── checkpoints/best.ckpt    best checkpoint by the monitored validation metric
├── checkpoints/last.ckpt    latest checkpoint, after an epoch or within one: callbacks.last_checkpoint.every
├── events.out.tfevents.*    TensorBoard
├── figures/*.png            figures of the run, the same as in TensorBoard
├── hparams.yaml             hyperparameters for TensorBoard's HPARAMS tab
├── tracking.json            with logger=wandb or logger=mlflow: id of the tracked run
├── wandb/                   with logger=wandb: uploaded files, or files for `wandb sync`
├── results.json             final metrics by name, best checkpoint, epochs, wall time; written when the run finishes
├── environment.json         for each start: command, git commit, versions, device
├── split.csv                for an image folder: split of each image
├── error.txt                error of a failed multirun job or sweep trial
├── train.log
└── .lock                    lock of the training process; .lock.json identifies it
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
    """Raised if a run folder contains another run or is in use by another process. The folder is unchanged."""


def is_finished(config: DictConfig) -> bool:
    """Return whether the run that ``config`` would resume has finished with the same overrides, and log it if so."""
    run = Path(config.run_dir)
    results = read_json(run / "results.json") if config.ckpt_path == "last" else None
    if not results or results["overrides"] != read_overrides(run):
        return False
    log.info(f"{display_path(run)} is finished. Extend it: python resume.py {display_path(run)} trainer.max_epochs=…")
    return True


@contextlib.contextmanager
def open_run_folder(config: DictConfig, changes: Sequence[str] = (), is_kept: bool = False) -> Iterator[None]:
    """Lock a run folder for this process and write the config of the run to it.

    A refused command changes nothing. Hydra itself writes nothing to the folder (``hydra.output_subdir`` is null, and
    its log file is opened with the first record); this function writes, once it knows that the folder may be used. It
    restores a changed config if no epoch was trained with it, and removes new files if training never began.

    Args:
        config: Config of the run.
        changes: Overrides passed to resume.py.
        is_kept: Whether to keep a new run even if training never began. Multirun jobs are always kept, because they
            store their error in their folder.

    Raises:
        InUse: If the folder contains another run, or another process trains in it.
        UserError: If a link points outside the folder, or the config contradicts the checkpoint that the run starts
            from.
    """
    run = Path(config.run_dir).resolve()
    # Store a number: run folders may be passed on, and resolvers in them are refused.
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
                record_in_journal(run)  # a new run is found without it
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
                    if logged:  # otherwise it would be the latest run
                        os.utime(run / "train.log", ns=(logged, logged))
    finally:
        if run != Path.cwd():
            remove_empty([run])


def _times(run: Path, *names: str) -> list[int | None]:
    """Return the modification times of files in a run; None for a missing file."""
    return [(run / name).stat().st_mtime_ns if (run / name).exists() else None for name in names]


def _write_config(run: Path, config: DictConfig, overrides: Sequence[str]) -> None:
    """Write the files that Hydra would write."""
    (run / ".hydra").mkdir(exist_ok=True)
    write_text(run / ".hydra/config.yaml", OmegaConf.to_yaml(config))
    write_text(run / ".hydra/overrides.yaml", yaml.safe_dump(list(overrides)))
    if HydraConfig.initialized():
        write_text(run / ".hydra/hydra.yaml", OmegaConf.to_yaml(HydraConfig.instance().cfg))
    (run / "train.log").touch()


def _remove(paths: Iterable[Path]) -> None:
    handlers = [handler for handler in logging.root.handlers if isinstance(handler, logging.FileHandler)]
    for handler in handlers:
        handler.close()  # Windows cannot remove open files
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for handler in handlers:
        if not Path(handler.baseFilename).exists():  # the next record would reopen it in a missing folder
            logging.root.removeHandler(handler)


def remove_empty(folders: list[Path]) -> None:
    """Remove folders, deepest first, up to the first that contains more than a lock."""
    with contextlib.suppress(OSError):  # another process may have just started to train in one
        for folder in folders:
            if {path.name for path in folder.iterdir()} == {".lock"}:
                (folder / ".lock").unlink()
            folder.rmdir()


def _refuse_another(config: DictConfig, overrides: Sequence[str], run: Path, saved: dict[str, Any]) -> None:
    """Check that a run neither overwrites nor resumes another run.

    Raises:
        InUse: If the folder contains a run that ``config`` does not resume or contradicts.
    """
    is_trial = bool((saved.get("trainer") or {}).get("fast_dev_run"))
    if not has_checkpoint(run) and (is_trial or not (run / "results.json").exists()):
        return
    if config.ckpt_path != "last":
        key = "sweep" if is_job_of_multirun() else "run"
        raise InUse(
            f"{display_path(run)} already contains a run, which was not changed. "
            f"Choose another hydra.{key}.dir, or resume that run with ckpt_path=last."
        )
    if is_job_of_multirun():
        _refuse_another_job(overrides, run)
    try:
        refuse_without_effect(saved, config, overrides, display_path(run), "Start a new run for it.")
    except UserError as error:
        raise InUse(str(error)) from None


def _refuse_another_job(overrides: Sequence[str], run: Path) -> None:
    """Check that a job of a changed multirun does not resume the checkpoint of another job with the same number.

    Raises:
        InUse: If a swept key has another value in the folder.
    """
    now, before = ({line.partition("=")[0]: line for line in lines} for lines in (overrides, read_overrides(run)))
    others = [key for key in now if key in swept_keys() and before.get(key) != now[key]]
    if others:
        there = " ".join(before.get(key, f"no {key}") for key in others)
        raise InUse(
            f"{display_path(run)} has {there}, not {' '.join(now[key] for key in others)}; it was not changed. "
            "In the same folder, only the first key of a grid can get more values, at its end. "
            "Otherwise choose another hydra.sweep.dir."
        )


@functools.cache
def get_lock(folder: Path) -> "BaseFileLock":
    """Return the lock of a run folder, given as an absolute path; it is cached per process, and reentrant."""
    from filelock import FileLock

    return FileLock(folder / ".lock")


@contextlib.contextmanager
def hold_lock(run_dir: str | Path) -> Iterator[None]:
    """Prevent other processes from training in a run folder. The system releases the lock of a dead process.

    Raises:
        InUse: If another process trains in the folder; the message identifies it.
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
            get_lock(folder).acquire(timeout=15)  # until its data workers, which inherit the lock, exit
    except Timeout:
        by = _read_holder(holder)
        who = f"process {by['pid']} on {by['host']}, since {by['since']}" if by else "another process"
        raise InUse(f"{display_path(folder)} is being trained by {who}. Wait for it to finish, or stop it.") from None
    except (OSError, NotImplementedError) as error:
        is_held = False
        _warn_once(f"{folder} cannot be locked ({error}). Do not train in it with two processes at the same time.")
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
    """Return whether the process ran on this machine and has exited."""
    if holder is None or holder["host"] != platform.node():
        return False
    if sys.platform == "win32":  # where no signal only tests for a process
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
    """Configure logging as in ``train.py``: to the console and to train.log in the run folder."""
    config = project.compose([], return_hydra_config=True)
    config.hydra.runtime.output_dir = str(run)
    config.hydra.job.name = "train"
    configure_log(config.hydra.job_logging)
