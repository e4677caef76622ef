"""Descriptions of runs for loggers: hyperparameters, config, and model graph."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from omegaconf import OmegaConf
from torch.utils.tensorboard.summary import hparams

from .. import tracking
from ..compat import disable_compiled_modules
from ..figures import remove_callback
from ..saved_config import hyperparameters

log = logging.getLogger(__name__)


class RunDescription(Callback):
    """Logs the hyperparameters to every logger, the config to all but CSVLogger, and the model graph to TensorBoard.

    TensorBoard's HPARAMS tab finds the hyperparameters that differ between runs and shows them first, next to the last
    value of each curve. Lightning's logger would write a list of columns with each run. TensorBoard only reads the
    first list, so it would hide keys that only later runs have.

    Args:
        config_path: The composed config that Hydra writes into the run folder.
    """

    def __init__(self, config_path: str) -> None:
        self.config_path = Path(config_path)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.text = self.config_path.read_text(encoding="utf-8")
            self.values = dict(hyperparameters(OmegaConf.to_container(OmegaConf.create(self.text))))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers if trainer.is_global_zero else []:
            tracking.log_config(logger, self.values, self.text)
            if isinstance(logger, TensorBoardLogger):
                # Lightning writes hparams.yaml before this hook, still empty, and never again.
                Path(logger.log_dir, logger.NAME_HPARAMS_FILE).unlink(missing_ok=True)
                logger.save()
                logger.experiment.add_text("config", f"```yaml\n{self.text}```")
                # torch would log true and false as 1 and 0.
                values = {name: str(value) if isinstance(value, bool) else value for name, value in self.values.items()}
                _, session_start, _ = hparams(values, metric_dict={})
                logger.experiment.file_writer.add_summary(session_start)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        is_start = trainer.global_step == batch_idx == 0
        # Under FSDP, the model can only run on all ranks at once.
        alone = trainer.is_global_zero and not isinstance(trainer.strategy, FSDPStrategy)
        for logger in trainer.loggers if is_start and alone else []:
            if isinstance(logger, TensorBoardLogger):
                _add_graph(logger, pl_module, batch)
        remove_callback(trainer, self)


def _add_graph(logger: TensorBoardLogger, model: LightningModule, batch: Any) -> None:
    try:
        # Tracing runs the model and must not change later random numbers.
        with disable_compiled_modules(model), torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit, which TensorBoard's graphs use, is deprecated.
            logger.experiment.add_graph(model, batch[0][:1])
    except Exception as error:  # Some batches and networks cannot be traced.
        log.info(f"TensorBoard shows no graph of the model: {str(error).partition(chr(10))[0]}")
