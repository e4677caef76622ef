"""State that makes a resumed run bit-identical to an uninterrupted one."""

import io
import logging
import math
import random
import shlex
import signal
import threading
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch.optim.lr_scheduler import CosineAnnealingLR

from ..checkpoints import WITHIN_EPOCH
from ..files import display_path, write_bytes
from ..optimization import is_validated
from ..run_lookup import has_checkpoint
from ..saved_config import multirun_command, read_saved
from .last_checkpoint import LastCheckpoint

log = logging.getLogger(__name__)

# The arguments of Trainer that decide when a run ends; callbacks may end it, too.
LIMITS = ("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time")


class Resumable(Callback):
    """Makes a run that resumes from ``last.ckpt`` bit-identical to an uninterrupted one.

    The checkpoint holds weights, optimizer, and scheduler, and the samplers derive their order from seed and epoch.
    This callback adds the random numbers, the metrics, the curves, and the best checkpoint of a moved folder. It also
    records whether early stopping or ``max_time`` ended the training, which Lightning does not
    (https://github.com/Lightning-AI/pytorch-lightning/issues/8278). If a run stops, it logs the command that resumes
    it. within_epoch.py adds the state of checkpoints within an epoch.

    Args:
        seed: The seed of the run, 0 to 2**32 - 1.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.restored_metrics: dict[str, float] = {}
        self.scheduler_states: list[dict[str, Any]] = []
        self.has_longer_schedule = False
        self.has_started = False
        self.has_ended = False
        self.restored_step = 0
        self.is_within_epoch = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.sigterm_handler = signal.getsignal(signal.SIGTERM)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_sigterm_handler()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_sigterm_handler()

    def _restore_sigterm_handler(self) -> None:
        # Lightning replaces the script's handler with one that waits until all ranks have entered it, but they may be
        # waiting for something else.
        if self.sigterm_handler and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.sigterm_handler)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for config in trainer.lr_scheduler_configs:
            # A plateau scheduler steps after each validation, see ``optimizer_and_scheduler``. In other epochs there is
            # no metric or only the previous one.
            if config.reduce_on_plateau and config.interval == "step" and math.isfinite(trainer.num_training_batches):
                config.frequency = int(trainer.num_training_batches) + (0 if is_validated(trainer) else 1)
        # Dropout and augmentation of an epoch depend on seed, epoch, and rank, not on earlier draws.
        sequence = numpy.random.SeedSequence([self.seed, trainer.current_epoch, trainer.global_rank])
        seed = int(sequence.generate_state(1)[0])
        random.seed(seed)
        numpy.random.seed(seed)
        if pl_module.device.type == "cpu":
            # torch.manual_seed records the stack for each kind of GPU in case one is used later. That takes longer than
            # an epoch of linear regression.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["callbacks"][self.state_key] = _metrics(trainer)
        if trainer.should_stop:
            checkpoint["ended_by"] = _read_end_rules(trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.restored_metrics = state_dict

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the state; in a moved run folder, take the best checkpoint from the folder of this one."""
        if trainer.state.fn != TrainerFn.FITTING and "current_model_state" in checkpoint:
            # Test the weights of the checkpoint, which are the average. WeightAveraging would replace them by the
            # weights that training continues with.
            checkpoint["current_model_state"] = checkpoint["state_dict"]
        self.scheduler_states = checkpoint["lr_schedulers"]
        self.restored_step = checkpoint["global_step"]
        self.is_within_epoch = WITHIN_EPOCH in checkpoint
        # A run whose rules have changed may continue training.
        self.has_ended = "ended_by" in checkpoint and checkpoint["ended_by"] == _read_end_rules(trainer)
        if self.has_ended and "ended_with" in checkpoint:
            checkpoint["callbacks"][self.state_key] = checkpoint["ended_with"]
        for callback in trainer.early_stopping_callbacks:
            if state := checkpoint["callbacks"].get(callback.state_key):
                state["patience"] = callback.patience  # The config may have changed.
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key, {})
            folder, old_folder = getattr(callback, "dirpath", None), state.get("dirpath")
            if folder and old_folder and Path(trainer.ckpt_path or "").resolve().parent == Path(folder):
                state["dirpath"] = folder
                for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                    state[key] = _relocate(state[key], old_folder, folder)
                scores = state["best_k_models"].items()
                state["best_k_models"] = {_relocate(path, old_folder, folder): score for path, score in scores}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Skip training if the run has ended, and extend the schedule if it now has more epochs."""
        trainer.should_stop = trainer.should_stop or self.has_ended
        self.max_steps = trainer.max_steps
        if 0 < self.restored_step < self.max_steps:
            # Until training starts, because with max_steps Lightning treats a finished epoch as unfinished.
            trainer.fit_loop.epoch_loop.max_steps = -1
        for config, state in zip(trainer.lr_scheduler_configs, self.scheduler_states, strict=False):
            for key in ("T_max", "total_steps", "_schedule_phases"):
                if key in state and state[key] != getattr(config.scheduler, key):
                    state[key] = getattr(config.scheduler, key)
                    self.has_longer_schedule = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.has_started = True
        trainer.fit_loop.epoch_loop.max_steps = self.max_steps
        self._restore_sigterm_handler()
        self._restore_metrics(trainer)  # Other code may read a metric before it is logged again.
        if self.is_within_epoch:
            if not any(isinstance(callback, LastCheckpoint) for callback in trainer.callbacks):
                raise MisconfigurationException(
                    "The checkpoint is from within an epoch, but callbacks.last_checkpoint is disabled and resuming "
                    "needs it. Keep it enabled until the epoch has ended."
                )
            log.info(f"resuming within epoch {trainer.current_epoch + 1}, after step {trainer.global_step}")
            self.on_train_epoch_start(trainer, pl_module)  # Lightning skips this hook within an epoch.
        elif trainer.global_step > 0:
            log.info(f"resuming after epoch {trainer.current_epoch}, step {trainer.global_step}")
        # TensorBoard must discard the events after the checkpoint; the resumed run logs them again.
        restart = Event(session_log=SessionLog(status=SessionLog.START))
        for logger in trainer.loggers if trainer.is_global_zero else []:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.file_writer.add_event(restart, trainer.global_step)
        for config in trainer.lr_scheduler_configs if self.has_longer_schedule else []:
            # Cosine annealing computes each rate from the previous one, so it would stay at the old schedule's final 0.
            if isinstance(cosine := config.scheduler, CosineAnnealingLR):
                progress = (1 + math.cos(math.pi * cosine.last_epoch / cosine.T_max)) / 2
                for group, base in zip(cosine.optimizer.param_groups, cosine.base_lrs, strict=True):
                    group["lr"] = cosine.eta_min + (base - cosine.eta_min) * progress

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record in the checkpoint of the previous epoch that the run ended within an epoch."""
        path = Path(trainer.default_root_dir, "checkpoints/last.ckpt")
        if trainer.should_stop and not trainer.is_last_batch and trainer.is_global_zero and path.exists():
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            end = {"ended_by": _read_end_rules(trainer), "ended_with": _metrics(trainer)}
            trainer.strategy.checkpoint_io.save_checkpoint(checkpoint | end, path)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_metrics(trainer)  # The run may have been killed after its last epoch.
        # A checkpoint counts its own epoch as incomplete. Lightning only corrects that with max_epochs.
        progress = trainer.fit_loop.epoch_progress.current
        progress.completed = progress.processed

    def _restore_metrics(self, trainer: Trainer) -> None:
        for name, value in self.restored_metrics.items():
            trainer.callback_metrics.setdefault(name, torch.tensor(value))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Resuming does not fix a mistake in the config.
        is_mistake = isinstance(exception, MisconfigurationException)
        is_stopped = isinstance(exception, KeyboardInterrupt | SystemExit)
        if (self.has_started and not is_mistake) or is_stopped:
            command = multirun_command() if is_stopped else None  # After a failure, a multirun continues.
            command = command or f"python resume.py {shlex.join(_resume_arguments(Path(trainer.default_root_dir)))}"
            log.info(f"stopped; resume with   {command}")


