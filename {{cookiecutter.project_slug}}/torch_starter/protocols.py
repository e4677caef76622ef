"""The optional interface between this package and a project's data modules, models, loaders and data sets.

The protocols list what this package uses beyond Lightning's own hooks. Classes need not inherit from them, and every
member is optional: each entry says what happens if it is missing.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn
from torchmetrics import MetricCollection


class DataModule(Protocol):
    """Optional members of a LightningDataModule.

    Attributes:
        batch_size: Number of samples per step, over all ranks; also the batch size of `predict.py`. If missing: 32.
        eval_batch_size: Number of samples per step in validation and test, over all ranks; None: see
            ``data/evaluation.py``. The data module reads it. If missing: the data module decides.
        num_workers: Number of worker processes that read the inputs of `predict.py`; 0 disables workers, None chooses a
            number that suits the machine. If missing: 0.
        augmentation: If the config of the data module has this argument, it is set to None where training samples are
            evaluated without augmentation, as in `evaluate.py --split train`. If missing: they are evaluated as
            training sees them.
        balance: If the config of the data module has this argument, it is set to False in the same case, so that
            each sample is evaluated once.
        class_names: Class names, indexed by label, for the column ``label`` of `predict.py`. If missing: class numbers.
        image_shape: Channels, height and width of an image. The model is tried on an image of this shape before
            training, and `demo.py` has a page for such images. If missing: neither happens.
        mean: Mean of the training images per channel, on the scale 0 to 1. One value per channel of ``image_shape``.
        std: Standard deviation of the training images per channel, on the scale 0 to 1. One value per
            channel of ``image_shape``.
        columns: Columns of a table, see ``torch_starter.data.tables.describe_columns``; `demo.py` has a page with one
            field per column.
        target: Name of the predicted column, for `demo.py`. If missing: ``"prediction"``.
        ink_size: Not None if ``read_input`` detects whether a drawing is dark on bright. If missing: drawings on the
            page of `demo.py` are bright on dark.
        dataset: Class whose name is in the first line of a run. If missing: the class of the data module.
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
        """Return values for keys of ``config.data`` that depend on the data, such as the number of classes.

        It is called before the model is instantiated, because the config of the model refers to these values. The run
        folder stores them. If missing: the config is used as it is.
        """
        ...

    def class_counts(self) -> list[int]:
        """Return the number of training samples per class, indexed by label.

        If missing: ``loss.weight=balanced`` is refused.
        """
        ...

    def find_inputs(self, words: Sequence[str]) -> Iterable[str]:
        """Return the names of the inputs that the arguments of `predict.py` refer to.

        If missing: `predict.py` is not available.
        """
        ...

    def read_input(self, name: str) -> Tensor:
        """Return one sample with the dtype and shape that the model expects, without the batch dimension.

        If missing: `predict.py` is not available.

        Raises:
            OSError: If the input cannot be read. `predict.py` reports and skips it.
            ValueError: If the input is of the wrong kind. `predict.py` reports and skips it.
        """
        ...

    def describe_input(self, name: str) -> dict[str, Any]:
        """Return the columns that precede the prediction in a row of `predict.py`.

        If missing: the column ``input`` with the name of the input.
        """
        ...

    def describe_tensor(self) -> list[str]:
        """Return one line per column of a sample, which `export.py` prints. If missing: none."""
        ...

    def invert(self, sample: Tensor) -> Tensor:
        """Return a sample with dark and bright swapped, for `predict.py --invert`. If missing: that option is refused.

        Training has bright on dark; inversion converts a sample that is dark on bright.
        """
        ...


class Model(Protocol):
    """Optional members of a LightningModule.

    Attributes:
        batch_format: Expected dtype, shape and optionally range of each tensor in a batch, in order, keyed by the name
            that messages use: ``{"images": "uint8 (N, 1, H, W)", "labels": "int64 (N,) from 0 to 9"}``. A letter
            matches any size, and float32 means the dtype of the weights. Batches are checked before training. If
            missing: they are not checked.
        name: Name of the network, for the first line of a run. If missing: the class of ``network``, or of the model.
        network: The model without its loss.
        train_metrics: Metrics that ``training_step`` updates; they are logged at the end of each epoch. If missing:
            only what the model itself logs.
        val_metrics: As ``train_metrics``, for validation.
        test_metrics: As ``train_metrics``, for the test.
        backbone: Submodule that FineTuning unfreezes later than the rest. If missing: FineTuning is refused.
    """

    batch_format: dict[str, str]
    name: str
    network: nn.Module
    train_metrics: MetricCollection
    val_metrics: MetricCollection
    test_metrics: MetricCollection
    backbone: nn.Module

    def predict_step(self, batch: Tensor) -> dict[str, Tensor]:
        """Return the columns of `predict.py` for a batch. If missing: `predict.py` is not available.

        Returns:
            Tensors of shape ``(N,)``, keyed by column. ``label`` holds class numbers. ``probabilities``, of shape
            ``(N, num_classes)``, is optional; ``--top`` and ``--probabilities`` need it.
        """
        ...


class Loader(Protocol):
    """Optional members of a DataLoader, a BatchLoader or any other iterable of batches that a data module returns.

    Attributes:
        dataset: Data set whose length is in the first line of a run. If missing: no length is shown.
    """

    dataset: Any

    def batch_sizes(self) -> list[int]:
        """Return the number of samples in each batch of an epoch, over all ranks.

        If missing: each batch is assumed to be split evenly across ranks.
        """
        ...


class Dataset(Protocol):
    """A data set that produces whole batches, for BatchLoader.

    DeviceData copies a data set to the GPU if it also has ``device``, ``nbytes`` and ``to(device)``, as TensorBatches
    does, unless it has a true ``is_slow``. ``batch`` then receives ``indices`` on the GPU.
    """

    def __len__(self) -> int: ...

    def batch(self, epoch: int, indices: Any) -> tuple[Tensor, ...]:
        """Return the samples at ``indices`` as they are in an epoch.

        Args:
            epoch: Number of the epoch.
            indices: Indices of the samples, int64 ``(N,)``. A BatchLoader with ``weights`` passes
                ``index + place * len(self)``, so that augmentation can vary between draws of the sample ``index``;
                ``place`` counts the samples of the epoch from 0.
        """
        ...
