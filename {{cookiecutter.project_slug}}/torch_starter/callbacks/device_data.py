"""Data sets in the memory of the GPU."""

import math
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader

from ..data.batches import BatchLoader


class DeviceData(Callback):
    """Copies data sets that fit to the device of the model, before their first batch.

    Their batches are then made there: nothing is copied in the loop, and nothing waits. Order and augmentation stay
    the same. With several processes each has a copy on its own device. The data sets of the data module stay as they
    are, and what is augmented image by image, or by worker processes, is not copied.

    Args:
        max_share: of the memory of the device that is free at that time, the most that a data set may take, from 0
            to 1. What is larger stays in the memory of the CPU.
    """

    def __init__(self, max_share: float) -> None:
        self.max_share = max_share
        # The data sets of the loaders that have a copy instead. Weak: Lightning may replace a loader after an epoch.
        self.originals: WeakKeyDictionary[BatchLoader, Any] = WeakKeyDictionary()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._copy_data(trainer, trainer.train_dataloader)

    on_train_epoch_start = on_train_start  # where Lightning reloads the loaders

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._copy_data(trainer, trainer.val_dataloaders)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._copy_data(trainer, trainer.test_dataloaders)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Frees the memory, for what comes next."""
        for loader, dataset in self.originals.items():
            loader.dataset = dataset
        self.originals.clear()

    def _copy_data(self, trainer: Trainer, loaders: Any) -> None:
        device = trainer.strategy.root_device
        for loader in CombinedLoader(loaders).flattened:
            most = self.max_share * self.free_memory(device)
            if is_copied(loader, most) and loader not in self.originals:
                self.originals[loader] = loader.dataset
                loader.dataset = loader.dataset.to(device)

    @staticmethod
    def free_memory(device: torch.device) -> int:
        """Bytes that are free on a device; 0 for the CPU, where the data are already, and where nobody knows."""
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            return free
        if device.type == "mps":
            return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return 0


def is_copied(loader: Any, most: float) -> bool:
    """Whether a loader makes its batches in this process, from data that can be copied and fit into ``most`` bytes."""
    dataset = getattr(loader, "dataset", None)
    if not isinstance(loader, BatchLoader) or loader.workers or getattr(dataset, "is_slow", False):
        return False
    return hasattr(dataset, "to") and getattr(dataset, "nbytes", math.inf) <= most
