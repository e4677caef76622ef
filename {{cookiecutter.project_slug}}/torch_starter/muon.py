"""Muon for the weights that it is made for, and AdamW for the rest, as one optimizer."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# In which matrices are orthogonalized. On a CPU bfloat16, as elsewhere, takes many times as long.
DTYPES = {"cpu": torch.float32}
# Of the quintic polynomial that is iterated, https://kellerjordan.github.io/posts/muon/
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """Muon for groups with ``is_hidden``, and ``torch.optim.AdamW`` for the others.

    It takes the steps of ``torch.optim.Muon`` with ``adjust_lr_fn="match_rms_adamw"``, as large as those of AdamW
    (https://arxiv.org/abs/2502.16982, equation 4), so that one learning rate and one weight decay suit both. (torch's
    is for matrices alone, since 2.9, and in bfloat16 on a CPU, too.)

    Args:
        params: groups; ``optimizer_and_scheduler`` marks those of ``hidden_weights``.
        lr: learning rate, of both.
        momentum: of Muon, in [0, 1), in Nesterov's way.
        betas: of AdamW.
        weight_decay: decoupled, of both.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"optimizer.momentum is {momentum}; it must be at least 0 and below 1.")
        defaults = {"lr": lr, "momentum": momentum, "betas": tuple(betas), "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "is_hidden": False})
        # It checks the other values, and gets parameters and state with each step.
        self.adamw = AdamW([{"params": []}], lr, tuple(betas), weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; ``closure`` computes the loss and the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        others = [self.adamw.defaults | group for group in self.param_groups if not group["is_hidden"]]
        self.adamw.state, self.adamw.param_groups = self.state, others
        self.adamw.step()
        for group in self.param_groups:
            for parameter in group["params"] if group["is_hidden"] else ():
                if parameter.grad is not None:
                    self._step(parameter, group)
        return loss

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        # The weight of a convolution is a matrix from what it sees to what it gives.
        gradient = parameter.grad.flatten(1)
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"]
        mean.lerp_(gradient, 1 - group["momentum"])
        update = orthogonalized(gradient.lerp(mean, group["momentum"]))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update.view(parameter.shape), alpha=-group["lr"] * 0.2 * math.sqrt(max(gradient.shape)))


def orthogonalized(matrix: Tensor) -> Tensor:
    """A matrix with the singular vectors of ``matrix`` and singular values between about 0.5 and 1.5.

    By five iterations of Newton and Schulz: https://github.com/KellerJordan/Muon.
    """
    a, b, c = COEFFICIENTS
    x = matrix.to(DTYPES.get(matrix.device.type, torch.bfloat16))
    if is_tall := x.shape[0] > x.shape[1]:
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if is_tall else x).to(matrix.dtype)


def hidden_weights(module: nn.Module) -> set[Tensor]:
    """The weights of linear and convolutional layers, without the first and the last of ``modules()``.

    Nor those of convolutions in groups, which are no matrices from all inputs to all outputs.

    Raises:
        MisconfigurationException: if there are none.
    """
    weights = [m.weight for m in module.modules() if isinstance(m, LAYERS) and getattr(m, "groups", 1) == 1][1:-1]
    if not weights:
        raise MisconfigurationException(
            f"optimizer=muon is for hidden layers, and {type(module).__name__} has none between its first and its last "
            "layer. Take optimizer=adamw."
        )
    return set(weights)
