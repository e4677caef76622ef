"""A moving average of the weights."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException


class EMA(EMAWeightAveraging):
    """Lightning's, with the average on the device of the run.

    (Lightning copies the model before it is moved there, so that each step brings the weights of a GPU to the CPU.)

    Args:
        decay: of the average, in [0, 1).
        options: of Lightning's.

    Raises:
        MisconfigurationException: if the decay is not in its range.
    """

    def __init__(self, decay: float, **options: Any) -> None:
        if not 0 <= decay < 1:
            raise MisconfigurationException(f"callbacks.ema.decay is {decay}; it must be at least 0 and below 1.")
        super().__init__(decay=decay, **options)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copies the model, before training.

        Raises:
            MisconfigurationException: if no process has the whole model.
        """
        if isinstance(trainer.strategy, FSDPStrategy):
            raise MisconfigurationException(
                "callbacks=ema needs the whole model in each process, and trainer=fsdp divides it: take trainer=ddp."
            )
        if stage == "fit":
            pl_module.to(trainer.strategy.root_device)
        super().setup(trainer, pl_module, stage)
