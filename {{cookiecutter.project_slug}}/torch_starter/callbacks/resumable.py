"""What makes a run that was interrupted and resumed the same as one that never was."""

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

# The arguments of Trainer that decide when a run ends, beside its callbacks.
LIMITS = ("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time")


class Resumable(Callback):
    """Lets a run that goes on from ``last.ckpt`` end with the bits of an uninterrupted one.

    Weights, optimizer and scheduler are in the checkpoint, and the samplers take their order from seed and
    epoch. This adds the random numbers, the metrics, the curves, the best checkpoint of a folder that was
    moved, and whether early stopping or ``max_time`` has ended the training, which Lightning forgets
    (https://github.com/Lightning-AI/pytorch-lightning/issues/8278); and it says, when something stops the run, how to
    go on. What a checkpoint from within an epoch needs besides is in within_epoch.py.

    Args:
        seed: of the run, 0 to 2**32 - 1.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.restored_metrics: dict[str, float] = {}
        self.scheduler_states: list[dict[str, Any]] = []
        self.is_lengthened = False
        self.has_started = False
        self.has_ended = False
        self.restored_step = 0
        self.is_within_epoch = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.at_sigterm = signal.getsignal(signal.SIGTERM)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_at_once()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_at_once()

    def _stop_at_once(self) -> None:
        # Lightning has put a handler before that of the script, which waits until all processes of the run are in it;
        # but they may wait for something else.
        if self.at_sigterm and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.at_sigterm)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for config in trainer.lr_scheduler_configs:
            # What waits for a better metric takes a step after each validation, see ``optimizer_and_scheduler``. In
            # other epochs there is no metric, or the former one once more.
            if config.reduce_on_plateau and config.interval == "step" and math.isfinite(trainer.num_training_batches):
                config.frequency = int(trainer.num_training_batches) + (0 if is_validated(trainer) else 1)
        # Dropout and augmentation of an epoch depend on seed, epoch and process, not on what was drawn before.
        sequence = numpy.random.SeedSequence([self.seed, trainer.current_epoch, trainer.global_rank])
        seed = int(sequence.generate_state(1)[0])
        random.seed(seed)
        numpy.random.seed(seed)
        if pl_module.device.type == "cpu":
            # torch.manual_seed notes down the stack for each kind of GPU, in case one is used later: that takes longer
            # than an epoch of a linear regression.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["callbacks"][self.state_key] = _metrics(trainer)
        if trainer.should_stop:
            checkpoint["ended_by"] = _rules(trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.restored_metrics = state_dict

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The run folder may have been moved since: the best checkpoint is the one that lies beside this one."""
        if trainer.state.fn != TrainerFn.FITTING and "current_model_state" in checkpoint:
            # The weights of a checkpoint are tested as they are. WeightAveraging would replace the mean, which is what
            # they are, by what it goes on training from.
            checkpoint["current_model_state"] = checkpoint["state_dict"]
        self.scheduler_states = checkpoint["lr_schedulers"]
        self.restored_step = checkpoint["global_step"]
        self.is_within_epoch = WITHIN_EPOCH in checkpoint
        # A run whose rules have changed since may train on.
        self.has_ended = "ended_by" in checkpoint and checkpoint["ended_by"] == _rules(trainer)
        if self.has_ended and "ended_with" in checkpoint:
            checkpoint["callbacks"][self.state_key] = checkpoint["ended_with"]
        for callback in trainer.early_stopping_callbacks:
            if state := checkpoint["callbacks"].get(callback.state_key):
                state["patience"] = callback.patience  # that of the config, which may have changed
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key, {})
            folder, former = getattr(callback, "dirpath", None), state.get("dirpath")
            if folder and former and Path(trainer.ckpt_path or "").resolve().parent == Path(folder):
                state["dirpath"] = folder
                for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                    state[key] = _moved(state[key], former, folder)
                scores = state["best_k_models"].items()
                state["best_k_models"] = {_moved(path, former, folder): score for path, score in scores}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that had ended trains no more; one with more epochs has a longer schedule than its checkpoint."""
        trainer.should_stop = trainer.should_stop or self.has_ended
        self.max_steps = trainer.max_steps
        if 0 < self.restored_step < self.max_steps:
            # Until training starts: with max_steps, Lightning takes a finished epoch for one to be finished.
            trainer.fit_loop.epoch_loop.max_steps = -1
        for config, state in zip(trainer.lr_scheduler_configs, self.scheduler_states, strict=False):
            for key in ("T_max", "total_steps", "_schedule_phases"):
                if key in state and state[key] != getattr(config.scheduler, key):
                    state[key] = getattr(config.scheduler, key)
                    self.is_lengthened = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.has_started = True
        trainer.fit_loop.epoch_loop.max_steps = self.max_steps
        self._stop_at_once()
        self._restore_metrics(trainer)  # for what reads one before it is measured again
        if self.is_within_epoch:
            if not any(isinstance(callback, LastCheckpoint) for callback in trainer.callbacks):
                raise MisconfigurationException(
                    "The checkpoint is from within an epoch, and callbacks.last_checkpoint is left out, which goes on "
                    "there. Keep it until the epoch has ended."
                )
            log.info(f"goes on within epoch {trainer.current_epoch + 1}, after step {trainer.global_step}")
            self.on_train_epoch_start(trainer, pl_module)  # which does not come within an epoch
        elif trainer.global_step > 0:
            log.info(f"goes on after epoch {trainer.current_epoch}, step {trainer.global_step}")
        # TensorBoard shall forget what an interrupted run logged after its checkpoint: it comes once more.
        restart = Event(session_log=SessionLog(status=SessionLog.START))
        for logger in trainer.loggers if trainer.is_global_zero else []:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.file_writer.add_event(restart, trainer.global_step)
        for config in trainer.lr_scheduler_configs if self.is_lengthened else []:
            # Cosine computes a rate from the one before, and would not leave the 0 at the end of the former schedule.
            if isinstance(cosine := config.scheduler, CosineAnnealingLR):
                progress = (1 + math.cos(math.pi * cosine.last_epoch / cosine.T_max)) / 2
                for group, base in zip(cosine.optimizer.param_groups, cosine.base_lrs, strict=True):
                    group["lr"] = cosine.eta_min + (base - cosine.eta_min) * progress

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that is ended within an epoch has the checkpoint of the epoch before, which is to say so."""
        path = Path(trainer.default_root_dir, "checkpoints/last.ckpt")
        if trainer.should_stop and not trainer.is_last_batch and trainer.is_global_zero and path.exists():
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            end = {"ended_by": _rules(trainer), "ended_with": _metrics(trainer)}
            trainer.strategy.checkpoint_io.save_checkpoint(checkpoint | end, path)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_metrics(trainer)  # if the run was killed after its last epoch
        # A checkpoint counts its own epoch as not completed. Lightning makes up for it under max_epochs alone.
        progress = trainer.fit_loop.epoch_progress.current
        progress.completed = progress.processed

    def _restore_metrics(self, trainer: Trainer) -> None:
        for name, value in self.restored_metrics.items():
            trainer.callback_metrics.setdefault(name, torch.tensor(value))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # What the config has wrong stays wrong.
        is_mistake = isinstance(exception, MisconfigurationException)
        is_stopped = isinstance(exception, KeyboardInterrupt | SystemExit)
        if (self.has_started and not is_mistake) or is_stopped:
            command = multirun_command() if is_stopped else None  # after a failure the other jobs go on
            command = command or f"python resume.py {shlex.join(_words_of_resume(Path(trainer.default_root_dir)))}"
            log.info(f"stopped; go on with   {command}")


