"""Figures of a table model: its predictions, its residuals and the coefficients of a linear model."""

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

# Distinguishable without color, by lightness: https://jfly.uni-koeln.de/color/
BLACK, BLUE, GRAY = "black", "#0072B2", "#999999"
# Maximum numbers of points, more of which only overlap, and of bars, more of which are illegible.
POINTS, BARS = 5000, 25


class TableFigures(Callback):
    """Draws ``predicted_against_true`` and ``residuals`` of a regression TableModel as ``val/…`` and ``test/…``.

    For a linear model, also draws ``test/coefficients`` and logs the coefficients in the units of the columns.
    ClassifierFigures draws the mistakes of classifiers.

    Args:
        times: maximum number of times that a run draws each figure for the validation set.
    """

    def __init__(self, times: int) -> None:
        self.times = int(times)
        self.drawn = 0  # number of the last epoch with figures
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
        """Log the coefficients of a linear model, one line per column, and draw them."""
        if not isinstance(pl_module.network, nn.Linear) or pl_module.num_classes not in (None, 2):
            return
        weights, bias = (tensor.detach().cpu() for tensor in (pl_module.network.weight, pl_module.network.bias))
        if pl_module.num_classes:  # log-odds of the second class
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
        if len(coefficients) > BARS + 1:
            log.info(f"  … and {len(coefficients) - BARS - 1} more")
        # Columns of numbers: the effect of one standard deviation, which is comparable across columns.
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
    """Plot predictions against targets, one point per row; perfect predictions are on the diagonal.

    Args:
        predictions: float64 (N,), in the unit of the target.
        targets: float64 (N,), in the unit of the target.
        target: name of the target column.
    """
    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    axes = figure.add_subplot(xlabel=f"true {target}", ylabel=f"predicted {target}", title="predicted against true")
    step = -(-len(targets) // POINTS)
    axes.scatter(targets[::step], predictions[::step], s=12, color=BLUE, alpha=0.6, linewidths=0)
    ends = [min(targets.min(), predictions.min()), max(targets.max(), predictions.max())]
    axes.plot(ends, ends, "--", color=BLACK, linewidth=1.2, label="perfect prediction")
    axes.legend(loc="upper left")
    return figure


def residuals(predictions: numpy.ndarray, targets: numpy.ndarray, target: str) -> Figure:
    """Plot residuals (true minus predicted) over predictions, and their histogram. A pattern indicates underfitting.

    Args:
        predictions: float64 (N,), in the unit of the target.
        targets: float64 (N,), in the unit of the target.
        target: name of the target column.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    left.set(xlabel=f"predicted {target}", ylabel="true minus predicted", title="residuals")
    step = -(-len(targets) // POINTS)
    left.scatter(predictions[::step], (targets - predictions)[::step], s=12, color=BLUE, alpha=0.6, linewidths=0)
    left.axhline(0, linestyle="--", color=BLACK, linewidth=1.2)
    right.hist(targets - predictions, bins=30, orientation="horizontal", color=GRAY)
    right.set(xlabel="rows")
    return figure


def coefficient_bars(effects: Mapping[str, float], target: str) -> Figure:
    """Plot what one standard deviation of a number, or a word, adds to the prediction of a linear model.

    Coefficients in the units of the columns would not be comparable.

    Args:
        effects: effects in the unit of the target, by names of the encoded columns.
        target: name of what is predicted.
    """
    largest = sorted(effects, key=lambda name: abs(effects[name]))[-BARS:]
    figure = Figure(figsize=(6.4, 1.4 + 0.26 * len(largest)), layout="constrained")
    more = f" (the largest {BARS} of {len(effects)})" if len(effects) > BARS else ""
    axes = figure.add_subplot(
        xlabel=f"change of {target}", title=f"effect of one standard deviation, or of a category{more}"
    )
    axes.barh(largest, [effects[name] for name in largest], color=BLUE)
    axes.axvline(0, color=BLACK, linewidth=1)
    return figure
