"""Checks early in training that every monitored metric is logged."""

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
    """Rejects a ``monitor`` of checkpoints, early stopping, or a plateau scheduler that is not a logged metric.

    Names that begin with ``val`` are checked after the sanity check or, without one, after the first validation; all
    other names at the end of the first epoch with a validation. Lightning trains an epoch first, lists all metrics, and
    raises a RuntimeError for early stopping.

    Args:
        config_path: The composed config that Hydra writes into the run folder, for the name of the key.
    """

    def __init__(self, config_path: str) -> None:
        self.config_path = Path(config_path)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Runs last except for checkpoints, so that it sees what other callbacks log.
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
                    f"Two callbacks write {name}.ckpt and would overwrite each other. Rename one, for example: "
                    "callbacks.best_checkpoint.filename=best"
                )
            if top not in (0, 1) and name and "{" not in name and not has_version_counter(checkpoint):
                # Lightning would write all to the same file and report the last one as the best.
                raise MisconfigurationException(
                    f"save_top_k is {top}, but every checkpoint would be {name}.ckpt. Give each its own name: "
                    f"callbacks.best_checkpoint.filename=\"'{name}-{{epoch}}'\""
                )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the monitors that begin with ``val``.

        Raises:
            MisconfigurationException: If no validation metric has the name of a monitor.
        """
        if not self.knows_validation:
            self._check(trainer, is_validation=True)
        self.knows_validation = True
        # Lightning discards the metrics of the sanity check.
        self.has_validated |= not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check all monitors, unless the model logs more metrics in its own, later ``on_train_epoch_end``.

        Raises:
            MisconfigurationException: If no metric has the name of a monitor.
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
            raise MisconfigurationException(f"{key} is {monitor}, but no such metric is logged.{choices}")

    def _keys(self, monitor: str) -> Iterator[str]:
        """Yield the config keys with this value, such as ``callbacks.best_checkpoint.monitor``."""

        def walk(config: Any, name: str) -> Iterator[str]:
            for key, value in config.items() if isinstance(config, dict) else ():
                if key == "monitor" and value == monitor:
                    yield f"{name}{key}"
                yield from walk(value, f"{name}{key}.")

        if self.config_path.exists():
            yield from walk(OmegaConf.to_container(OmegaConf.load(self.config_path)), "")


def _monitors(trainer: Trainer) -> Iterator[str]:
    """Yield the metrics that must be logged."""
    for callback in trainer.checkpoint_callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor and monitor not in ("epoch", "step"):  # ModelCheckpoint adds these two itself.
            yield monitor
    yield from (callback.monitor for callback in trainer.early_stopping_callbacks if callback.strict)
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.strict and config.monitor:
            yield config.monitor
