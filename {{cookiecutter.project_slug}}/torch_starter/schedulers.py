"""Learning-rate schedules that torch does not have."""

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupCosine(LRScheduler):
    """Linear warm-up, followed by cosine annealing.

    The learning rate depends only on the step, so extending a run gives the same rates as a longer run. The warm-up
    follows https://arxiv.org/abs/1706.02677, section 2.2; the cosine follows https://arxiv.org/abs/1608.03983,
    equation 5, without restarts.

    Args:
        optimizer: Wrapped optimizer. Its learning rates are the maximum rates.
        total_steps: Number of steps, including the warm-up.
        warmup_steps: Number of warm-up steps as an int, or a fraction of ``total_steps`` in [0, 1) as a float.
        eta_min: Final learning rate.

    Raises:
        ValueError: If the warm-up is negative, or leaves no step for the cosine.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, warmup_steps: int | float = 0.05, eta_min: float = 0.0
    ) -> None:
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.eta_min = eta_min
        if not 0 <= self._warmup() < total_steps:
            raise ValueError(
                f"scheduler.warmup_steps is {warmup_steps}, but the run has {total_steps} steps. Use fewer steps, or "
                "a fraction such as 0.05."
            )
        super().__init__(optimizer)

    def _warmup(self) -> int:
        """Return the number of steps below the maximum rate."""
        is_share = isinstance(self.warmup_steps, float)
        return round(self.warmup_steps * self.total_steps) if is_share else int(self.warmup_steps)

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each parameter group."""
        warmup, step = self._warmup(), self.last_epoch
        if step < warmup:
            return [rate * (step + 1) / (warmup + 1) for rate in self.base_lrs]
        progress = min(1.0, (step - warmup) / (self.total_steps - warmup))
        share = (1 + math.cos(math.pi * progress)) / 2
        return [self.eta_min + (rate - self.eta_min) * share for rate in self.base_lrs]
