"""The checkpoint that a run goes on from."""

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Writes ``last.ckpt`` at the end of each epoch, never in the middle of one, so that a resumed run is the same run.

    Where an epoch takes less time than its validation and its checkpoint, ``times`` makes both rarer: after the first
    epoch, for what watches a metric needs one, and then so many times, spread evenly, the last time after the last
    epoch. A run with fewer epochs, or one that ends by ``max_steps``, has them in each; one that is ended by something
    else, such as early stopping, still has a checkpoint of its last epoch. What is lost when a run is stopped are the
    epochs since the last of them, and a plateau scheduler or early stopping counts these validations.
    (A ``trainer.check_val_every_n_epoch`` that is not 1 has its way, and only checkpoints are rarer.)

    Args:
        dirpath: the folder for it.
        times: see above; None: a checkpoint after every epoch, and validations as the trainer has them.
    """

    def __init__(self, dirpath: str, times: int | None) -> None:
        super().__init__(dirpath, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.times = times

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.validates = self.times is not None and trainer.check_val_every_n_epoch == 1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.validates:
            return
        is_due = self._is_due(trainer)
        # Lightning validates in the epochs, counted from 1, that are multiples of this number.
        trainer.check_val_every_n_epoch = 1 if is_due else trainer.current_epoch + 2
        for config in trainer.lr_scheduler_configs:
            # What waits for a better metric counts validations: without one the metric is the former, and not better.
            if config.reduce_on_plateau and config.interval == "step":
                config.frequency = int(trainer.num_training_batches) + (0 if is_due else 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_due(trainer) or trainer.should_stop:
            super().on_train_epoch_end(trainer, pl_module)

    def _is_due(self, trainer: Trainer) -> bool:
        epoch, epochs = trainer.current_epoch, trainer.max_epochs or -1
        if self.times is None or epochs < 0 or trainer.max_steps > 0:
            return True
        return epoch == 0 or (epoch + 1) * self.times // epochs > epoch * self.times // epochs
