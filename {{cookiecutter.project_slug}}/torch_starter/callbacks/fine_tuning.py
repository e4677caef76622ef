"""Fine-tuning of pretrained networks: first the head, then the whole network."""

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from ..schedulers import WarmupCosine


class FineTuning(BackboneFinetuning):
    """Freezes the ``backbone`` of the model at first and trains it later, at a lower learning rate.

    Lightning's BackboneFinetuning trains batch normalization from the start, doubles the learning rate of the backbone
    in each epoch until it reaches the rate of the head, and leaves the backbone frozen if a run is resumed after
    unfreezing.

    Args:
        unfreeze_backbone_at_epoch: The first epoch, from 0, in which the backbone is trained.
        backbone_initial_ratio_lr: The learning rate of the backbone as a fraction of the rate of the head.
    """

    def __init__(self, unfreeze_backbone_at_epoch: int, backbone_initial_ratio_lr: float) -> None:
        super().__init__(
            unfreeze_backbone_at_epoch,
            lambda_func=_constant_factor,
            backbone_initial_ratio_lr=backbone_initial_ratio_lr,
        )

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        if not hasattr(pl_module, "backbone"):
            raise MisconfigurationException(
                "FineTuning needs a model with a backbone, such as model=resnet18. To disable fine-tuning: "
                "callbacks.fine_tuning=null."
            )
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        super().finetune_function(pl_module, epoch, optimizer)
        # Lightning expects one group, but optimizer.no_decay may have split it.
        backbone = set(pl_module.backbone.parameters())
        for group in optimizer.param_groups:
            if backbone.issuperset(group["params"]):
                group["lr"] = optimizer.param_groups[-1]["lr"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        if trainer.current_epoch == self.unfreeze_backbone_at_epoch:
            _rebuild_ddp(trainer)
        self.on_train_start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A frozen backbone behaves in training as in validation: no dropout, no batch statistics.
        pl_module.backbone.train(trainer.current_epoch >= self.unfreeze_backbone_at_epoch)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the state of a resumed run.

        Raises:
            MisconfigurationException: If the scheduler does not support adding the backbone later.
        """
        super().on_fit_start(trainer, pl_module)
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, CosineAnnealingLR | OneCycleLR | WarmupCosine):
                raise MisconfigurationException(
                    f"{type(config.scheduler).__name__} sets the learning rates of all parameters at the start, but "
                    "the backbone is added later. Use scheduler=constant, step, or plateau, or set "
                    "callbacks.fine_tuning=null."
                )
        if self.previous_backbone_lr is not None:
            self.make_trainable(pl_module.backbone)
            _rebuild_ddp(trainer)


def _rebuild_ddp(trainer: Trainer) -> None:
    """Make DDP synchronize the gradients of the backbone; it only knows the parameters that were trainable at setup."""
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy.model = trainer.lightning_module
        trainer.strategy.configure_ddp()


def _constant_factor(epoch: int) -> float:
    """Return the factor by which the learning rate of the backbone changes in each epoch."""
    return 1.0
