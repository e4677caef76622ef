"""From the optimizer and scheduler of the config to what Lightning wants."""

import math
from functools import partial
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .compat import unscale_before_step


def optimizer_and_scheduler(
    module: LightningModule, optimizer: "partial[Optimizer]", scheduler: "partial[LRScheduler]"
) -> dict[str, Any]:
    """What ``LightningModule.configure_optimizers`` returns.

    Args:
        module: whose parameters are optimized, attached to its trainer.
        optimizer: a class of ``torch.optim`` with all arguments but the parameters (``configs/optimizer``).
        scheduler: a class of ``torch.optim.lr_scheduler`` with all arguments but the optimizer
            (``configs/scheduler``). ``interval`` and ``monitor`` among them are for Lightning; a
            ``T_max`` or ``total_steps`` that is None becomes the number of steps of the whole run,
            which only the trainer knows.

    Raises:
        MisconfigurationException: if torch does not accept an argument.
    """
    arguments = dict(scheduler.keywords)
    when = {key: arguments.pop(key) for key in ("interval", "monitor") if key in arguments}
    for key in ("T_max", "total_steps"):
        if key in arguments and arguments[key] is None:
            steps = module.trainer.estimated_stepping_batches
            if not math.isfinite(steps):
                raise MisconfigurationException(
                    f"scheduler.{key} is null, and the run has no length that it could take. Set trainer.max_epochs=…, "
                    f"trainer.max_steps=…, or scheduler.{key}=…"
                )
            arguments[key] = int(steps)
    if "monitor" in when and when.get("interval") == "epoch":
        # Still once an epoch, but before the checkpoint is written instead of after it.
        module.trainer.fit_loop.setup_data()
        if math.isfinite(module.trainer.num_training_batches):
            when |= {"interval": "step", "frequency": int(module.trainer.num_training_batches)}
    try:
        # What a callback has frozen is left out, for the callback to add later.
        built_optimizer = unscale_before_step(optimizer(p for p in module.parameters() if p.requires_grad))
        built_scheduler = scheduler.func(built_optimizer, **arguments)
    except (IndexError, TypeError, ValueError) as error:
        raise MisconfigurationException(f"An argument of optimizer or scheduler does not fit: {error}") from error
    return {"optimizer": built_optimizer, "lr_scheduler": {"scheduler": built_scheduler, **when}}


def is_validated(trainer: Trainer) -> bool:
    """Whether the current epoch is one of those that ``trainer.check_val_every_n_epoch`` validates."""
    return (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0


def is_logged(trainer: Trainer, step: int) -> bool:
    """Whether the logger writes in a step: every ``trainer.log_every_n_steps``, or never if that is 0."""
    every: int = trainer.log_every_n_steps
    return bool(every) and step % every == 0
