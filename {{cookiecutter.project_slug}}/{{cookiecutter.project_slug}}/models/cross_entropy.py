"""Cross-entropy loss with class weights from the config."""

from collections.abc import Sequence

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn


class CrossEntropy(nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss`` of float logits (N, num_classes) and int64 labels (N,), averaged over the batch.

    With weights, the average is divided by their sum. Each process divides by the sum over its own share of the batch,
    so a step across processes is close to the single-process step, but not equal.

    Args:
        num_classes: number of classes. None, the value for a table with a numeric target, raises an error.
        weight: weight of a sample of each class, one number per class. None: all classes weigh the same.
        label_smoothing: fraction of each label that is distributed over all classes, in [0, 1).

    Raises:
        MisconfigurationException: if the number of weights is not ``num_classes``, or ``num_classes`` is None.
    """

    def __init__(self, num_classes: int | None, weight: Sequence[float] | None, label_smoothing: float) -> None:
        if num_classes is None:
            raise MisconfigurationException(
                "loss=cross_entropy is for classes, but the target is a number. Choose another loss, such as loss=mse, "
                "or treat each value as a class: data.task=classification"
            )
        if weight is not None and (isinstance(weight, str) or len(weight) != num_classes):
            raise MisconfigurationException(
                f"loss.weight is {weight}; it must be {num_classes} numbers, one per class, or balanced, or null."
            )
        super().__init__(label_smoothing=label_smoothing)
        # Not in checkpoints, so that a run can start from the weights of a run with another loss.
        weights = None if weight is None else torch.tensor(weight, dtype=torch.float32)
        self.register_buffer("weight", weights, persistent=False)
