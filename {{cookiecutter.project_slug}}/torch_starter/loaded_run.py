"""Load a run in Python: its config, data, trained model, metrics and predictions."""

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

# Loaded runs use one device, regardless of how they were trained.
ON_ONE_DEVICE = (
    "++trainer.accelerator=auto",
    "++trainer.devices=1",
    "++trainer.num_nodes=1",
    "++trainer.strategy=auto",
)
# The only configured callback that is used here: it writes nothing, and the paths of the others were not checked.
KNOWN_BATCHES = {"_target_": "torch_starter.callbacks.known_batches.KnownBatches"}


@dataclass
class Run:
    """A run that ``load_run`` has loaded.

    Attributes:
        folder: The absolute path of the run folder.
        config: The composed config, including overrides.
        data: The LightningDataModule; it has not read any data yet.
        trainer: The Trainer for evaluation and prediction, on one device, without loggers and checkpoints.
        checkpoint: The checkpoint with the weights.
        module: The LightningModule. ``trainer`` loads its weights on use; see ``model``.
    """

    folder: Path
    config: DictConfig
    data: "LightningDataModule"
    trainer: "Trainer"
    checkpoint: Path
    module: "LightningModule"

    @functools.cached_property
    def model(self) -> "LightningModule":
        """LightningModule in eval mode, with the weights of ``checkpoint``, as float32 on the CPU."""
        saved = checkpoints.read(self.checkpoint)
        self.module.configure_model()
        self.module.on_load_checkpoint(saved)
        self.module.load_state_dict(saved["state_dict"], strict=self.module.strict_loading)
        return self.module.eval()

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics in results.json, by name; empty if the run is not finished."""
        return (read_json(self.folder / "results.json") or {}).get("metrics", {})

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """Evaluate the run on a split.

        Args:
            split: ``train``, ``val`` or ``test``. Training samples are augmented as in training, unless the run was
                loaded with ``is_augmented=False``, as `evaluate.py` does.

        Returns:
            The metrics by name.

        Raises:
            UserError: If the split has no batches.
        """
        options: Any = {"ckpt_path": self.checkpoint, "weights_only": True, "verbose": False}
        if split == "test":
            found = self.trainer.test(self.module, self.data, **options)
        elif split == "val":
            found = self.trainer.validate(self.module, self.data, **options)
        else:
            # Lightning has no evaluation on training data, so validate on it and rename the metrics.
            self.data.prepare_data()
            self.data.setup("fit")
            limit, self.trainer.limit_val_batches = self.trainer.limit_val_batches, self.trainer.limit_train_batches
            try:
                found = self.trainer.validate(self.module, self.data.train_dataloader(), **options)
            finally:
                self.trainer.limit_val_batches = limit
            found = [{name.replace("val/", "train/", 1): value for name, value in metrics.items()} for metrics in found]
        if not found:
            raise UserError(f"The {split} split was not evaluated: it has no batches, or trainer.limit_…_batches is 0.")
        (metrics,) = found
        return dict(metrics)

    def predict(
        self,
        inputs: "str | Path | float | Sequence[object] | Mapping[str, object] | Tensor",
        top: int | None = None,
        probabilities: bool = False,
    ) -> list[dict[str, Any]]:
        """Return the rows that `predict.py` prints, in the order of the inputs.

        Args:
            inputs: One or several numbers or paths of images, folders or tables, as for `predict.py`; the cells of one
                row of a table, by column; or a tensor ``(N, …)`` of samples as the data module serves them, which are
                then named 0, 1, ….
            top: The number of most likely classes in a row; None: only the most likely class.
            probabilities: Whether rows contain the probability of each class.

        Returns:
            A dict for each input, with its name as ``input`` and the columns of the model.

        Raises:
            UserError: If an input cannot be read.
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
    """Load a run, with the same protection from untrusted run folders as `evaluate.py`.

    See torch_starter/untrusted_run_folders.md. Removes the ranks that torchrun or SLURM have set in the environment.

    Args:
        run: A run folder, or ``latest``: the run in ``outputs`` that was started or resumed last.
        checkpoint: The name of a file in its ``checkpoints``: ``best`` or ``last``.
        overrides: Overrides ``key=value``, as on the command line.
        is_augmented: Whether the training split is augmented and balanced as in training.

    Returns:
        The run, on one device, without loggers. Using it writes no files.

    Raises:
        UserError: If the run or the checkpoint does not exist, or something in the folder is refused.
    """
    if str(project.ROOT) not in sys.path:
        sys.path.insert(0, str(project.ROOT))  # contains the user's package
    # A notebook may be in another folder.
    outputs = run_lookup.OUTPUTS if run_lookup.OUTPUTS.is_dir() else project.ROOT / "outputs"
    folder = run_lookup.find_folder(run, run_lookup.has_checkpoint, outputs)
    processes.ignore_ranks()
    config = read_config(folder, [*ON_ONE_DEVICE, *overrides], is_trained=False)
    path = checkpoints.find(folder, checkpoint)
    if "compile" in config.model:
        config.model.compile = False  # compiling takes a minute, more than one pass over the data saves
    if not is_augmented and "augmentation" in config.data:
        config.data.augmentation = None
    if not is_augmented and config.data.get("balance") is True:
        config.data.balance = False
    # Reduce the output of Lightning as configs/train.yaml does.
    from . import quiet  # noqa: F401
    from .callbacks.epoch_metrics import EpochMetrics
    from .callbacks.sparse_logging import SparseLogging

    for name in ("utilities.rank_zero", "accelerators.cuda"):
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.WARNING)
    with instantiate_only_targets_of(config):
        data = hydra.utils.instantiate(config.data, _convert_="all")
        model = hydra.utils.instantiate(config.model, _convert_="all")
        trainer = hydra.utils.instantiate(config.trainer, logger=False, enable_checkpointing=False)
        if trainer.num_devices * trainer.num_nodes > 1:  # each rank would start the command again
            raise UserError(
                f"trainer.devices={config.trainer.devices} trainer.num_nodes={config.trainer.num_nodes}: evaluate.py, "
                "predict.py and export.py use one device. Remove these overrides, or select a single GPU: "
                "trainer.devices=[1]"
            )
        if config.callbacks.get("known_batches") == KNOWN_BATCHES:
            trainer.callbacks.append(hydra.utils.instantiate(KNOWN_BATCHES))
        trainer.callbacks += [SparseLogging(), EpochMetrics()]
    return Run(folder, config, data, trainer, path, model)
