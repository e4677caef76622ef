"""Progress of a run: a bar and log lines."""

import html
import logging
import math
import sys
import time
from collections.abc import Sized
from typing import Any

import rich.console
import rich.progress
from lightning import Callback, LightningModule, Trainer

from ..files import display_path

log = logging.getLogger(__name__)

REFRESH_SECONDS = 0.25  # between two updates of the bar


class Progress(Callback):
    """Shows one bar for the whole run in a terminal or notebook, and writes some lines to the log.

    Lightning shows one bar per epoch; 500 epochs of one step each would be 500 bars.

    Args:
        lines: The number of log lines, spread evenly over the epochs; at most one per epoch.
    """

    def __init__(self, lines: int) -> None:
        self.lines = int(lines)  # Invalid values fail before the run.
        self.bar: _TerminalBar | _NotebookBar | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log.info(_start_line(trainer, pl_module))

        # With -1 or None, something else ends the run.
        epochs = self.epochs = trainer.max_epochs if (trainer.max_epochs or -1) > 0 else None
        # Infinite for a data set of unknown length; the bar then only shows activity.
        batches = trainer.num_training_batches
        total = batches * epochs if epochs and math.isfinite(batches) else None
        console = rich.get_console()
        if trainer.is_global_zero and console.is_jupyter:
            self.bar = _NotebookBar(total, epochs)
        elif trainer.is_global_zero and console.is_terminal:
            self.bar = _TerminalBar(console, total, epochs)
        self.updated = 0.0
        self._update(trainer, trainer.current_epoch + 1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # An update takes as long as a step of a small network, and reading a metric waits for the device.
        if self.bar and time.monotonic() > self.updated + REFRESH_SECONDS:
            self._update(trainer, trainer.current_epoch + 1, batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch, epochs = trainer.current_epoch + 1, self.epochs
        if epochs is None:
            log.info(f"epoch {epoch}  {_metrics(trainer)}")
        elif epoch * self.lines // epochs > (epoch - 1) * self.lines // epochs:
            log.info(f"epoch {epoch:>{len(str(epochs))}}/{epochs}  {_metrics(trainer)}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._update(trainer, trainer.current_epoch)
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _update(self, trainer: Trainer, epoch: int, batches_of_epoch: int = 0) -> None:
        if self.bar:
            self.updated = time.monotonic()
            batches = trainer.num_training_batches
            completed = batches * trainer.current_epoch + batches_of_epoch if math.isfinite(batches) else None
            self.bar.update(completed, epoch, _metrics(trainer))

    def _stop(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None


class _TerminalBar:
    """A bar below the log lines that disappears at the end.

    Args:
        console: The console of the bar.
        total: The number of batches; None if it is unknown.
        epochs: The number of epochs; None if it is unknown.
    """

    def __init__(self, console: rich.console.Console, total: float | None, epochs: int | None) -> None:
        self.bar = rich.progress.Progress(
            rich.progress.TextColumn("epoch {task.fields[epoch]}" + (f"/{epochs}" if epochs else "")),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[metrics]}"),
            console=console,
            transient=True,
            refresh_per_second=1 / REFRESH_SECONDS,
        )
        self.task = self.bar.add_task("", total=total, epoch=1, metrics="")
        stdout = sys.stdout
        self.bar.start()
        # Rich replaces sys.stdout and prints its lines above the bar; the log handlers still hold the original stream.
        self.handlers = [handler for handler in logging.root.handlers if getattr(handler, "stream", None) is stdout]
        self._redirect_log()

    def update(self, completed: float | None, epoch: int, metrics: str) -> None:
        self.bar.update(self.task, completed=completed, epoch=epoch, metrics=metrics)

    def stop(self) -> None:
        self.bar.stop()
        self._redirect_log()

    def _redirect_log(self) -> None:
        for handler in self.handlers:
            handler.setStream(sys.stdout)


class _NotebookBar:
    """A persistent bar in the output of a cell, like _TerminalBar; Rich's own notebook bar needs ipywidgets."""

    def __init__(self, total: float | None, epochs: int | None) -> None:
        from IPython.display import HTML, display  # pyrefly: ignore[missing-import]  (notebooks have IPython)

        self.html = HTML
        self.total = total
        self.epochs = epochs
        self.display = display(HTML(""), display_id=True)

    def update(self, completed: float | None, epoch: int, metrics: str) -> None:
        text = f"epoch {epoch}" + (f"/{self.epochs}" if self.epochs else "") + f"  {html.escape(metrics)}"
        value = "" if self.total is None or completed is None else f' max="{int(self.total)}" value="{int(completed)}"'
        self.display.update(self.html(f"<progress{value}></progress> {text}"))

    def stop(self) -> None:
        pass


def network_name(model: LightningModule) -> str:
    """Return the ``name`` of a model, or the name of its network's class."""
    return str(getattr(model, "name", type(getattr(model, "network", model)).__name__))


def data_name(data: object) -> str:
    """Return the name of the class ``dataset`` of a data module, or of its own class."""
    return getattr(getattr(data, "dataset", None), "__name__", type(data).__name__)


def _start_line(trainer: Trainer, model: LightningModule) -> str:
    """Return a line with model, data, device, and run folder."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    data = data_name(trainer.datamodule)
    dataset = getattr(trainer.train_dataloader, "dataset", None)
    samples = f", {len(dataset):,} samples" if isinstance(dataset, Sized) else ""
    device = f"{trainer.world_size} x {model.device.type}" if trainer.world_size > 1 else model.device
    model_and_data = f"{network_name(model)}, {parameters:,} parameters | {data}{samples}"
    return f"{model_and_data} | {device} | {display_path(trainer.default_root_dir)}"


def _metrics(trainer: Trainer) -> str:
    return "  ".join(f"{name} {float(value):.4g}" for name, value in sorted(trainer.progress_bar_metrics.items()))
