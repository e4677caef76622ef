"""Figures of a model of a table: how close its predictions are, and what a linear one has found."""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from lightning import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor, nn

from torch_starter.figures import fonts_for, gather_rows, is_due, log_figure, remove_callback

from ..models.table_model import TableModel

log = logging.getLogger(__name__)

# Told apart by their lightness as well: https://jfly.uni-koeln.de/color/
BLACK, BLUE, GREY = "black", "#0072B2", "#999999"
# More points than these are a cloud anyway, and more bars than these cannot be read.
POINTS, BARS = 5000, 25


class TableFigures(Callback):
    """Draws ``predicted_against_true`` and ``residuals`` of a TableModel of a number, as ``val/…`` and ``test/…``.

    Of a linear one also ``test/coefficients``, which the report of the run has in the units of the columns. (What a
    classifier gets wrong is drawn by ClassifierFigures.)

    Args:
        times: that each figure is drawn in a run for the validation set, at most.
    """

    def __init__(self, times: int) -> None:
        self.times = int(times)
        self.drawn = 0  # the last epoch of which there are figures
        self.is_wanted = False
        self.batches: list[tuple[Tensor, Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.drawn = state_dict["drawn"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, TableModel):
            remove_callback(trainer, self)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: TableModel) -> None:
        is_number = pl_module.num_classes is None
        self.is_wanted = is_number and not trainer.sanity_checking and is_due(trainer, self.times, self.drawn)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        if self.is_wanted:
            self.batches.append((outputs["predictions"].detach(), batch[1]))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.is_wanted:
            self._draw(trainer, "val")
            self.drawn = trainer.current_epoch + 1

    def on_test_epoch_start(self, trainer: Trainer, pl_module: TableModel) -> None:
        self.is_wanted = pl_module.num_classes is None

    on_test_batch_end = on_validation_batch_end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.is_wanted:
            self._draw(trainer, "test")

    def on_test_end(self, trainer: Trainer, pl_module: TableModel) -> None:
        """Says what a linear model has found, a line per column."""
        if not isinstance(pl_module.network, nn.Linear) or pl_module.num_classes not in (None, 2):
            return
        weights, bias = (tensor.detach().cpu() for tensor in (pl_module.network.weight, pl_module.network.bias))
        if pl_module.num_classes:  # the log of the odds of the second class
            weights, bias = weights[1] - weights[0], bias[1] - bias[0]
            what = f"log-odds of {trainer.datamodule.class_names[1]}"  # pyrefly: ignore
        else:
            scale, mean = pl_module.target_std.cpu(), pl_module.target_mean.cpu()
            weights, bias, what = weights[0] * scale, bias[0] * scale + mean, trainer.datamodule.target
        encoder = copy.deepcopy(pl_module.encoder).cpu()
        coefficients = encoder.coefficients(weights, bias)
        log.info(f"{what} = the sum of")
        for name, value in list(coefficients.items())[: BARS + 1]:
            log.info(f"  {value:12.6g}  {'' if name == 'intercept' or '=' in name else 'times '}{name}")
        # Of a number what one standard deviation adds, which can be compared with others.
        if len(coefficients) > BARS + 1:
            log.info(f"  … and {len(coefficients) - BARS - 1} more")
        effects = coefficients | dict(zip(encoder.names[: len(encoder.std)], weights.tolist(), strict=False))
        del effects["intercept"]
        with fonts_for([what, *encoder.names]):
            log_figure(trainer, "test/coefficients", coefficient_bars(effects, what))

    def _draw(self, trainer: Trainer, stage: str) -> None:
        columns = zip(*self.batches, strict=True)
        predictions, targets = (gather_rows(torch.cat(column)).double().cpu().numpy() for column in columns)
        self.batches = []
        target = trainer.datamodule.target
        with fonts_for([target]):
            log_figure(trainer, f"{stage}/predicted_against_true", predicted_against_true(predictions, targets, target))
            log_figure(trainer, f"{stage}/residuals", residuals(predictions, targets, target))


def predicted_against_true(predictions: numpy.ndarray, targets: numpy.ndarray, target: str) -> Figure:
    """A point per row; on the diagonal are the rows that are predicted right.

    Args:
        predictions: (N,), in the unit of the target.
        targets: (N,), likewise.
        target: the name of the column.
    """
    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    axes = figure.add_subplot(xlabel=f"true {target}", ylabel=f"predicted {target}", title="predicted against true")
    step = -(-len(targets) // POINTS)
    axes.scatter(targets[::step], predictions[::step], s=12, color=BLUE, alpha=0.6, linewidths=0)
    ends = [min(targets.min(), predictions.min()), max(targets.max(), predictions.max())]
    axes.plot(ends, ends, "--", color=BLACK, linewidth=1.2, label="right")
    axes.legend(loc="upper left")
    return figure


def residuals(predictions: numpy.ndarray, targets: numpy.ndarray, target: str) -> Figure:
    """True minus predicted over predicted, and how often each occurs. A pattern is what the model has not learned.

    Args:
        predictions: (N,), in the unit of the target.
        targets: (N,), likewise.
        target: the name of the column.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    left.set(xlabel=f"predicted {target}", ylabel="true minus predicted", title="residuals")
    step = -(-len(targets) // POINTS)
    left.scatter(predictions[::step], (targets - predictions)[::step], s=12, color=BLUE, alpha=0.6, linewidths=0)
    left.axhline(0, linestyle="--", color=BLACK, linewidth=1.2)
    right.hist(targets - predictions, bins=30, orientation="horizontal", color=GREY)
    right.set(xlabel="rows")
    return figure


def coefficient_bars(effects: Mapping[str, float], target: str) -> Figure:
    """What a linear model adds to its prediction for one standard deviation of a number, or for a word.

    (In the units of the columns they could not be compared.)

    Args:
        effects: by the names of the encoded columns.
        target: what is predicted.
    """
    largest = sorted(effects, key=lambda name: abs(effects[name]))[-BARS:]
    figure = Figure(figsize=(6.4, 1.4 + 0.26 * len(largest)), layout="constrained")
    more = f" (the largest {BARS} of {len(effects)})" if len(effects) > BARS else ""
    axes = figure.add_subplot(xlabel=f"adds to {target}", title=f"one standard deviation, or a word{more}")
    axes.barh(largest, [effects[name] for name in largest], color=BLUE)
    axes.axvline(0, color=BLACK, linewidth=1)
    return figure
