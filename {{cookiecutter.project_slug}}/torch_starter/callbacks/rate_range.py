"""Learning rate range test."""

import math
from typing import Any

from lightning import Callback, LightningModule, Trainer

STEPS = 100
LOWEST, HIGHEST = 1e-6, 1.0
# The test ends when the loss exceeds the loss of the first step by this factor.
DIVERGENCE_FACTOR = 4.0


class RangeTest(Callback):
    """Increases the learning rate from ``LOWEST`` to ``HIGHEST`` in ``STEPS`` steps and records the loss of each.

    Lightning's ``Tuner.lr_find`` saves a checkpoint, tests a network before its pretrained weights are loaded, halves
    the first loss, and takes the slope over the rate instead of its logarithm. That slope is steepest in the noise of
    the lowest rates: 2e-5 for `experiment=mnist`.
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.rate = LOWEST * (HIGHEST / LOWEST) ** (trainer.global_step / (STEPS - 1))
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.rate

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == len(self.losses):
            return  # Gradients are accumulated.
        loss = float(outputs["loss"] if isinstance(outputs, dict) else outputs)
        if math.isfinite(loss) and loss <= DIVERGENCE_FACTOR * [*self.losses, loss][0]:
            self.rates.append(self.rate)
            self.losses.append(loss)
        else:
            trainer.should_stop = True
