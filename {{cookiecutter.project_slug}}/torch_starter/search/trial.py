"""Run the trials of a search: claim one, train it as `train.py` does, and report it to the study."""

import gc
import logging
import math
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from .. import run_folder
from ..compat import reopen_trial
from ..explanations import explanation
from ..files import write_text
from ..job import run_job
from ..mistakes import UserError, nearest
from ..run_lookup import has_checkpoint
from .report import assignments, best_value, line, table
from .space import as_text

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from lightning import Callback, LightningModule, Trainer
    from optuna import Study, Trial

log = logging.getLogger(__name__)

Train = Callable[..., None]


def search(
    train: Train,
    study: "Study",
    folder: Path,
    space: dict[str, Any],
    overrides: list[str],
    seed: int,
    total: int,
    metric: str,
) -> None:
    """Run trials in this process until the study has ``total``, and show their progress.

    Args:
        train: Trains a run, given its config and a callback.
        study: The study, see ``open_study``.
        folder: The folder of the study.
        space: The search space, see ``read_space``.
        overrides: The overrides that all trials have.
        seed: Seed of the sampler.
        total: Total number of trials in the study.
        metric: The metric that trials are compared by.
    """
    import rich
    from rich.live import Live

    console = rich.console.Console()
    # Only the table is on the screen, without the progress bars of runs.
    rich.reconfigure(force_terminal=False)
    live = Live(
        get_renderable=lambda: table(study, space, metric, rows=console.height - 6),
        console=console,
        refresh_per_second=1,
        transient=True,
    )
    try:
        with live if console.is_terminal else nullcontext():
            while claimed := claim(study, folder, space, seed, total):
                trial, lock, is_resumed = claimed
                try:
                    run(train, study, trial, folder / str(trial.number), overrides, metric, is_resumed)
                finally:
                    lock.release()
                if not console.is_terminal:
                    print(line(study, study.trials[trial.number], metric), flush=True)
    finally:
        rich.reconfigure()


def claim(
    study: "Study", folder: Path, space: dict[str, Any], seed: int, total: int
) -> "tuple[Trial, BaseFileLock, bool] | None":
    """Claim the next trial for this process: one whose process died, otherwise a new one.

    Returns:
        The trial with all its parameters, the lock that marks it as run by this process, and whether it was started
        before; None if the study has ``total`` trials.
    """
    import numpy
    from filelock import FileLock, Timeout
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    def acquire_lock(number: int) -> "BaseFileLock":
        (folder / str(number)).mkdir(exist_ok=True)
        lock = run_folder.get_lock((folder / str(number)).resolve())
        lock.acquire(timeout=0)
        return lock

    with FileLock(folder / ".lock"):
        trials = study.get_trials(deepcopy=False)
        found = None
        for frozen in trials:
            if frozen.state == TrialState.RUNNING:
                with suppress(Timeout):
                    lock = acquire_lock(frozen.number)
                    if study.trials[frozen.number].state == TrialState.RUNNING:
                        found = reopen_trial(study, frozen), lock, True
                        break
                    lock.release()  # its process has just finished
        if not found:
            if sum(frozen.state != TrialState.WAITING for frozen in trials) >= total:
                return None
            trial = study.ask()
            found = trial, acquire_lock(trial.number), False
        # A new sampler for each trial, so that neither an interruption nor earlier draws change what it proposes.
        state = numpy.random.SeedSequence([seed, found[0].number]).generate_state(1)
        study.sampler = TPESampler(seed=int(state[0]), constant_liar=True)
        suggest(found[0], space)
        return found


def suggest(trial: "Trial", space: dict[str, Any]) -> None:
    """Choose a value for each key, except those that have one from before the trial was interrupted."""
    for key, values in space.items():
        if isinstance(values, list):
            trial.suggest_categorical(key, [as_text(value) for value in values])
            continue
        low, high, step, is_log = values["low"], values["high"], values.get("step"), values.get("log", False)
        if all(isinstance(number, int) for number in (low, high, step or 1)):
            trial.suggest_int(key, low, high, step=step or 1, log=is_log)
        else:
            trial.suggest_float(key, low, high, step=step, log=is_log)


def run(
    train: Train,
    study: "Study",
    trial: "Trial",
    folder: Path,
    overrides: list[str],
    metric: str,
    is_resumed: bool,
) -> None:
    """Train a trial in ``folder`` as train.py would, and report its outcome to the study."""
    import torch
    from optuna import TrialPruned
    from optuna.trial import TrialState

    state = TrialState.COMPLETE

    def fail(error: Exception, in_log: bool) -> None:
        nonlocal state
        state, message = TrialState.FAIL, explanation(error)
        reason = message or f"{type(error).__name__}: {error}"
        write_text(folder / "error.txt", reason + "\n")
        trial.set_user_attr("reason", reason)
        if in_log:
            log.error(reason, exc_info=None if message else error)

    def task(config: DictConfig) -> None:
        nonlocal state
        # Log to train.log only, because the console shows the table.
        logging.root.handlers = [entry for entry in logging.root.handlers if isinstance(entry, logging.FileHandler)]
        logging.captureWarnings(True)
        if is_resumed and has_checkpoint(folder):
            config.ckpt_path = "last"
        try:
            with run_folder.open_run_folder(config, is_kept=True):
                train(config, watch(study, trial, metric))
            if not study.trials[trial.number].intermediate_values:
                raise UserError(f"{metric} was never logged, because no validation ran.")
        except TrialPruned as pruned:
            state = TrialState.PRUNED
            log.info(str(pruned))
        except Exception as error:
            fail(error, in_log=True)

    try:
        run_job(task, [*overrides, *assignments(trial.params), f"hydra.run.dir={folder}"])
    except Exception as error:  # the combination of choices cannot be composed
        fail(error, in_log=False)  # there is no train.log yet
    finally:
        logging.captureWarnings(False)
    value = best_value(study, study.trials[trial.number]) if state == TrialState.COMPLETE else None
    study.tell(trial, value, state)
    # The next trial may need all the memory, even after one that ran out of it.
    gc.collect()
    torch.cuda.empty_cache()


def watch(study: "Study", trial: "Trial", metric: str) -> "Callback":
    """Return a callback that reports the metric after each validation and prunes a run that is below the median."""
    import optuna
    from lightning.pytorch.callbacks import LambdaCallback

    reported = set(study.trials[trial.number].intermediate_values)  # before the trial was interrupted

    def tell(trainer: "Trainer", model: "LightningModule") -> None:
        if trainer.sanity_checking:
            return
        epoch = trainer.current_epoch + 1
        if metric not in trainer.callback_metrics:
            choices = nearest(metric, trainer.callback_metrics)
            raise UserError(f"callbacks.best_checkpoint.monitor is {metric}, but no such metric is logged.{choices}")
        value = float(trainer.callback_metrics[metric])
        if not math.isfinite(value):
            raise UserError(f"{metric} is {value} after epoch {epoch}.")
        if epoch not in reported:
            trial.report(value, epoch)
            reported.add(epoch)

    def prune(trainer: "Trainer", model: "LightningModule") -> None:
        # At the start of the next epoch, when the checkpoints of this one exist.
        if trainer.world_size == 1 and trial.should_prune():
            raise optuna.TrialPruned(f"pruned after epoch {trainer.current_epoch}: {metric} is worse than the median")

    return LambdaCallback(on_validation_end=tell, on_train_epoch_start=prune)
