"""The curves that every run logs, independent of the task."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size

from ..optimization import is_logged


class Curves(Callback):
    """Logs the learning rate, the seconds of each epoch, and the samples per second to every logger.

    ``train/lr`` is logged every ``trainer.log_every_n_steps`` steps, and so is ``train/lr_backbone`` after FineTuning
    has added the backbone to the optimizer. ``train/epoch_seconds`` includes validation;
    ``train/samples_per_second`` measures training only, summed over all ranks.

    Lightning's LearningRateMonitor raises an error in a run without a logger, and its ThroughputMonitor waits for the
    device at every step.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # Lightning skips this hook if a run resumes within an epoch.

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = self.mark = time.perf_counter()
        self.seconds = 0.0
        self.samples = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if is_logged(trainer, trainer.global_step):
            groups = trainer.optimizers[0].param_groups  # Groups may also differ in their weight decay only.
            rates = {"train/lr": groups[0]["lr"]}
            if any(getattr(other, "previous_backbone_lr", None) is not None for other in trainer.callbacks):
                rates["train/lr_backbone"] = groups[-1]["lr"]
            self._log(trainer, rates, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.seconds += now - self.mark
        self.mark = now
        self.samples += extract_batch_size(batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.mark = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {
            "train/epoch_seconds": time.perf_counter() - self.start,
            "train/samples_per_second": self.samples * trainer.world_size / self.seconds,
        }
        # Epochs of a single step are logged as often as steps.
        every: int = trainer.log_every_n_steps  # 0: never
        if every and trainer.global_step % every < trainer.num_training_batches:
            self._log(trainer, metrics, trainer.global_step - 1)  # The last step, as for val/loss.

    def _log(self, trainer: Trainer, metrics: dict[str, float], step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step)
