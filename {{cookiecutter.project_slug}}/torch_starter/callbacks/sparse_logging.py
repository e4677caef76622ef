"""Cheap ``self.log`` calls in training and evaluation steps."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torchmetrics import Metric

from ..compat import add_to_mean, current_hook, logged_batches, skip_empty_hooks
from ..optimization import is_logged, is_validated


class SparseLogging(Callback):
    """Makes plain ``self.log`` calls in each step cheap by skipping those without effect.

    ``log`` takes longer than a training step of a small network. It is skipped:

    - in training, for a value that no logger writes in this step, except in the last step of an epoch; if each epoch is
      a single step, except in validated epochs;
    - for a ``torchmetrics.Metric`` that is computed at the end of the epoch, after the first step.

    In validation and test, further values of a mean are added directly, without the checks of ``log``.

    A mean over the steps of an epoch (``on_epoch=True``) is never skipped. In distributed training, logged values are
    averaged over all ranks, in validation and test weighted by the ranks' shares of the batch, so every rank must log
    them. ``rank_zero_only=True`` has its usual effect.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        skip_empty_hooks(trainer)
        self.trainer = trainer
        self.batch: Any = None  # set during a step
        self.is_training_step = False
        self.dataloader_idx: int | None = None  # None: a single loader
        self.metrics: set[Any] = set()  # logged already in this epoch
        self.means: dict[Any, Any] = {}  # of this evaluation epoch, with the options of their first value
        vars(pl_module).pop("log", None)  # left over if an exception ended a stage
        pl_module.log = _Log(self, pl_module, pl_module.log)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        vars(pl_module).pop("log", None)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.metrics.clear()
        self.means.clear()

    on_validation_epoch_start = on_test_epoch_start = on_train_epoch_start

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batch, self.dataloader_idx, self.is_training_step = batch, None, True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batch, self.is_training_step = None, False

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int | None = None,
    ) -> None:
        self.batch, self.dataloader_idx = batch, dataloader_idx

    on_test_batch_start = on_validation_batch_start

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        self.batch = None

    on_test_batch_end = on_validation_batch_end

    def should_log(self) -> bool:
        """Return whether a logger writes in this training step, or the step is the last one of an epoch."""
        trainer = self.trainer
        is_last = trainer.is_last_batch and (is_validated(trainer) or trainer.num_training_batches > 1)
        return is_last or is_logged(trainer, logged_batches(trainer) + 1)


class _Log:
    """Wraps ``LightningModule.log`` and skips calls without effect."""

    def __init__(self, callback: SparseLogging, model: LightningModule, log: Any) -> None:
        self.callback = callback
        self.model = model
        self.log = log

    def __call__(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        callback = self.callback
        if isinstance(value, Metric):
            if options.get("on_step") is False:
                if (name, callback.dataloader_idx) in callback.metrics:
                    return
                callback.metrics.add((name, callback.dataloader_idx))
        elif callback.is_training_step and not args and not options.get("on_epoch") and not callback.should_log():
            return
        elif callback.batch is not None:
            if callback.trainer.world_size > 1 and not options.get("rank_zero_only"):
                options["sync_dist"] = True
                if options.get("batch_size") is None:
                    # A float, because Lightning's mean over ranks rounds integers down.
                    options["batch_size"] = float(extract_batch_size(callback.batch))
            if not args and self._add_to_mean(name, value, dict(options)):
                return
        self.log(name, value, *args, **options)

    def _add_to_mean(self, name: str, value: Any, options: dict[str, Any]) -> bool:
        """Add a value to an existing mean of this evaluation; return False if there is none."""
        callback = self.callback
        is_number = isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 0
        if callback.is_training_step or callback.dataloader_idx is not None or not is_number:
            return False
        batch_size = options.pop("batch_size", None)
        first = callback.means.setdefault((current_hook(self.model), name), options)
        if first is options or first != options or options.get("on_step") or "reduce_fx" in options:
            return False
        add_to_mean(self.model, name, value, batch_size or extract_batch_size(callback.batch))
        return True

    def __deepcopy__(self, memo: Any) -> "_Log":
        return self  # Weight averaging copies the model.
