"""Accumulate the metrics of a run efficiently, and check loss and metrics before training."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from .mistakes import first_line

STAGES = ("train", "val", "test")
# Numbers in outputs and targets that MetricsOfStage buffers before an update: 6,000 samples with 10 classes.
BUFFER_SIZE = 65_536


class MetricsOfStage(MetricCollection):
    """Metrics that are updated with the samples of many steps at once.

    An update takes a tenth of a millisecond regardless of the number of samples: a tenth of a step of a small network.
    So outputs and targets are buffered until they have ``BUFFER_SIZE`` numbers or a value is read; larger ones are not
    buffered. Metrics must be defined on samples, as nearly all of torchmetrics are. Metrics of batches, such as a mean
    of batch means or ``Running``, would see different batches. Read each value by ``collection["NAME"].compute()``; do
    not store ``collection["NAME"]``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waiting: list[tuple[Tensor, ...]] = []
        self._waiting_layout: list[Any] = []  # dtypes and shapes of what waits, without the batch dimension
        self._waiting_numel = 0

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Update all metrics, or buffer the arguments; see ``torchmetrics.MetricCollection``."""
        layout = [(value.dtype, value.shape[1:]) for value in args if isinstance(value, Tensor) and value.ndim]
        numel = sum(value.numel() for value in args) if len(layout) == len(args) else BUFFER_SIZE
        is_small = not kwargs and numel < BUFFER_SIZE and len({len(value) for value in args}) == 1
        can_buffer = is_small and torch.float16 not in [dtype for dtype, _ in layout]  # float16 sums would overflow
        if not can_buffer or layout != self._waiting_layout:
            self.flush()
        if not can_buffer:
            super().update(*args, **kwargs)
            return
        self.waiting.append(tuple(value.detach().clone() for value in args))  # a model may modify them in place
        self._waiting_layout = layout
        self._waiting_numel += numel
        if self._waiting_numel >= BUFFER_SIZE:
            self.flush()

    def flush(self) -> None:
        """Update the metrics with the waiting samples."""
        waiting, self.waiting, self._waiting_numel = self.waiting, [], 0
        if waiting:
            super().update(*(torch.cat(values) for values in zip(*waiting, strict=True)))

    def compute(self) -> dict[str, Any]:
        self.flush()
        return super().compute()

    def items(self, *args: Any, **kwargs: Any) -> Any:
        self.flush()
        return super().items(*args, **kwargs)

    def values(self, *args: Any, **kwargs: Any) -> Any:
        self.flush()
        return super().values(*args, **kwargs)

    def __getitem__(self, *args: Any, **kwargs: Any) -> Any:
        self.flush()
        return super().__getitem__(*args, **kwargs)

    def reset(self) -> None:
        self.waiting, self._waiting_numel = [], 0
        super().reset()


def metrics_of_stages(metrics: Mapping[str, Metric | None]) -> Iterator[MetricsOfStage]:
    """Yield copies of the metrics for training, validation and test, named ``train/NAME``, ``val/NAME``, ``test/NAME``.

    The steps of a model update them, and callbacks/epoch_metrics.py logs them. Metrics with the same state, such as
    precision and recall, share it.

    Args:
        metrics: The metrics by name; None is left out.
    """
    wanted: dict[str, Metric | MetricCollection] = {
        name: metric for name, metric in metrics.items() if metric is not None
    }
    for stage in STAGES:
        yield MetricsOfStage(copy.deepcopy(wanted), prefix=f"{stage}/")


def refuse_misfits(loss: nn.Module, metrics: Mapping[str, Metric | None], outputs: Tensor, targets: Tensor) -> None:
    """Check that the loss and the metrics of the config accept outputs and targets, before training starts.

    Args:
        loss: Maps outputs and targets to a scalar.
        metrics: The metrics by name, see ``metrics_of_stages``.
        outputs: Outputs of the model ``(N, …)`` for a small batch. N must differ from the number of classes, or a loss
            could mistake one dimension for the other.
        targets: The targets of the same batch.

    Raises:
        MisconfigurationException: If the loss or a metric does not accept them, the loss is not a scalar, or a metric
            has no name.
    """
    if isinstance(metrics, Metric):
        raise MisconfigurationException(
            f"metrics is a {type(metrics).__name__} without a name. Add a line such as `mine:` above it in its file, "
            "and indent the rest."
        )
    task, example = ("classes", "cross_entropy") if targets.dtype == torch.int64 else ("numbers", "mse")
    takes = f"outputs {describe_type(outputs)} and targets {describe_type(targets)}, as of a model that predicts {task}"
    try:
        # The copy and the forked RNG preserve the state of the loss and the RNG. torch only warns if shapes differ.
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("error", message="Using a target size")
            value = copy.deepcopy(loss)(outputs, targets)
    except Exception as error:  # the type depends on the loss
        raise MisconfigurationException(
            f"The loss {type(loss).__name__} does not accept {takes}: {_shorten_reason(error)}\n"
            f"Choose another loss, such as loss={example}"
        ) from error
    if not isinstance(value, Tensor) or value.ndim:
        raise MisconfigurationException(
            f"The loss {type(loss).__name__} returns {describe_type(value)}; "
            "training needs a single number: reduction=mean."
        )
    for name, metric in metrics.items():
        try:
            if metric is not None:
                copy.deepcopy(metric).update(outputs, targets)
        except Exception as error:  # the type depends on the metric
            raise MisconfigurationException(
                f"The metric {name}, a {type(metric).__name__}, does not accept {takes}: {_shorten_reason(error)}\n"
                f"Choose other metrics=[…], or remove it: metrics.{name}=null"
            ) from error


def describe_type(value: Any) -> str:
    """Describe a value for messages: dtype and shape of a tensor, entries of a dict, otherwise the type."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"a dict of {', '.join(f'{key}: {describe_type(entry)}' for key, entry in value.items())}"
    return f"a {type(value).__name__}"


def _shorten_reason(error: Exception) -> str:
    # The warning of torch about broadcast shapes is a paragraph long.
    return "their shapes differ" if isinstance(error, UserWarning) else first_line(error)
