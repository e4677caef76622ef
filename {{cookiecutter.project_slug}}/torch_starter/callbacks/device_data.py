"""Copies of data sets in GPU memory."""

import math
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader

from ..data.batches import BatchLoader


class DeviceData(Callback):
    """Copies data sets that fit into device memory to the device of the model, before their first batch.

    The device then makes the batches: the loop copies nothing and never waits. Order and augmentation stay the same. In
    distributed training, each rank has a copy on its own device. The data sets of the data module do not change. Data
    sets that are augmented image by image or by worker processes are not copied.

    Args:
        max_share: The maximum fraction of the free device memory that a data set may take, from 0 to 1. Larger data
            sets stay in CPU memory.
    """

    def __init__(self, max_share: float) -> None:
        self.max_share = max_share
        # The original data sets of loaders that serve a copy. Weak: Lightning may replace a loader after an epoch.
        self.originals: WeakKeyDictionary[BatchLoader, Any] = WeakKeyDictionary()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._copy_data(trainer, trainer.train_dataloader)

    on_train_epoch_start = on_train_start  # Lightning reloads the loaders before this hook.

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._copy_data(trainer, trainer.val_dataloaders)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._copy_data(trainer, trainer.test_dataloaders)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free the device memory for later stages."""
        for loader, dataset in self.originals.items():
            loader.dataset = dataset
        self.originals.clear()

    def _copy_data(self, trainer: Trainer, loaders: Any) -> None:
        device = trainer.strategy.root_device
        for loader in CombinedLoader(loaders).flattened:
            max_bytes = self.max_share * self.free_memory(device)
            if is_copied(loader, max_bytes) and loader not in self.originals:
                self.originals[loader] = loader.dataset
                loader.dataset = loader.dataset.to(device)

    @staticmethod
    def free_memory(device: torch.device) -> int:
        """Return the free bytes on a device; 0 for unknown devices and for the CPU, which holds the data already."""
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            return free
        if device.type == "mps":
            return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return 0


def is_copied(loader: Any, max_bytes: float) -> bool:
    """Return whether a loader makes its batches in this process, from copyable data of at most ``max_bytes`` bytes."""
    dataset = getattr(loader, "dataset", None)
    if not isinstance(loader, BatchLoader) or loader.workers or getattr(dataset, "is_slow", False):
        return False
    return hasattr(dataset, "to") and getattr(dataset, "nbytes", math.inf) <= max_bytes