def _resume_arguments(run: Path) -> list[str]:
    """Return the run and, before its first checkpoint, its initial weights, which the user must pass again."""
    weights = None if has_checkpoint(run) else read_saved(run).get("weights")
    return [str(display_path(run)), *([f"weights={weights}"] if weights else [])]


def _metrics(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _read_end_rules(trainer: Trainer) -> dict[str, Any] | None:
    """Return the settings that decide when the run ends; None if it has no config."""
    path = Path(trainer.default_root_dir, ".hydra/config.yaml")
    if not path.exists():
        return None
    config: Any = OmegaConf.to_container(OmegaConf.load(path))
    limits = {name: config["trainer"].get(name) for name in LIMITS}
    return {"callbacks": config["callbacks"], "trainer": limits}


def _relocate(path: str, old_folder: str, folder: str) -> str:
    # PureWindowsPath accepts both slashes, so this reads paths from any system.
    inside = path and PureWindowsPath(path).is_relative_to(old_folder)
    return str(Path(folder, PureWindowsPath(path).relative_to(old_folder).as_posix())) if inside else path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint next to the previous one and then replaces it atomically.

    Lightning writes to the system's folder for temporary files. If that is on another disk, the last step is a copy,
    and a process killed during the copy leaves a truncated file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``.

        Raises:
            OSError: If the write fails, for example because the disk is full; ``path`` is unchanged.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            write_bytes(path, content.getbuffer())
        except OSError as error:
            raise OSError(
                f"{path} could not be written: {error.strerror}. The previous checkpoint is intact."
            ) from error
