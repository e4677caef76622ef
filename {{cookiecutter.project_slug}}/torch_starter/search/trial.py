"""The trials of a search, one after another: claimed, trained as `train.py` trains, and told to the study."""

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
    """Runs trials, in this process, until the study has ``total``, and shows how they do meanwhile.

    Args:
        train: what trains a run, given its config and a callback.
        study: see ``open_study``.
        folder: of the study.
        space: see ``read_space``.
        overrides: that all trials have.
        seed: of what is proposed.
        total: number of trials.
        metric: that they are compared by.
    """
    import rich
    from rich.live import Live

    console = rich.console.Console()
    # The table is the only thing on the screen: no bar of a run within it.
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
                trial, lock, goes_on = claimed
                try:
                    run(train, study, trial, folder / str(trial.number), overrides, metric, goes_on)
                finally:
                    lock.release()
                if not console.is_terminal:
                    print(line(study, study.trials[trial.number], metric), flush=True)
    finally:
        rich.reconfigure()


def claim(
    study: "Study", folder: Path, space: dict[str, Any], seed: int, total: int
) -> "tuple[Trial, BaseFileLock, bool] | None":
    """The next trial for this process: one whose process died, otherwise a new one, unless there are ``total``.

    Returns:
        The trial, with all its parameters; the lock that says that this process runs it; whether it was begun before.
    """
    import numpy
    from filelock import FileLock, Timeout
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    def lock_of(number: int) -> "BaseFileLock":
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
                    lock = lock_of(frozen.number)
                    if study.trials[frozen.number].state == TrialState.RUNNING:
                        found = reopen_trial(study, frozen), lock, True
                        break
                    lock.release()  # its process has just finished it
        if not found:
            if sum(frozen.state != TrialState.WAITING for frozen in trials) >= total:
                return None
            trial = study.ask()
            found = trial, lock_of(trial.number), False
        # Anew for each trial: then neither a stop nor what was drawn before changes what the sampler proposes.
        state = numpy.random.SeedSequence([seed, found[0].number]).generate_state(1)
        study.sampler = TPESampler(seed=int(state[0]), constant_liar=True)
        suggest(found[0], space)
        return found


def suggest(trial: "Trial", space: dict[str, Any]) -> None:
    """Chooses a value for each key, except those that have one from before the trial was stopped."""
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
    goes_on: bool,
) -> None:
    """Trains one trial into ``folder``, as train.py would, and tells the study how it ended."""
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
        # To train.log alone: the console has the table.
        logging.root.handlers = [entry for entry in logging.root.handlers if isinstance(entry, logging.FileHandler)]
        logging.captureWarnings(True)
        if goes_on and has_checkpoint(folder):
            config.ckpt_path = "last"
        try:
            with run_folder.open_run_folder(config, is_kept=True):
                train(config, watch(study, trial, metric))
            if not study.trials[trial.number].intermediate_values:
                raise UserError(f"{metric} was never measured: there was no validation.")
        except TrialPruned as pruned:
            state = TrialState.PRUNED
            log.info(str(pruned))
        except Exception as error:
            fail(error, in_log=True)

    try:
        run_job(task, [*overrides, *assignments(trial.params), f"hydra.run.dir={folder}"])
    except Exception as error:  # a combination of choices that cannot be composed
        fail(error, in_log=False)  # there is no train.log yet
    finally:
        logging.captureWarnings(False)
    value = best_value(study, study.trials[trial.number]) if state == TrialState.COMPLETE else None
    study.tell(trial, value, state)
    # The next one may need all the memory, also after one that ran out of it.
    gc.collect()
    torch.cuda.empty_cache()


def watch(study: "Study", trial: "Trial", metric: str) -> "Callback":
    """Tells the study the metric after each validation, and ends the run that is worse than half of those before."""
    import optuna
    from lightning.pytorch.callbacks import LambdaCallback

    reported = set(study.trials[trial.number].intermediate_values)  # of a trial that was stopped and goes on

    def tell(trainer: "Trainer", model: "LightningModule") -> None:
        if trainer.sanity_checking:
            return
        epoch = trainer.current_epoch + 1
        if metric not in trainer.callback_metrics:
            raise UserError(f"{metric} is not measured." + nearest(metric, trainer.callback_metrics))
        value = float(trainer.callback_metrics[metric])
        if not math.isfinite(value):
            raise UserError(f"{metric} is {value} after epoch {epoch}.")
        if epoch not in reported:
            trial.report(value, epoch)
            reported.add(epoch)

    def prune(trainer: "Trainer", model: "LightningModule") -> None:
        # At the start of the next epoch, when the checkpoints of this one are there.
        if trainer.world_size == 1 and trial.should_prune():
            raise optuna.TrialPruned(f"pruned after epoch {trainer.current_epoch}: {metric} is worse than the median")

    return LambdaCallback(on_validation_end=tell, on_train_epoch_start=prune)
