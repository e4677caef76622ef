"""Muon for what it is made for, and AdamW for the rest, as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Muon(Optimizer):
    """``torch.optim.Muon`` for groups with ``is_hidden``, and ``torch.optim.AdamW`` for the others.

    Weights of convolutions (out, in, …) are matrices (out, in * …) to Muon, as in https://github.com/KellerJordan/Muon.
    Its steps are scaled to the size of AdamW's (``match_rms_adamw``, https://arxiv.org/abs/2502.16982), so that both
    have one learning rate and one weight decay, and a scheduler need not know of two.

    Args:
        params: groups; ``optimizer_and_scheduler`` marks those of ``hidden_weights``.
        lr: learning rate, of both.
        momentum: of Muon.
        betas: of AdamW.
        weight_decay: decoupled, of both.

    Raises:
        MisconfigurationException: if this torch has no Muon.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise MisconfigurationException(
                f"optimizer=muon needs torch 2.9, and this is {torch.__version__}. Update it, or take optimizer=adamw."
            )
        defaults = {"lr": lr, "momentum": momentum, "betas": tuple(betas), "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "is_hidden": False})
        # They check the values, and get parameters and state with each step.
        options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        self.adamw = AdamW([{"params": []}], betas=tuple(betas), **options)
        self.muon = torch.optim.Muon([{"params": []}], momentum=momentum, adjust_lr_fn="match_rms_adamw", **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; ``closure`` computes the loss and the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.adamw.state = self.state
        self.adamw.param_groups = [self.adamw.defaults | group for group in self.param_groups if not group["is_hidden"]]
        self.adamw.step()
        hidden = [group for group in self.param_groups if group["is_hidden"]]
        matrices = {p: _as_matrix(p) for group in hidden for p in group["params"] if p.grad is not None}
        self.muon.state.clear()
        self.muon.state.update((matrix, self.state[p]) for p, matrix in matrices.items())
        self.muon.param_groups = [
            self.muon.defaults | group | {"params": [matrices[p] for p in group["params"] if p in matrices]}
            for group in hidden
        ]
        self.muon.step()
        for p, matrix in matrices.items():
            p.copy_(matrix.view(p.shape))  # which are the same memory already, except where channels are last
        return loss


def _as_matrix(parameter: Tensor) -> Tensor:
    """A weight (out, in, …) as (out, in * …), with its gradient."""
    matrix = parameter.detach().flatten(1)
    assert parameter.grad is not None
    matrix.grad = parameter.grad.flatten(1)
    return matrix


def hidden_weights(module: nn.Module) -> set[Tensor]:
    """The weights of all linear and convolutional layers but the first and the last, in the order of ``modules()``.

    Not of convolutions in groups, whose weights are no matrix from inputs to outputs.

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