def _words_of_resume(run: Path) -> list[str]:
    """A run and, before its first checkpoint, the weights that it starts from, which must be typed."""
    weights = None if has_checkpoint(run) else read_saved(run).get("weights")
    return [str(display_path(run)), *([f"weights={weights}"] if weights else [])]


def _metrics(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _rules(trainer: Trainer) -> dict[str, Any] | None:
    """What the config of the run says about its end; None if it has no config."""
    path = Path(trainer.default_root_dir, ".hydra/config.yaml")
    if not path.exists():
        return None
    config: Any = OmegaConf.to_container(OmegaConf.load(path))
    limits = {name: config["trainer"].get(name) for name in LIMITS}
    return {"callbacks": config["callbacks"], "trainer": limits}


def _moved(path: str, former: str, folder: str) -> str:
    # Windows' paths may have either slash, so that this reads what any system wrote.
    inside = path and PureWindowsPath(path).is_relative_to(former)
    return str(Path(folder, PureWindowsPath(path).relative_to(former).as_posix())) if inside else path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the former one and then puts it in its place.

    (Lightning writes to the system's folder for temporary files. Where that is another disk, the last step is
    a copy, and a process that is killed during it leaves half a file.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes ``checkpoint`` to ``path``.

        Raises:
            OSError: if it could not be written, for example because the disk is full; ``path`` is as it was.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            write_bytes(path, content.getbuffer())
        except OSError as error:
            raise OSError(f"{path} could not be written: {error.strerror}. The former one is whole.") from error
