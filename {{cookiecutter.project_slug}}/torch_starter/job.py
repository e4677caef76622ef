"""Start a run of `train.py` in this process, for sweeps and notebooks."""

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
    """Train a run like `python train.py OVERRIDES`, in the same kind of folder, and load it.

    Args:
        overrides: Overrides as on the command line: ``train_run("experiment=mnist", "trainer.max_epochs=1")``.

    Returns:
        The run with its best checkpoint, or the last one if there is no best, as ``load_run`` returns it.

    Raises:
        UserError: If `train.py` would end with a message, or the run has no checkpoint, as with
            ``trainer.fast_dev_run=true``.
        KeyboardInterrupt: If training is interrupted; `resume.py` resumes the run.
    """
    folder = None

    def task(config: DictConfig) -> None:
        nonlocal folder
        folder = config.run_dir
        with run_folder.open_run_folder(config):
            _load_train_function()(config)

    with _emulate_command("train.py", overrides):
        try:
            with job_context():
                run_job(task, overrides)
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning converts it to SystemExit
                raise error.__context__ from None
            raise
        except Exception as error:
            message = explanation(error)
            if message is None or isinstance(error, UserError):
                raise
            raise UserError(message) from error
    assert folder is not None
    if not has_checkpoint(Path(folder)):
        raise UserError(f"{display_path(folder)} was trained, but has no checkpoint to load.")
    is_best = (Path(folder) / "checkpoints/best.ckpt").exists()
    return load_run(folder, "best" if is_best else "last")


def job_context() -> Any:
    """Return a context manager that initializes Hydra, within which ``run_job`` can be called."""
    return hydra.initialize_config_dir(str(project.CONFIGS), job_name="train", **VERSION_BASE)


def run_job(task: Callable[[DictConfig], None], overrides: Sequence[str]) -> None:
    """Compose a config and call ``task`` with it in a Hydra job, with its own run folder and train.log.

    Args:
        task: The function to call with the composed config.
        overrides: Overrides as on the command line.

    Raises:
        Exception: Any exception of ``task``, or of Hydra if the config cannot be composed.
    """
    failure = None

    def run_and_catch(config: DictConfig) -> None:
        nonlocal failure
        try:
            task(config)
        except Exception as error:  # Hydra would print it
            failure = error

    job = GlobalHydra.instance().hydra
    assert job is not None
    job.run("train", run_and_catch, list(overrides))
    if failure:
        raise failure


def _load_train_function() -> Callable[[DictConfig], None]:
    """Return the function `train` of `train.py`, even if another module `train` is importable."""
    spec = importlib.util.spec_from_file_location("train", project.ROOT / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.train


@contextmanager
def _emulate_command(script: str, arguments: Sequence[str]) -> Iterator[None]:
    """Set ``sys.argv`` to this command; afterwards restore the command line, the log and the signal handlers."""
    argv, path, root, full_error = sys.argv, sys.path[:], logging.getLogger(), os.environ.get(FULL_ERROR)
    handlers, level, sigint_handler = root.handlers[:], root.level, signal.getsignal(signal.SIGINT)
    sys.argv = [str(display_path(project.ROOT / script)), *arguments]
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
        os.environ.pop(FULL_ERROR)
        if full_error is not None:
            os.environ[FULL_ERROR] = full_error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, sigint_handler)  # Lightning ignores SIGINT after an interrupted run
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
