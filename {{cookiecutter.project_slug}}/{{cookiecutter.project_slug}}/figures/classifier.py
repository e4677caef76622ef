"""Figures of the mistakes and the accuracy of a classifier."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision.utils import make_grid

from torch_starter.figures import fonts_for, gather_rows, is_due, log_figure, remove_callback

ROWS, COLUMNS = 3, 5


class ClassifierFigures(Callback):
    """Draws ``confusion_matrix``, ``class_accuracy`` and, for images, ``confidently_wrong``: ``val/…`` and ``test/…``.

    Supports models with ``num_classes`` whose ``batch_format`` has one label per sample and whose steps return
    ``logits`` (N, num_classes). The callback removes itself for other models.

    Args:
        times: maximum number of times that a run draws each figure for the validation set.
    """

    def __init__(self, times: int) -> None:
        self.times = int(times)
        self.drawn = 0  # number of the last epoch with figures

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.drawn = state_dict["drawn"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        formats: Any = getattr(pl_module, "batch_format", None) or {"": ""}
        if not getattr(pl_module, "num_classes", None) or not list(formats.values())[-1].startswith("int64 (N,)"):
            remove_callback(trainer, self)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(pl_module, not trainer.sanity_checking and is_due(trainer, self.times, self.drawn))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        self.is_wanted &= isinstance(outputs, dict) and "logits" in outputs
        if self.is_wanted:
            self._collect(outputs["logits"], batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.is_wanted:
            self._draw(trainer, "val")
            self.drawn = trainer.current_epoch + 1

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(pl_module, is_wanted=True)

    on_test_batch_end = on_validation_batch_end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.is_wanted:
            self._draw(trainer, "test")

    def _start(self, pl_module: Any, is_wanted: bool) -> None:
        self.is_wanted = is_wanted
        if is_wanted:
            self.matrix = MulticlassConfusionMatrix(pl_module.num_classes, validate_args=False).to(pl_module.device)
            self.wrong: list[Tensor] = []  # images, labels, predictions, probabilities

    def _collect(self, logits: Tensor, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        probabilities, predictions = logits.float().softmax(dim=1).max(dim=1)
        self.matrix.update(predictions, labels)
        if images.ndim != 4:
            return
        wrong = predictions != labels
        found = [values[wrong] for values in (images, labels, predictions, probabilities)]
        if self.wrong:
            found = [torch.cat(pair) for pair in zip(self.wrong, found, strict=True)]
        self.wrong = _keep_most_confident(found)

    def _draw(self, trainer: Trainer, stage: str) -> None:
        matrix = self.matrix.compute().cpu()  # over all processes
        wrong = _keep_most_confident([gather_rows(values) for values in self.wrong]) if self.wrong else None
        if not trainer.is_global_zero:
            return
        names = getattr(trainer.datamodule, "class_names", None) or [str(label) for label in range(len(matrix))]
        # Folder names are not always valid text.
        names = [name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for name in names]
        with fonts_for(names):
            log_figure(trainer, f"{stage}/confusion_matrix", confusion_matrix(matrix, names))
            log_figure(trainer, f"{stage}/class_accuracy", class_accuracy(matrix, names))
            if wrong:
                images, labels, predictions, probabilities = (part.cpu() for part in wrong)
                figure = confidently_wrong(images, labels, predictions, probabilities, names)
                log_figure(trainer, f"{stage}/confidently_wrong", figure)


def _keep_most_confident(wrong: Sequence[Tensor]) -> list[Tensor]:
    """Keep the images, labels, predictions and probabilities with the highest probabilities."""
    most = wrong[3].argsort(descending=True)[: ROWS * COLUMNS]
    return [values[most] for values in wrong]


def confusion_matrix(matrix: Tensor, names: Sequence[str]) -> Figure:
    """Plot a confusion matrix.

    Args:
        matrix: sample counts, int64 (classes, classes); rows are true classes, columns are predicted classes.
        names: class names.
    """
    figure, axes = _create_axes(names, 6.4, xlabel="predicted", ylabel="true", title="confusion matrix")
    share = matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1)
    axes.imshow(share.numpy(), cmap="Greys", vmin=0, vmax=1)
    _label_ticks(axes.set_xticks, names, rotation=90 if _has_long_names(names) else 0)
    _label_ticks(axes.set_yticks, names)
    if len(names) <= 20:  # more numbers would be illegible
        # in_layout=False: texts within the axes do not affect the layout, and measuring them takes time.
        for row, column in matrix.nonzero().tolist():
            color = "white" if share[row, column] > 0.5 else "black"
            count = int(matrix[row, column])
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=9, in_layout=False)
    return figure


def class_accuracy(matrix: Tensor, names: Sequence[str]) -> Figure:
    """Plot the accuracy of each class and the accuracy over all samples.

    Args:
        matrix: sample counts, int64 (classes, classes), as for ``confusion_matrix``.
        names: class names.
    """
    # nan for a class without samples; it is not drawn
    accuracies = (matrix.diagonal() / matrix.sum(dim=1)).tolist()
    overall = float(matrix.trace() / matrix.sum().clamp(min=1))
    title = f"accuracy per class, {overall:.4f} over all (dashed)"
    figure, axes = _create_axes(names, 4.8, ylabel="accuracy", title=title)
    axes.axhline(overall, color="black", linestyle="--", linewidth=1)
    axes.plot(accuracies, "o", color="black")
    axes.margins(y=0.15)
    _label_ticks(axes.set_xticks, names, rotation=90 if _has_long_names(names) else 0)
    if len(names) <= 20:
        for label, accuracy in enumerate(accuracies):
            if math.isnan(accuracy):
                continue
            above = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "in_layout": False}
            axes.annotate(f"{accuracy:.3f}", (label, accuracy), fontsize=8, **above)
    return figure


def confidently_wrong(
    images: Tensor, labels: Tensor, predictions: Tensor, probabilities: Tensor, names: Sequence[str]
) -> Figure:
    """Plot the wrong predictions with the highest probabilities.

    Args:
        images: uint8 (N, C, H, W), at most ROWS * COLUMNS.
        labels: true classes, int64 (N,).
        predictions: predicted classes, int64 (N,).
        probabilities: probabilities of the predicted classes, float (N,), 0 to 1.
        names: class names.
    """
    height, width = images.shape[-2:]
    gap = max(8, height // 2)  # room for the text, whose size does not depend on the image
    figure = Figure(figsize=(7.2, 5.4))
    axes = figure.add_axes(
        (0, 0, 1, 0.94), title="most confidently wrong" if len(images) else "no misclassified images"
    )
    axes.axis("off")
    blank = images.new_full((ROWS * COLUMNS - len(images), *images.shape[1:]), 255)
    grid = make_grid(torch.cat([images, blank]), nrow=COLUMNS, padding=gap, pad_value=255)
    axes.imshow(grid.permute(1, 2, 0).numpy())
    axes.set_ylim(grid.shape[1], gap / 2)
    for number, (label, prediction, probability) in enumerate(
        zip(labels.tolist(), predictions.tolist(), probabilities.tolist(), strict=True)
    ):
        row, column = divmod(number, COLUMNS)
        axes.text(
            gap + column * (width + gap) + width / 2,
            gap + row * (height + gap) + height,
            f"true {names[label]}\npred. {names[prediction]}, {probability:.3f}",
            ha="center",
            va="top",
            fontsize=9,
        )
    return figure


def _create_axes(names: Sequence[str], height: float, **kwargs: Any) -> tuple[Figure, Axes]:
    """Create a figure, 6.4 inches wide, with room for the class names."""
    # The constrained layout takes as long as drawing, because it measures every text. Short names fit without it.
    figure = Figure(figsize=(6.4, height), layout="constrained" if _has_long_names(names) else None)
    return figure, figure.add_subplot(**kwargs)


def _has_long_names(names: Sequence[str]) -> bool:
    return max(map(len, names)) > 3


def _label_ticks(set_ticks: Any, names: Sequence[str], **kwargs: Any) -> None:
    """Set a tick for each class, or for at most 30 of them."""
    step = math.ceil(len(names) / 30)
    set_ticks(range(0, len(names), step), names[::step], **kwargs)
