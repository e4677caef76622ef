"""What a run shows of itself while it trains."""

import logging
import math
import sys
import time
from collections.abc import Sized
from pathlib import Path
from typing import Any

import rich.progress
from lightning import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)

SECONDS = 0.25  # between two drawings of the bar


class Progress(Callback):
    """One bar for the whole run where there is a terminal, and some lines in the log everywhere.

    (Lightning's bars are one per epoch; 500 epochs of one step each would be 500 bars.)

    Args:
        lines: that the run leaves in the log, spread evenly over its epochs; at most one per epoch.
    """

    def __init__(self, lines: int) -> None:
        self.lines = int(lines)  # of what is no number it is known before the run

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log.info(_start_line(trainer, pl_module))

        # Lightning's -1 and None are a run that something else ends.
        epochs = self.epochs = trainer.max_epochs if (trainer.max_epochs or -1) > 0 else None
        self.bar = rich.progress.Progress(
            rich.progress.TextColumn("epoch {task.fields[epoch]}" + (f"/{epochs}" if epochs else "")),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[metrics]}"),
            console=rich.get_console(),
            disable=not (trainer.is_global_zero and rich.get_console().is_terminal),
            transient=True,
            refresh_per_second=1 / SECONDS,
        )
        # Infinite for a data set that does not know its length: then the bar only says that something goes on.
        batches = trainer.num_training_batches
        self.task = self.bar.add_task(
            "",
            total=batches * epochs if epochs and math.isfinite(batches) else None,
            completed=int(batches) * trainer.current_epoch if math.isfinite(batches) else 0,
            epoch=trainer.current_epoch + 1,
            metrics="",
        )
        self.updated = time.monotonic()
        stdout = sys.stdout
        self.bar.start()
        # Rich prints above the bar what goes to sys.stdout; the log's handlers still hold the former one.
        self.handlers = [handler for handler in logging.root.handlers if getattr(handler, "stream", None) is stdout]
        self._redirect_log()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Drawing takes as long as a step of a small network, and reading a metric waits for the device.
        if self.bar.disable or time.monotonic() < self.updated + SECONDS:
            return
        self.updated = time.monotonic()
        epoch, batches = trainer.current_epoch, trainer.num_training_batches
        completed = batches * epoch + batch_idx + 1 if math.isfinite(batches) else None
        self.bar.update(self.task, completed=completed, epoch=epoch + 1, metrics=_metrics(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch, epochs = trainer.current_epoch + 1, self.epochs
        if epochs is None:
            log.info(f"epoch {epoch}  {_metrics(trainer)}")
        elif epoch * self.lines // epochs > (epoch - 1) * self.lines // epochs:
            log.info(f"epoch {epoch:>{len(str(epochs))}}/{epochs}  {_metrics(trainer)}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if hasattr(self, "bar"):
            self._stop()

    def _stop(self) -> None:
        self.bar.stop()
        self._redirect_log()

    def _redirect_log(self) -> None:
        for handler in self.handlers:
            handler.setStream(sys.stdout)


def shown_folder(trainer: Trainer) -> Path:
    """The run folder as somebody would type it: relative where it is beneath the current one."""
    folder = Path(trainer.default_root_dir).resolve()
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _start_line(trainer: Trainer, model: LightningModule) -> str:
    """What model, which data, on which device, into which folder."""
    network = getattr(model, "name", type(getattr(model, "network", model)).__name__)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    data = getattr(trainer.datamodule, "dataset", type(trainer.datamodule)).__name__
    dataset = getattr(trainer.train_dataloader, "dataset", None)
    samples = f", {len(dataset):,} samples" if isinstance(dataset, Sized) else ""
    device = f"{trainer.world_size} x {model.device.type}" if trainer.world_size > 1 else model.device
    return f"{network}, {parameters:,} parameters | {data}{samples} | {device} | {shown_folder(trainer)}"


def _metrics(trainer: Trainer) -> str:
    return "  ".join(f"{name} {float(value):.4g}" for name, value in sorted(trainer.progress_bar_metrics.items()))
