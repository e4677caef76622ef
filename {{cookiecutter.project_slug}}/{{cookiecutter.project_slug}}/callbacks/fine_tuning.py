"""First the head of a pretrained network, then all of it."""

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR


class FineTuning(BackboneFinetuning):
    """Trains what is not the ``backbone`` of the model at first, and the backbone later, at a lower rate.

    (Lightning's BackboneFinetuning doubles the rate of the backbone each epoch until it is that of the rest; and it
    leaves the backbone frozen in a run that is resumed after it was thawed.)

    Args:
        unfreeze_backbone_at_epoch: the epoch, from 0, in which the backbone is trained for the first time.
        backbone_initial_ratio_lr: the learning rate of the backbone, as a share of that of the rest.
        train_bn: whether batch normalisation in the backbone is trained from the beginning, at the rate of the rest.
    """

    def __init__(self, unfreeze_backbone_at_epoch: int, backbone_initial_ratio_lr: float, train_bn: bool) -> None:
        super().__init__(
            unfreeze_backbone_at_epoch,
            lambda_func=_unchanged,
            backbone_initial_ratio_lr=backbone_initial_ratio_lr,
            train_bn=train_bn,
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes on where a resumed run was.

        Raises:
            MisconfigurationException: if the model has no backbone, or the scheduler cannot take it in later.
        """
        super().on_fit_start(trainer, pl_module)
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, CosineAnnealingLR | OneCycleLR):
                raise MisconfigurationException(
                    f"{type(config.scheduler).__name__} plans the rates of all parameters at the start, and the "
                    "backbone comes later: take scheduler=constant, step or plateau, or callbacks.fine_tuning=null."
                )
        if self.previous_backbone_lr is not None:
            self.make_trainable(pl_module.backbone)


def _unchanged(epoch: int) -> float:
    """The factor by which the rate of the backbone changes from epoch to epoch."""
    return 1.0
