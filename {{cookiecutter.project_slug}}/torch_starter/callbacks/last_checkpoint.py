"""The checkpoint that a run goes on from."""

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Writes ``last.ckpt`` at the end of each epoch, never in the middle of one, so that a resumed run is the same run.

    An epoch that ``max_time``, ``max_steps`` or early stopping cuts short is not saved; one that ends the run is.

    Args:
        dirpath: the folder for it.
        times: that it is written in a run, spread evenly over its epochs, the last time after the last one. A run of
            unknown length, or one that ends by ``max_steps``, has it in each. None: after each epoch.
    """

    def __init__(self, dirpath: str, times: int | None) -> None:
        super().__init__(dirpath, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.times = times

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_last_batch and (self._is_due(trainer) or trainer.should_stop):
            super().on_train_epoch_end(trainer, pl_module)

    def _is_due(self, trainer: Trainer) -> bool:
        epoch, epochs = trainer.current_epoch, trainer.max_epochs or -1
        if self.times is None or epochs < 0 or trainer.max_steps > 0:
            return True
        return (epoch + 1) * self.times // epochs > epoch * self.times // epochs
