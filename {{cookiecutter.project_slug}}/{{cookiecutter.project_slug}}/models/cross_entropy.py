"""Cross-entropy with weights from the config."""

from collections.abc import Sequence

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn


class CrossEntropy(nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss``: of logits float (N, num_classes) and labels int64 (N,), the mean over a batch.

    With weights, the mean is over their sum. Several processes each take that of their share of a batch, so that their
    step is near the one of a single process, and not equal to it.

    Args:
        num_classes: number of classes; None, of a table whose target is a number, is refused.
        weight: how much a sample of each class counts, one number per class; None: all the same.
        label_smoothing: share of each label that is given to all classes alike, in [0, 1).

    Raises:
        MisconfigurationException: if there is not one weight for each class, or there are no classes.
    """

    def __init__(self, num_classes: int | None, weight: Sequence[float] | None, label_smoothing: float) -> None:
        if num_classes is None:
            raise MisconfigurationException(
                "loss=cross_entropy is for classes, and the target is a number. Choose another, such as loss=mse; or "
                "take each value for a class: data.task=classification"
            )
        if weight is not None and (isinstance(weight, str) or len(weight) != num_classes):
            raise MisconfigurationException(
                f"loss.weight is {weight}; it must be {num_classes} numbers, one per class, or balanced, or null."
            )
        super().__init__(label_smoothing=label_smoothing)
        # Not in checkpoints, so that a run can begin with the weights of another that had another loss.
        weights = None if weight is None else torch.tensor(weight, dtype=torch.float32)
        self.register_buffer("weight", weights, persistent=False)
