"""Finds a metric that is monitored and never measured, before it costs an epoch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

from ..compat import has_version_counter
from ..figures import remove_callback
from ..mistakes import nearest


class KnownMonitors(Callback):
    """Refuses a ``monitor`` of checkpoints, early stopping or a plateau scheduler that no metric has the name of.

    A name that begins with ``val`` is known after the sanity check or, without one, after the first validation; any
    other at the end of the first epoch that has a validation. (Lightning trains an epoch first, lists all metrics, and
    raises a RuntimeError for early stopping.)

    Args:
        config_path: the composed config, as Hydra writes it into the run folder, to name the key.
    """

    def __init__(self, config_path: str) -> None:
        self.config_path = Path(config_path)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Last of all but the checkpoints, so that it knows what the other callbacks log.
        others = [callback for callback in trainer.callbacks if callback is not self]
        checkpoints = [callback for callback in others if isinstance(callback, Checkpoint)]
        trainer.callbacks = [*(other for other in others if other not in checkpoints), self, *checkpoints]
        self.knows_validation = self.has_validated = False
        checkpoints = [callback for callback in checkpoints if isinstance(callback, ModelCheckpoint)]
        files = [(checkpoint.dirpath, checkpoint.filename) for checkpoint in checkpoints]
        for checkpoint, file in zip(checkpoints, files, strict=True):
            name, top = checkpoint.filename, checkpoint.save_top_k
            if name and files.count(file) > 1:
                raise MisconfigurationException(
                    f"Two callbacks write {name}.ckpt, and one would replace the other. Give one another name, as in "
                    "callbacks.best_checkpoint.filename=best"
                )
            if top not in (0, 1) and name and "{" not in name and not has_version_counter(checkpoint):
                # Lightning would write each to the same file, and call the last one the best.
                raise MisconfigurationException(
                    f"save_top_k is {top}, but each checkpoint would be {name}.ckpt. Give them names of their own: "
                    f"callbacks.best_checkpoint.filename=\"'{name}-{{epoch}}'\""
                )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The names of the validation.

        Raises:
            MisconfigurationException: if a monitor begins with ``val`` and is not among them.
        """
        if not self.knows_validation:
            self._check(trainer, is_validation=True)
        self.knows_validation = True
        # Lightning forgets what the sanity check has measured.
        self.has_validated |= not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All names, except those that the model itself logs in ``on_train_epoch_end``, which comes later.

        Raises:
            MisconfigurationException: if a monitor is not among them.
        """
        if not self.has_validated:
            return
        if type(pl_module).on_train_epoch_end is LightningModule.on_train_epoch_end:
            self._check(trainer, is_validation=False)
        remove_callback(trainer, self)

    def _check(self, trainer: Trainer, is_validation: bool) -> None:
        names = [name for name in trainer.callback_metrics if name.startswith("val") or not is_validation]
        for monitor in _monitors(trainer):
            if monitor in names or (is_validation and not monitor.startswith("val")):
                continue
            key = next(self._keys(monitor), "monitor")
            choices = nearest(monitor, names) or "\nChoices: none"
            raise MisconfigurationException(f"{key} is {monitor}, which is not measured.{choices}")

    def _keys(self, monitor: str) -> Iterator[str]:
        """The keys of the config, such as ``callbacks.best_checkpoint.monitor``, with that value."""

        def walk(config: Any, name: str) -> Iterator[str]:
            for key, value in config.items() if isinstance(config, dict) else ():
                if key == "monitor" and value == monitor:
                    yield f"{name}{key}"
                yield from walk(value, f"{name}{key}.")

        if self.config_path.exists():
            yield from walk(OmegaConf.to_container(OmegaConf.load(self.config_path)), "")


def _monitors(trainer: Trainer) -> Iterator[str]:
    """What must be measured."""
    for callback in trainer.checkpoint_callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor and monitor not in ("epoch", "step"):  # which ModelCheckpoint knows by itself
            yield monitor
    yield from (callback.monitor for callback in trainer.early_stopping_callbacks if callback.strict)
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.strict and config.monitor:
            yield config.monitor
