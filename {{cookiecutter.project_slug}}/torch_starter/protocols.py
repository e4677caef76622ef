"""What this package asks of a project's data modules, models and loaders, beyond Lightning's own hooks.

Nothing has to inherit from these classes, and all of it is optional: each entry says what happens without it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn
from torchmetrics import MetricCollection


class DataModule(Protocol):
    """A LightningDataModule.

    Attributes:
        batch_size: samples per step, of all processes together; `predict.py` predicts as many at once. Without it: 32.
        eval_batch_size: samples per step of validation and test; None: see ``data/evaluation.py``. For the data module
            to read; without it, it decides by itself.
        num_workers: processes with which `predict.py` reads inputs, 0 for none, None for as many as suit the machine.
            Without it: 0.
        augmentation: an argument of this name, if the config has it, is None where training samples are measured as
            they are, as in `evaluate.py --split train`. Without it: they are as training sees them.
        balance: an argument of this name, if the config has it, is False there, so that each sample is measured once.
        class_names: by label; `predict.py` prints them in the column ``label``. Without it: numbers.
        image_shape: channels, height and width. Before training a model is tried on such an image, and `demo.py` has a
            page for such images. Without it: not.
        mean: of the training images per channel, on the scale 0 to 1; compared with ``image_shape``.
        std: standard deviation, likewise.
        columns: of a table, see ``torch_starter.data.tables.describe``; `demo.py` has a page with a field for each.
        target: the name of the column that is predicted; `demo.py` shows it. Without it: prediction.
        ink_size: whether ``read_input`` finds out if a drawing is dark on bright; not None if so. Without it, one draws
            bright on dark on the page of `demo.py`.
        dataset: a class whose name the first line of a run shows. Without it: that of the data module.
    """

    batch_size: int
    eval_batch_size: int | None
    num_workers: int | None
    augmentation: Mapping[str, Any] | None
    balance: bool
    class_names: Sequence[str] | None
    image_shape: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float]
    columns: Sequence[dict[str, Any]]
    target: str
    ink_size: int | None
    dataset: type

    def facts(self) -> dict[str, Any]:
        """Values for keys of ``config.data`` that only the data know, such as the number of classes.

        Called before the model is made, whose config refers to them; the run folder keeps them. Without it: none.
        """
        ...

    def class_counts(self) -> list[int]:
        """How many training samples each class has, by label. Without it: ``loss.weight=balanced`` is refused."""
        ...

    def find_inputs(self, words: Sequence[str]) -> Iterable[str]:
        """The names of the inputs that the words of `predict.py`'s command line mean. Without it: no predictions."""
        ...

    def read_input(self, name: str) -> Tensor:
        """One sample, of the dtype and shape that the model takes, without the dimension of the batch.

        Raises:
            OSError: if it cannot be read; the others are predicted.
            ValueError: if it is of another kind, likewise.
        """
        ...

    def describe_input(self, name: str) -> dict[str, Any]:
        """What a row of `predict.py` has before the prediction. Without it: ``input``, the name."""
        ...

    def describe_tensor(self) -> list[str]:
        """A line for each column of a sample, for `export.py` to print. Without it: none."""
        ...

    def invert(self, sample: Tensor) -> Tensor:
        """For `predict.py --invert`: dark on bright becomes bright on dark. Without it: that option is refused."""
        ...


class Model(Protocol):
    """A LightningModule.

    Attributes:
        batch_format: dtype, shape and perhaps range of the tensors in a batch, in order, by names for a message:
            ``{"images": "uint8 (N, 1, H, W)", "labels": "int64 (N,) from 0 to 9"}``. A letter stands for any number,
            and float32 for the dtype of the weights. Batches are compared with it before training. Without it: not.
        name: of the network, for the first line of a run. Without it: the class of ``network``, or of the model.
        network: the part of the model that is not its loss.
        train_metrics: a MetricCollection that the training steps update; logged at the end of each epoch. Without it:
            what the model logs.
        val_metrics: of validation, likewise.
        test_metrics: of the test, likewise.
        backbone: what FineTuning trains later than the rest. Without it: FineTuning is refused.
    """

    batch_format: dict[str, str]
    name: str
    network: nn.Module
    train_metrics: MetricCollection
    val_metrics: MetricCollection
    test_metrics: MetricCollection
    backbone: nn.Module

    def predict_step(self, batch: Tensor) -> dict[str, Tensor]:
        """The columns of `predict.py`, each (N,); ``label`` holds numbers of classes. Without it: no predictions.

        ``probabilities`` (N, num_classes), if they are there, are for ``--top`` and ``--probabilities``.
        """
        ...


class Loader(Protocol):
    """What a data module serves: a DataLoader, a BatchLoader, or any iterable of batches.

    Attributes:
        dataset: whose length the first line of a run shows. Without it: no length.
    """

    dataset: Any

    def batch_sizes(self) -> list[int]:
        """Samples in each batch of an epoch, of all processes together. Without it: they share each batch evenly."""
        ...


class Dataset(Protocol):
    """What a BatchLoader serves: a data set that makes whole batches.

    If it has ``device``, ``nbytes`` and ``to(device)`` as well, as TensorBatches has them, DeviceData copies it to the
    GPU, and ``indices`` are there too; unless it has an ``is_slow`` that is true.
    """

    def __len__(self) -> int: ...

    def batch(self, epoch: int, indices: Any) -> tuple[Tensor, ...]:
        """The samples at ``indices``, int64 (N,), as they are in ``epoch``.

        A BatchLoader with ``weights`` asks for ``index + place * len(self)``: the sample ``index``, drawn anew.
        """
        ...
