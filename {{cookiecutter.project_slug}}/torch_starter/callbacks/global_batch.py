"""The gradient of a batch that several processes share."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor

from ..compat import use_contiguous_weights
from ..figures import remove_callback


class GlobalBatch(Callback):
    """Makes the step of several processes the one that a single process would make.

    The strategies take the mean of the processes' gradients, each the mean over a share of the batch. That is the
    gradient of the batch if all shares are of one size, which those of the last batch of an epoch may not be; so each
    is weighted with its share. (``train/loss`` of such a step is logged as the plain mean over the processes.)

    And FSDP gets weights whose gradients it orders rightly: see ``use_contiguous_weights``.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FSDPStrategy):
            use_contiguous_weights(pl_module)
        if trainer.world_size == 1:
            remove_callback(trainer, self)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.weight = 1.0
        loader = trainer.train_dataloader
        # The same in each epoch. A loader of another kind shares evenly, as Lightning makes it.
        self.sizes = loader.batch_sizes() if hasattr(loader, "batch_sizes") else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.sizes:
            self.weight = extract_batch_size(batch) * trainer.world_size / self.sizes[batch_idx]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        weight = self.weight
        if weight != 1:
            loss.register_hook(lambda gradient: gradient * weight)
