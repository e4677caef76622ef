"""A run of `train.py` in this process: for a search, and for a notebook."""

import importlib.util
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from . import project, run_folder
from .compat import VERSION_BASE
from .explanations import explanation
from .files import display_path
from .loaded_run import Run, load_run
from .mistakes import FULL_ERROR, UserError
from .run_lookup import has_checkpoint


def train_run(*overrides: str) -> Run:
    """Trains a run as `python train.py OVERRIDES` does, in the same kind of folder, and loads it.

    Args:
        overrides: as on the command line: ``train_run("experiment=mnist", "trainer.max_epochs=1")``.

    Returns:
        the run with its best checkpoint, as ``load_run`` returns it.

    Raises:
        Mistake: what `train.py` would say, if the user can mend it; or if the run has no checkpoint, as with
            ``trainer.fast_dev_run=true``.
        KeyboardInterrupt: if it is interrupted; `resume.py` goes on with the run.
    """
    folder = None

    def task(config: DictConfig) -> None:
        nonlocal folder
        folder = config.run_dir
        with run_folder.open_run_folder(config):
            _train_of_the_project()(config)

    with _as_command("train.py", overrides):
        try:
            with job_context():
                run_job(task, overrides)
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # which Lightning makes of it
                raise error.__context__ from None
            raise
        except Exception as error:
            message = explanation(error)
            if message is None or isinstance(error, UserError):
                raise
            raise UserError(message) from error
    assert folder is not None
    if not has_checkpoint(Path(folder)):
        raise UserError(f"{display_path(folder)} was trained, and has no checkpoint that could be loaded.")
    is_best = (Path(folder) / "checkpoints/best.ckpt").exists()
    return load_run(folder, "best" if is_best else "last")


def job_context() -> Any:
    """Within, ``run_job`` can be called."""
    return hydra.initialize_config_dir(str(project.CONFIGS), job_name="train", **VERSION_BASE)


def run_job(task: Callable[[DictConfig], None], overrides: Sequence[str]) -> None:
    """Composes a config and calls ``task`` with it, within a job of Hydra: a run folder and a train.log of its own.

    Raises:
        Exception: what ``task`` raises, or Hydra, if the config cannot be composed.
    """
    failure = None

    def caught(config: DictConfig) -> None:
        nonlocal failure
        try:
            task(config)
        except Exception as error:  # which Hydra would print in its own way
            failure = error

    job = GlobalHydra.instance().hydra
    assert job is not None
    job.run("train", caught, list(overrides))
    if failure:
        raise failure


def _train_of_the_project() -> Callable[[DictConfig], None]:
    """The function `train` of `train.py`, whatever else is called `train` where this is used."""
    spec = importlib.util.spec_from_file_location("train", project.ROOT / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.train


@contextmanager
def _as_command(script: str, arguments: Sequence[str]) -> Iterator[None]:
    """What reads the command line reads this one; afterwards it, the log and the signals are as they were."""
    argv, path, root, full = sys.argv, sys.path[:], logging.getLogger(), os.environ.get(FULL_ERROR)
    handlers, level, at_interrupt = root.handlers[:], root.level, signal.getsignal(signal.SIGINT)
    sys.argv = [str(display_path(project.ROOT / script)), *arguments]
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
        os.environ.pop(FULL_ERROR)
        if full is not None:
            os.environ[FULL_ERROR] = full
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, at_interrupt)  # Lightning ignores it, once a run was interrupted
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
