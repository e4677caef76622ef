"""Logging of the metrics of a model at the end of each epoch."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ..optimization import is_validated


class EpochMetrics(Callback):
    """Logs ``train_metrics``, ``val_metrics``, and ``test_metrics`` of a model at the end of an epoch.

    The steps of the model update them, see ``torch_starter.metrics.metrics_of_stages``. A metric with a value per class
    is logged as ``val/NAME/CLASS``, a matrix as ``val/NAME/TRUE/PREDICTED``. Lightning's ``self.log`` only accepts
    metrics with a single value and takes time in each step.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # If an epoch is a single step, only validated epochs are logged, as in sparse_logging.py.
        should_log = is_validated(trainer) or trainer.num_training_batches > 1
        self._log(trainer, pl_module, "train", should_log)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module, "test")

    def _log(self, trainer: Trainer, model: LightningModule, stage: str, should_log: bool = True) -> None:
        metrics: Any = getattr(model, f"{stage}_metrics", None)
        if not metrics:
            return
        classes = getattr(trainer.datamodule, "class_names", None) or ()
        # All ranks have the same values; without sync_dist, Lightning would warn that they may differ.
        options: dict[str, Any] = {"sync_dist": trainer.world_size > 1, "batch_size": 1}
        for name, value in metrics.compute().items() if should_log else ():
            for entry, number in _entries(name, torch.as_tensor(value), classes):
                model.log(entry, number.float(), prog_bar=entry == name, **options)
        metrics.reset()


def _entries(name: str, value: Tensor, classes: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the numbers in ``value`` with their names."""
    if value.ndim == 0:
        yield name, value
        return
    names = classes if len(classes) == len(value) else range(len(value))
    for part, values in zip(names, value, strict=True):
        yield from _entries(f"{name}/{part}", values, classes)
