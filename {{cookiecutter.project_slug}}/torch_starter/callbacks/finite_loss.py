"""Stops runs whose loss is infinite or NaN."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from ..optimization import is_logged


class FiniteLoss(Callback):
    """Stops a run when its loss, or a weight that is about to be saved, is infinite or NaN.

    It checks the loss of the logged steps, the metrics with "loss" in their names after each validation, and the
    weights in each checkpoint. It does not check every step, because reading a value waits for the device.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_logged(trainer, trainer.global_step):
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            if isinstance(loss, Tensor):
                _check(trainer, "train/loss", loss)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, value in trainer.callback_metrics.items():
            if "loss" in name:
                _check(trainer, name, value)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        for name, parameter in pl_module.named_parameters():
            _check(trainer, name, parameter.detach())


def _check(trainer: Trainer, name: str, value: Tensor) -> None:
    """Raise an error if a value is not finite.

    Raises:
        MisconfigurationException: If ``value`` is not finite; the message names the step and possible remedies.
    """
    finite = torch.isfinite(value)
    if finite.all():
        return
    lr = trainer.optimizers[0].param_groups[0]["lr"]
    precision = "" if trainer.precision == "32-true" else ", trainer.precision=32-true"
    raise MisconfigurationException(
        f"{name} is {value[~finite][0].item()} in epoch {trainer.current_epoch + 1}, after step {trainer.global_step}, "
        f"at a learning rate of {lr:.3g}.\n"
        f"Try a smaller optimizer.lr, trainer.gradient_clip_val=1{precision}, or trainer.detect_anomaly=true to find "
        "the operation.\nTo disable this check: callbacks.finite_loss=null."
    )
