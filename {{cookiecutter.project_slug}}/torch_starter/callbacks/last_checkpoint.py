"""The checkpoint from which a run resumes."""

import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ..checkpoints import WITHIN_EPOCH
from . import within_epoch


class LastCheckpoint(ModelCheckpoint):
    """Writes ``last.ckpt`` at the end of epochs and optionally within them, so that a resumed run is bit-identical.

    An epoch that ``max_time``, ``max_steps``, or early stopping cuts short is not saved; a complete last epoch is.

    With ``every``, the run saves the current step after SIGTERM and then exits. It exits without saving during a
    validation, at a second signal, and right after a validation, because Lightning cannot resume there.

    Args:
        dirpath: The folder of the checkpoint.
        times: The number of saves at the end of an epoch, spread evenly over the run and including the last epoch. Runs
            of unknown length and runs with ``max_steps`` save after each epoch. None: after each epoch.
        every: The interval of saves within an epoch: a number of steps, at least 1, or a time ``"HH:MM:SS"`` or
            ``"DD:HH:MM:SS"``. A step that is followed by a validation is not saved. None: no saves within an epoch.

    Raises:
        MisconfigurationException: If ``every`` has none of these forms.
    """

    def __init__(self, dirpath: str, times: int | None, every: int | str | None = None) -> None:
        super().__init__(dirpath, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.times = times
        self.steps, self.seconds = _interval(every)
        self.state_of_step: dict[str, Any] | None = None  # set if the last step will be saved
        self.state_in_file: dict[str, Any] | None = None  # set during the save
        self.state_to_restore: dict[str, Any] | None = None
        self.logged_to_restore: dict[str, Any] = {}
        self.is_asked_to_stop = False
        self.handler: Any = None  # the previous SIGTERM handler
        self.own_handler: Any = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.state_to_restore = checkpoint.get(WITHIN_EPOCH)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the state of a checkpoint within an epoch.

        This hook runs last of all callbacks, so that no random numbers are drawn after the random state is set.
        """
        if (self.steps or self.seconds) and threading.current_thread() is threading.main_thread():
            self.own_handler = lambda *_: self._on_sigterm(trainer)
            self.handler = signal.signal(signal.SIGTERM, self.own_handler)
        if self.state_to_restore:
            self.logged_to_restore = within_epoch.restore(trainer, pl_module, self.state_to_restore)
            self.state_to_restore = None
        self.step, self.saved_step, self.saved_at = trainer.global_step, trainer.global_step, time.monotonic()
        self.is_validated = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.logged_to_restore:
            within_epoch.restore_logged(trainer, self.logged_to_restore)
        if self.steps or self.seconds:
            is_step, self.step = trainer.global_step > self.step, trainer.global_step
            if is_step and self._is_interval_over(trainer) and not trainer.is_last_batch:
                # The file is written later, after the step is logged and validated. By then the next batch is loaded,
                # and loading it may draw random numbers.
                self.state_of_step = within_epoch.state(trainer, pl_module, self.logged_to_restore)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.is_validated = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Lightning cannot resume right after a validation; it would repeat the validation.
        if self.state_of_step and self.is_validated and self.is_asked_to_stop:
            self.handler(signal.SIGTERM, None)
        if self.state_of_step and not self.is_validated:
            self.state_in_file = self.state_of_step
            trainer.save_checkpoint(Path(self.dirpath or "", "last.ckpt"), weights_only=False)
            self.state_in_file = None
            self._after_saving(trainer)
        self.state_of_step, self.is_validated = None, False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.state_in_file:
            within_epoch.add_to(checkpoint, self.state_in_file)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.steps or self.seconds:
            (self.is_asked_to_stop,) = _broadcast_from_rank_zero(trainer, self.is_asked_to_stop)
        if trainer.is_last_batch and (self._is_due(trainer) or trainer.should_stop or self.is_asked_to_stop):
            super().on_train_epoch_end(trainer, pl_module)
            self._after_saving(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        handler = self.handler
        self._restore_handler()
        if self.is_asked_to_stop:  # SIGTERM came in the last step of the run.
            handler(signal.SIGTERM, None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_handler()

    def _after_saving(self, trainer: Trainer) -> None:
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()
        if self.is_asked_to_stop:
            self.handler(signal.SIGTERM, None)

    def _on_sigterm(self, trainer: Trainer) -> None:
        if self.is_asked_to_stop or not trainer.training:
            self.handler(signal.SIGTERM, None)
        self.is_asked_to_stop = True

    def _restore_handler(self) -> None:
        # At the end of the run, another handler ignores SIGTERM; keep that one.
        if self.handler and signal.getsignal(signal.SIGTERM) is self.own_handler:
            signal.signal(signal.SIGTERM, self.handler)
            self.handler = None

    def _is_due(self, trainer: Trainer) -> bool:
        epoch, epochs = trainer.current_epoch, trainer.max_epochs or -1
        if self.times is None or epochs < 0 or trainer.max_steps > 0:
            return True
        return (epoch + 1) * self.times // epochs > epoch * self.times // epochs

    def _is_interval_over(self, trainer: Trainer) -> bool:
        """Return whether it is time to save within an epoch; rank zero decides for all ranks."""
        is_over = bool(self.steps) and trainer.global_step - self.saved_step >= self.steps
        is_over |= bool(self.seconds) and time.monotonic() - self.saved_at >= self.seconds
        is_over |= self.is_asked_to_stop
        is_over, self.is_asked_to_stop = _broadcast_from_rank_zero(trainer, is_over, self.is_asked_to_stop)
        return is_over


def _broadcast_from_rank_zero(trainer: Trainer, *values: bool) -> tuple[bool, ...]:
    return values if trainer.world_size == 1 else trainer.strategy.broadcast(values)


def _interval(every: int | str | None) -> tuple[int, float]:
    """Return the interval as (steps, seconds); unused parts are 0."""
    if every is None:
        return 0, 0.0
    if type(every) is int and every > 0:
        return every, 0.0
    if isinstance(every, str) and re.fullmatch(r"(\d+:)?\d+:\d\d:\d\d(\.\d+)?", every):
        days, hours, minutes, seconds = map(float, ["0", *every.split(":")][-4:])
        if total := ((days * 24 + hours) * 60 + minutes) * 60 + seconds:
            return 0, total
    raise MisconfigurationException(
        f"callbacks.last_checkpoint.every is {every}; it must be null, a positive number of steps, or a time such as "
        '"00:30:00".'
    )
