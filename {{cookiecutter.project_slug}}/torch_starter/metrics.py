"""The loss and the metrics of the config."""

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
# Numbers in outputs and targets that MetricsOfStage gathers before an update: of 10 classes, 6,000 samples.
GATHERED = 65_536


class MetricsOfStage(MetricCollection):
    """Metrics that are updated with the samples of many steps at once.

    An update takes a tenth of a millisecond, however few samples it is of: of the step of a small network a tenth. So
    outputs and targets wait until they are ``GATHERED`` numbers, or a value is asked for; larger ones do not wait. A
    metric must be one of samples, as nearly all of torchmetrics are: one of batches, such as a mean of their means or
    ``Running``, would find other batches. Ask for a value by ``collection["NAME"].compute()``, each time anew.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waiting: list[tuple[Tensor, ...]] = []
        self.kinds: list[Any] = []  # dtype and shape of what waits, without the number of samples
        self.numbers = 0

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Takes what all the metrics take, see ``torchmetrics.MetricCollection``."""
        kinds = [(value.dtype, value.shape[1:]) for value in args if isinstance(value, Tensor) and value.ndim]
        numbers = sum(value.numel() for value in args) if len(kinds) == len(args) else GATHERED
        is_small = not kwargs and numbers < GATHERED and len({len(value) for value in args}) == 1
        can_wait = is_small and torch.float16 not in [dtype for dtype, _ in kinds]  # which could not hold the sums
        if not can_wait or kinds != self.kinds:
            self.flush()
        if not can_wait:
            super().update(*args, **kwargs)
            return
        self.waiting.append(tuple(value.detach().clone() for value in args))  # a model may go on with them in place
        self.kinds = kinds
        self.numbers += numbers
        if self.numbers >= GATHERED:
            self.flush()

    def flush(self) -> None:
        """Updates the metrics with what waits."""
        waiting, self.waiting, self.numbers = self.waiting, [], 0
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
        self.waiting, self.numbers = [], 0
        super().reset()


def metrics_of_stages(metrics: Mapping[str, Metric | None]) -> Iterator[MetricsOfStage]:
    """Yields the metrics of training, validation and test: copies, named ``train/NAME``, ``val/NAME``, ``test/NAME``.

    The steps of a model update them, and callbacks/epoch_metrics.py logs them. Metrics that count the same, such as
    precision and recall, count it once.

    Args:
        metrics: by names; None is left out.
    """
    wanted: dict[str, Metric | MetricCollection] = {
        name: metric for name, metric in metrics.items() if metric is not None
    }
    for stage in STAGES:
        yield MetricsOfStage(copy.deepcopy(wanted), prefix=f"{stage}/")


def refuse_misfits(loss: nn.Module, metrics: Mapping[str, Metric | None], outputs: Tensor, targets: Tensor) -> None:
    """Tries the loss and the metrics of the config, before they cost an epoch.

    Args:
        loss: from outputs and targets to a number.
        metrics: by names, see ``metrics_of_stages``.
        outputs: such as the model gives, of a small batch. One whose size differs from the number of classes: a loss
            could take it for a batch of outputs otherwise.
        targets: such as the data gives, of the same batch.

    Raises:
        MisconfigurationException: if one does not take them, the loss is not a single number, or a metric has no name.
    """
    if isinstance(metrics, Metric):
        raise MisconfigurationException(
            f"metrics is a {type(metrics).__name__} without a name. Put a line such as `mine:` above it in its file, "
            "and indent the rest."
        )
    kind, example = ("classes", "cross_entropy") if targets.dtype == torch.int64 else ("numbers", "mse")
    takes = f"outputs {describe_type(outputs)} and targets {describe_type(targets)}, as a model of {kind} has them"
    try:
        # What is counted in a loss, or drawn by it, is not changed by this. Shapes that differ are a warning of torch.
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("error", message="Using a target size")
            value = copy.deepcopy(loss)(outputs, targets)
    except Exception as error:  # of many types, depending on the loss
        raise MisconfigurationException(
            f"The loss {type(loss).__name__} does not take {takes}: {_reason(error)}\n"
            f"Choose another, such as loss={example}"
        ) from error
    if not isinstance(value, Tensor) or value.ndim:
        raise MisconfigurationException(
            f"The loss {type(loss).__name__} gives {describe_type(value)}; "
            "training needs a single number: reduction=mean."
        )
    for name, metric in metrics.items():
        try:
            if metric is not None:
                copy.deepcopy(metric).update(outputs, targets)
        except Exception as error:  # likewise
            raise MisconfigurationException(
                f"The metric {name}, a {type(metric).__name__}, does not take {takes}: {_reason(error)}\n"
                f"Choose other metrics=[…], or leave it out: metrics.{name}=null"
            ) from error


def describe_type(value: Any) -> str:
    """Dtype and shape of a tensor; the keys of a dict; otherwise a type."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"a dict of {', '.join(f'{key}: {describe_type(entry)}' for key, entry in value.items())}"
    return f"a {type(value).__name__}"


def _reason(error: Exception) -> str:
    # What torch says of shapes that it would broadcast is a paragraph.
    return "their shapes differ" if isinstance(error, UserWarning) else first_line(error)
