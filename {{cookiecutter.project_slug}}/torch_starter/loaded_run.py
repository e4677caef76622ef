"""A finished run in Python: its config, its data, its trained model, its metrics and predictions."""

import functools
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from . import checkpoints, processes, project, run_lookup
from .compat import instantiate_only_targets_of
from .files import read_json
from .mistakes import UserError
from .saved_config import read_config

if TYPE_CHECKING:
    from lightning import LightningDataModule, LightningModule, Trainer
    from torch import Tensor

# A run is asked on one device, whatever it was trained on.
ON_ONE_DEVICE = (
    "++trainer.accelerator=auto",
    "++trainer.devices=1",
    "++trainer.num_nodes=1",
    "++trainer.strategy=auto",
)
# The one configured callback that is used here: it writes nothing, and the paths of the others were not checked.
KNOWN_BATCHES = {"_target_": "torch_starter.callbacks.known_batches.KnownBatches"}


@dataclass
class Run:
    """A run, as ``load_run`` loads it.

    Attributes:
        folder: the run folder, an absolute path.
        config: the composed config, with the changes that were asked for.
        data: the LightningDataModule; it has read nothing yet.
        trainer: with which the run is asked: on one device, and without loggers and checkpoints.
        checkpoint: the file of the weights.
        module: the LightningModule, whose weights ``trainer`` loads when it is used; see ``model``.
    """

    folder: Path
    config: DictConfig
    data: "LightningDataModule"
    trainer: "Trainer"
    checkpoint: Path
    module: "LightningModule"

    @functools.cached_property
    def model(self) -> "LightningModule":
        """The LightningModule in eval mode, with the weights of ``checkpoint``, as float32 on the CPU."""
        saved = checkpoints.read(self.checkpoint)
        self.module.configure_model()
        self.module.on_load_checkpoint(saved)
        self.module.load_state_dict(saved["state_dict"], strict=self.module.strict_loading)
        return self.module.eval()

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics in results.json, by name; empty if the run is not finished."""
        return (read_json(self.folder / "results.json") or {}).get("metrics", {})

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """The metrics of a split, by name.

        Args:
            split: ``train``, ``val`` or ``test``. The training samples are as training sees them, unless the run was
                loaded with ``is_augmented=False``, as `evaluate.py` does it.

        Raises:
            Mistake: if nothing was measured.
        """
        options: Any = {"ckpt_path": self.checkpoint, "weights_only": True, "verbose": False}
        if split == "test":
            found = self.trainer.test(self.module, self.data, **options)
        elif split == "val":
            found = self.trainer.validate(self.module, self.data, **options)
        else:
            # Lightning validates on whatever it is given, and calls it so.
            self.data.prepare_data()
            self.data.setup("fit")
            limit, self.trainer.limit_val_batches = self.trainer.limit_val_batches, self.trainer.limit_train_batches
            try:
                found = self.trainer.validate(self.module, self.data.train_dataloader(), **options)
            finally:
                self.trainer.limit_val_batches = limit
            found = [{name.replace("val/", "train/", 1): value for name, value in metrics.items()} for metrics in found]
        if not found:
            raise UserError(f"Nothing was measured: {split} has no batch, or trainer.limit_…_batches is 0.")
        (metrics,) = found
        return dict(metrics)

    def predict(
        self,
        inputs: "str | Path | float | Sequence[object] | Mapping[str, object] | Tensor",
        top: int | None = None,
        probabilities: bool = False,
    ) -> list[dict[str, Any]]:
        """The rows that `predict.py` prints, in the order of the inputs.

        Args:
            inputs: a number or the path of an image, folder or table, as `predict.py` takes them, or several; the cells
                of one row of a table, by column; or a tensor (N, …) of samples as the data module serves them, which
                are then called 0, 1, ….
            top: how many of the likeliest classes a row has; None: the first.
            probabilities: whether a row has the probability of each class.

        Returns:
            for each input a dict of its name, ``input``, and the columns of the model.

        Raises:
            Mistake: if an input cannot be read.
        """
        from torch import Tensor

        from .prediction import find_inputs, predict, predict_tensor

        rows: list[dict[str, Any]] = []
        if isinstance(inputs, Tensor):
            predict_tensor(self, inputs, rows.extend, top, probabilities)
            return rows
        if isinstance(inputs, Mapping):
            inputs = [f"{column}={'' if value is None else value}" for column, value in inputs.items()]
        words = [inputs] if isinstance(inputs, str | Path | int | float) else inputs
        names = find_inputs(self, [str(word) for word in words])
        unreadable = predict(self, names, rows.extend, top=top, has_probabilities=probabilities)
        if unreadable:
            raise UserError("\n".join(unreadable))
        return rows


def load_run(
    run: str | Path = "latest", checkpoint: str = "best", overrides: Sequence[str] = (), is_augmented: bool = True
) -> Run:
    """Loads a run, and trusts its folder no more than `evaluate.py` does: see torch_starter/untrusted_run_folders.md.

    Args:
        run: a run folder, or ``latest``: the one beneath ``outputs`` that was started or resumed last.
        checkpoint: the name of a file in its ``checkpoints``: ``best`` or ``last``.
        overrides: ``key=value``, as on the command line.
        is_augmented: whether the training split is served as training sees it.

    Returns:
        the run, on one device, without loggers: using it writes nothing. (The ranks that torchrun or SLURM have set in
        the environment are removed.)

    Raises:
        Mistake: if there is no such run or checkpoint, or something in the folder is refused.
    """
    if str(project.ROOT) not in sys.path:
        sys.path.insert(0, str(project.ROOT))  # where the user's package is
    # A notebook may lie in a folder of its own.
    outputs = run_lookup.OUTPUTS if run_lookup.OUTPUTS.is_dir() else project.ROOT / "outputs"
    folder = run_lookup.find_folder(run, run_lookup.has_checkpoint, outputs)
    processes.ignore_ranks()
    config = read_config(folder, [*ON_ONE_DEVICE, *overrides], is_trained=False)
    path = checkpoints.find(folder, checkpoint)
    if "compile" in config.model:
        config.model.compile = False  # it takes a minute, which one pass over the data does not repay
    if not is_augmented and "augmentation" in config.data:
        config.data.augmentation = None
    if not is_augmented and config.data.get("balance") is True:
        config.data.balance = False
    # What Lightning says about itself, as configs/train.yaml has it.
    from . import quiet  # noqa: F401
    from .callbacks.epoch_metrics import EpochMetrics
    from .callbacks.sparse_logging import SparseLogging

    for name in ("utilities.rank_zero", "accelerators.cuda"):
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.WARNING)
    with instantiate_only_targets_of(config):
        data = hydra.utils.instantiate(config.data, _convert_="all")
        model = hydra.utils.instantiate(config.model, _convert_="all")
        trainer = hydra.utils.instantiate(config.trainer, logger=False, enable_checkpointing=False)
        if trainer.num_devices * trainer.num_nodes > 1:  # each process would start the command once more
            raise UserError(
                f"trainer.devices={config.trainer.devices} trainer.num_nodes={config.trainer.num_nodes}: evaluate.py, "
                "predict.py and export.py use one device. Remove these overrides, or choose one GPU of several: "
                "trainer.devices=[1]"
            )
        if config.callbacks.get("known_batches") == KNOWN_BATCHES:
            trainer.callbacks.append(hydra.utils.instantiate(KNOWN_BATCHES))
        trainer.callbacks += [SparseLogging(), EpochMetrics()]
    return Run(folder, config, data, trainer, path, model)
