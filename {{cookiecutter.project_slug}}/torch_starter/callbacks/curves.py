"""The curves that every run has, whatever it trains."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size

from ..optimization import is_logged


class Curves(Callback):
    """Gives every logger the learning rate, the seconds of each epoch, and the samples per second.

    ``train/lr`` is written every ``trainer.log_every_n_steps`` steps, and ``train/lr_backbone`` beside it as soon as
    FineTuning has added the backbone to the optimizer.
    ``train/epoch_seconds`` has the validation in it; ``train/samples_per_second`` counts training alone, over all
    processes.

    (Lightning's LearningRateMonitor is an error in a run without a logger, and its ThroughputMonitor waits for the
    device at every step.)
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # which does not come where a run goes on within an epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = self.mark = time.perf_counter()
        self.seconds = 0.0
        self.samples = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if is_logged(trainer, trainer.global_step):
            groups = trainer.optimizers[0].param_groups  # which may also differ in their weight decay alone
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
        # An epoch of a single step is not written more often than a step.
        every: int = trainer.log_every_n_steps  # 0: never
        if every and trainer.global_step % every < trainer.num_training_batches:
            self._log(trainer, metrics, trainer.global_step - 1)  # the last step, as Lightning has it for val/loss

    def _log(self, trainer: Trainer, metrics: dict[str, float], step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step)
