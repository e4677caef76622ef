"""Gradients of batches that are split unevenly across ranks."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor

from ..compat import use_contiguous_weights
from ..figures import remove_callback


class GlobalBatch(Callback):
    """Weights gradients so that a step across ranks equals the single-process step.

    The strategies average the gradients of all ranks, and each rank averages over its share of the batch. The result is
    the gradient of the batch only if all shares have the same size. In the last batch of an epoch they may differ, so
    this callback weights each gradient by the size of its share. ``train/loss`` of such a step is logged as the
    unweighted mean over ranks.

    For FSDP, it also makes the weights contiguous so that the gradients have the right order, see
    ``use_contiguous_weights``.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FSDPStrategy):
            use_contiguous_weights(pl_module)
        if trainer.world_size == 1:
            remove_callback(trainer, self)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.weight = 1.0
        loader = trainer.train_dataloader
        # The sizes are the same in each epoch. For other loaders, Lightning makes all shares equal.
        self.sizes = loader.batch_sizes() if hasattr(loader, "batch_sizes") else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.sizes:
            self.weight = extract_batch_size(batch) * trainer.world_size / self.sizes[batch_idx]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        weight = self.weight
        if weight != 1:
            loss.register_hook(lambda gradient: gradient * weight)
