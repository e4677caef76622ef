"""An optimizer that applies Muon to hidden weight matrices and AdamW to all other parameters."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# dtype for orthogonalization, by device type; bfloat16 on other devices. On CPUs, bfloat16 is many times slower.
DTYPES = {"cpu": torch.float32}
# Coefficients of the quintic Newton-Schulz iteration: https://kellerjordan.github.io/posts/muon/
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """Applies Muon to parameter groups with ``is_hidden`` and ``torch.optim.AdamW`` to all other groups.

    Muon steps equal those of ``torch.optim.Muon`` with ``adjust_lr_fn="match_rms_adamw"``. They are as large as AdamW
    steps (https://arxiv.org/abs/2502.16982, equation 4), so one learning rate and one weight decay suit both.
    ``torch.optim.Muon`` requires torch 2.9, accepts only matrices, and uses bfloat16 even on CPUs.

    Args:
        params: Parameter groups. ``optimizer_and_scheduler`` sets ``is_hidden`` for the ``hidden_weights``.
        lr: Learning rate of both.
        momentum: Nesterov momentum of Muon, in [0, 1).
        betas: Coefficients of AdamW's running averages.
        weight_decay: Decoupled weight decay of both.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"optimizer.momentum is {momentum}; it must be at least 0 and below 1.")
        defaults = {"lr": lr, "momentum": momentum, "betas": tuple(betas), "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "is_hidden": False})
        # AdamW validates the other arguments; each step passes parameters and state to it.
        self.adamw = AdamW([{"params": []}], lr, tuple(betas), weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one step of both optimizers.

        Args:
            closure: Computes the loss and the gradients.

        Returns:
            The loss that ``closure`` returns, or None without a closure.
        """
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
        # The weight of a convolution acts as a matrix of shape (output channels, inputs per output position).
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
    """Return a matrix with the singular vectors of ``matrix`` and singular values between about 0.5 and 1.5.

    It runs five Newton-Schulz iterations: https://github.com/KellerJordan/Muon.

    Args:
        matrix: Floating-point tensor (M, N).
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
    """Return the weights of linear and convolutional layers except the first and the last in ``modules()``.

    Grouped convolutions are excluded because their weights do not map all inputs to all outputs.

    Raises:
        MisconfigurationException: If there are none.
    """
    weights = [m.weight for m in module.modules() if isinstance(m, LAYERS) and getattr(m, "groups", 1) == 1][1:-1]
    if not weights:
        raise MisconfigurationException(
            f"optimizer=muon is for hidden layers, and {type(module).__name__} has none between its first and last "
            "layer. Use optimizer=adamw."
        )
    return set(weights)
