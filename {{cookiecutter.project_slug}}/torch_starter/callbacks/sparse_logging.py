"""What a model logs in its steps, without what nobody sees."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from torchmetrics import Metric

from ..optimization import is_logged


class SparseLogging(Callback):
    """Lets a model call ``self.log`` in each step, as simply as it can be written, and not pay for it.

    ``log`` takes longer than a training step of a small network. So it does nothing where nothing would come of it:

    - in training, for a value that no logger writes in this step, unless a validation follows, that shows it too;
    - for a ``torchmetrics.Metric`` that is computed at the end of the epoch, after the first step.

    A mean over the steps of an epoch (``on_epoch=True``) is not left out. With several processes each value is the mean
    over all of them, weighted by their shares of the batch.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.trainer = trainer
        self.batch: Any = None  # while a step is under way
        self.is_training_step = False
        self.metrics: set[str] = set()  # those of this epoch that are logged already
        vars(pl_module).pop("log", None)  # of a stage that ended by an exception
        pl_module.log = _Log(self, pl_module.log)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        vars(pl_module).pop("log", None)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.metrics.clear()

    on_validation_epoch_start = on_test_epoch_start = on_train_epoch_start

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batch, self.is_training_step = batch, True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batch, self.is_training_step = None, False

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.batch = batch

    on_test_batch_start = on_validation_batch_start

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        self.batch = None

    on_test_batch_end = on_validation_batch_end

    def is_seen(self) -> bool:
        """Whether a logger writes in this training step, or a validation follows."""
        trainer = self.trainer
        is_validated = (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
        return (trainer.is_last_batch and is_validated) or is_logged(trainer, trainer.global_step + 1)


class _Log:
    """``LightningModule.log``, called only if something comes of it."""

    def __init__(self, callback: SparseLogging, log: Any) -> None:
        self.callback = callback
        self.log = log

    def __call__(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        callback = self.callback
        if isinstance(value, Metric):
            if options.get("on_step") is False:
                if name in callback.metrics:
                    return
                callback.metrics.add(name)
        elif callback.is_training_step and not args and not options.get("on_epoch") and not callback.is_seen():
            return
        elif callback.trainer.world_size > 1 and callback.batch is not None:
            options.setdefault("sync_dist", True)
            # A float: Lightning's mean over processes rounds whole numbers down.
            options.setdefault("batch_size", float(extract_batch_size(callback.batch)))
        self.log(name, value, *args, **options)

    def __deepcopy__(self, memo: Any) -> "_Log":
        return self  # averaging of weights copies the model
