"""Exponential moving average of the weights."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException


class EMA(EMAWeightAveraging):
    """Lightning's EMAWeightAveraging, with the average on the device of the model.

    Lightning copies the model before it moves to the device, so each step would transfer the weights from GPU to CPU.

    Args:
        decay: The decay of the average, in [0, 1).
        **options: Arguments of EMAWeightAveraging.

    Raises:
        MisconfigurationException: If the decay is out of range.
    """

    def __init__(self, decay: float, **options: Any) -> None:
        if not 0 <= decay < 1:
            raise MisconfigurationException(f"callbacks.ema.decay is {decay}; it must be at least 0 and below 1.")
        super().__init__(decay=decay, **options)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the model before training.

        Raises:
            MisconfigurationException: If no rank holds the whole model.
        """
        if isinstance(trainer.strategy, FSDPStrategy):
            raise MisconfigurationException(
                "callbacks=ema needs the whole model in each process, but trainer=fsdp shards it. Use trainer=ddp."
            )
        if stage == "fit":
            pl_module.to(trainer.strategy.root_device)
        super().setup(trainer, pl_module, stage)
