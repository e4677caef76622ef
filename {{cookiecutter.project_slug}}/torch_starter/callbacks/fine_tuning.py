"""First the head of a pretrained network, then all of it."""

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from ..schedulers import WarmupCosine


class FineTuning(BackboneFinetuning):
    """Trains what is not the ``backbone`` of the model at first, and the backbone later, at a lower rate.

    (Lightning's BackboneFinetuning trains batch normalisation from the beginning, doubles the rate of the backbone each
    epoch until it is that of the rest, and leaves the backbone frozen if a run is resumed after it was thawed.)

    Args:
        unfreeze_backbone_at_epoch: the epoch, from 0, in which the backbone is trained for the first time.
        backbone_initial_ratio_lr: the learning rate of the backbone, as a share of that of the rest.
    """

    def __init__(self, unfreeze_backbone_at_epoch: int, backbone_initial_ratio_lr: float) -> None:
        super().__init__(
            unfreeze_backbone_at_epoch,
            lambda_func=_unchanged,
            backbone_initial_ratio_lr=backbone_initial_ratio_lr,
        )

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        if not hasattr(pl_module, "backbone"):
            raise MisconfigurationException(
                "FineTuning needs a backbone, as model=resnet18 has it. Without it: callbacks.fine_tuning=null."
            )
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        super().finetune_function(pl_module, epoch, optimizer)
        # Lightning knows of one group, which may have been split by optimizer.no_decay.
        backbone = set(pl_module.backbone.parameters())
        for group in optimizer.param_groups:
            if backbone.issuperset(group["params"]):
                group["lr"] = optimizer.param_groups[-1]["lr"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        if trainer.current_epoch == self.unfreeze_backbone_at_epoch:
            _share_gradients(trainer)
        self.on_train_start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # What is frozen gives in training what it gives in validation: no dropout, no statistics of the batch.
        pl_module.backbone.train(trainer.current_epoch >= self.unfreeze_backbone_at_epoch)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes on where a resumed run was.

        Raises:
            MisconfigurationException: if the scheduler cannot take in the backbone later.
        """
        super().on_fit_start(trainer, pl_module)
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, CosineAnnealingLR | OneCycleLR | WarmupCosine):
                raise MisconfigurationException(
                    f"{type(config.scheduler).__name__} plans the rates of all parameters at the start, and the "
                    "backbone comes later: take scheduler=constant, step or plateau, or callbacks.fine_tuning=null."
                )
        if self.previous_backbone_lr is not None:
            self.make_trainable(pl_module.backbone)
            _share_gradients(trainer)


def _share_gradients(trainer: Trainer) -> None:
    """Of several processes, also those of the backbone: DDP shares what could be trained when it was set up."""
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy.model = trainer.lightning_module
        trainer.strategy.configure_ddp()


def _unchanged(epoch: int) -> float:
    """The factor by which the rate of the backbone changes from epoch to epoch."""
    return 1.0
