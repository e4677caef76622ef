"""Figures of a linear regression on one feature."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from lightning import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from torch_starter.figures import gather_rows, is_due, log_figure, remove_callback

from ..models.linear_regression import LinearRegression

log = logging.getLogger(__name__)

# Distinguishable without color, by lightness and dashes: https://jfly.uni-koeln.de/color/
BLACK, BLUE, ORANGE, GRAY = "black", "#0072B2", "#D55E00", "#999999"


class RegressionFigures(Callback):
    """Draws ``train/fitted_line`` and ``train/loss_surface`` during the training of a LinearRegression.

    Draws ``test/fitted_line`` for the best checkpoint at the end. The callback removes itself for other models and for
    more than one feature.

    Args:
        times: maximum number of times that a run draws each figure during training.
    """

    def __init__(self, times: int) -> None:
        self.times = int(times)
        self.drawn = 0  # number of the last epoch with figures
        self.path: list[tuple[float, float]] = []  # weight and bias, before the first epoch and after each
        self.earlier: list[tuple[float, float]] = []  # the first line, and the lines that were drawn
        self.batches: list[tuple[torch.Tensor, torch.Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        # Tensors are saved several times faster than lists of numbers.
        lines = {"path": self.path, "earlier": self.earlier}
        return {"drawn": self.drawn} | {name: torch.tensor(line, dtype=torch.double) for name, line in lines.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.drawn = state_dict["drawn"]
        self.path, self.earlier = ([(w, b) for w, b in state_dict[name].tolist()] for name in ("path", "earlier"))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not _has_one_feature(pl_module):
            remove_callback(trainer, self)

    def on_train_start(self, trainer: Trainer, pl_module: LinearRegression) -> None:
        if not self.path:
            self.path.append(_line(pl_module))
            self.earlier.append(_line(pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_due(trainer, self.times, self.drawn):
            self.batches.append(batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LinearRegression) -> None:
        self.path.append(_line(pl_module))
        batches, self.batches = self.batches, []
        if batches and _is_finite(self.path):
            x, y = _points(batches)
            title, true_line = f"epoch {trainer.current_epoch + 1}", _true_line(trainer)
            log_figure(trainer, "train/fitted_line", fitted_line(x, y, self.path[-1], title, true_line, self.earlier))
            log_figure(trainer, "train/loss_surface", loss_surface(x, y, self.path, title, true_line))
            self.earlier.append(self.path[-1])
            self.drawn = trainer.current_epoch + 1

    def on_test_end(self, trainer: Trainer, pl_module: LinearRegression) -> None:
        """Log the fitted line and, if the data module has it, the true line."""
        weight, bias = _line(pl_module)
        log.info(f"fitted line     y = {weight:.3f} x + {bias:.3f}")
        if true_line := _true_line(trainer):
            log.info(f"true line       y = {true_line[0]:.3f} x + {true_line[1]:.3f}")
        log.info(f"at x = 4        y = {weight * 4 + bias:.3f}")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        self.batches.append(batch)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LinearRegression) -> None:
        batches, self.batches = self.batches, []
        if batches and _is_finite([_line(pl_module)]):
            x, y = _points(batches)
            log_figure(trainer, "test/fitted_line", fitted_line(x, y, _line(pl_module), "test", _true_line(trainer)))


def _points(batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[numpy.ndarray]:
    """Gather x and y of all batches and processes, float64 (N,)."""
    columns = [gather_rows(torch.cat(column)) for column in zip(*batches, strict=True)]
    return [column.squeeze(1).cpu().double().numpy() for column in columns]


def _has_one_feature(model: LightningModule) -> bool:
    return isinstance(model, LinearRegression) and model.linear.in_features == 1


def _line(model: LinearRegression) -> tuple[float, float]:
    """Return the weight and the bias."""
    return model.linear.weight.item(), model.linear.bias.item()


def _is_finite(path: list[tuple[float, float]]) -> bool:
    """Return whether the weights can be drawn. Those of a diverged run cannot."""
    return bool((numpy.abs(path) < 1e100).all())


def _true_line(trainer: Trainer) -> tuple[float, float] | None:
    data = trainer.datamodule
    return (data.slope, data.intercept) if hasattr(data, "slope") and hasattr(data, "intercept") else None


def fitted_line(
    x: numpy.ndarray,
    y: numpy.ndarray,
    line: tuple[float, float],
    title: str,
    true_line: tuple[float, float] | None = None,
    earlier: Sequence[tuple[float, float]] = (),
) -> Figure:
    """Plot the points, the fitted line, earlier fitted lines and the true line.

    Args:
        x: x values of the points, float64 (N,).
        y: y values of the points, float64 (N,).
        line: weight and bias of the fitted line.
        title: title, followed by the equation of the line.
        true_line: weight and bias of the true line, if known.
        earlier: weights and biases of earlier lines, in order.
    """
    figure = Figure(figsize=(6.4, 4.8))
    axes = figure.add_subplot(xlabel="x", ylabel="y", title=f"{title}: y = {line[0]:.3f} x + {line[1]:.3f}")
    axes.scatter(x, y, s=12, color=GRAY, label="data")
    ends = numpy.array([x.min(), x.max()])
    for number, (weight, bias) in enumerate(earlier):
        axes.plot(ends, weight * ends + bias, color=BLUE, linewidth=0.6, label=None if number else "earlier fits")
    axes.plot(ends, line[0] * ends + line[1], color=BLUE, linewidth=2.5, label="fitted")
    if true_line:
        axes.plot(ends, true_line[0] * ends + true_line[1], "--", color=BLACK, linewidth=1.5, label="true")
    axes.legend(loc="upper left")
    axes.locator_params(nbins=5)  # with twice as many ticks, their labels take a third of the drawing time
    return figure


def loss_surface(
    x: numpy.ndarray,
    y: numpy.ndarray,
    path: Sequence[tuple[float, float]],
    title: str,
    true_line: tuple[float, float] | None = None,
) -> Figure:
    """Plot the mean squared error over weight and bias, and the path of the training.

    Args:
        x: x values of the points, float64 (N,).
        y: y values of the points, float64 (N,).
        path: weights and biases during training, in order.
        title: title of the figure.
        true_line: weight and bias of the true line, if known.
    """
    marked = numpy.array([*path, least_squares(x, y), *([true_line] if true_line else [])])
    low, high = marked.min(axis=0), marked.max(axis=0)
    margin = numpy.maximum(0.15 * (high - low), 0.05)
    weights, biases = (numpy.linspace(a, b, 120) for a, b in zip(low - margin, high + margin, strict=True))
    w, b = numpy.meshgrid(weights, biases)
    # The mean of (w x + b - y)², expanded so that the cost does not depend on the number of points.
    loss = w**2 * (x**2).mean() + 2 * w * b * x.mean() + b**2
    loss += -2 * w * (x * y).mean() - 2 * b * y.mean() + (y**2).mean()

    figure = Figure(figsize=(6.4, 4.8))
    axes = figure.add_subplot(xlabel="weight", ylabel="bias", title=f"{title}: mean squared error")
    levels = numpy.geomspace(loss.min() * 1.02, loss.max(), 10)
    contours = axes.contour(weights, biases, loss, levels=levels, colors=GRAY, linewidths=0.8)
    axes.clabel(contours, levels[1:], fontsize=8, fmt="%.3g")
    axes.plot(*zip(*path, strict=True), ".-", color=BLUE, markersize=3, linewidth=1, label="path, one dot per epoch")
    axes.plot(*path[0], "s", color=BLUE, label="start")
    axes.plot(*path[-1], "o", color=BLUE, label="current")
    axes.plot(*least_squares(x, y), "x", color=BLACK, markersize=9, markeredgewidth=2, label="least squares")
    if true_line:
        axes.plot(*true_line, "+", color=ORANGE, markersize=11, markeredgewidth=2, label="true")
    axes.legend(loc="best")
    axes.locator_params(nbins=5)
    return figure


def least_squares(x: numpy.ndarray, y: numpy.ndarray) -> tuple[float, float]:
    """Return weight and bias of the line with the smallest mean squared error, in closed form."""
    weight, bias = numpy.polyfit(x, y, deg=1)
    return float(weight), float(bias)
