"""Linear regression by gradient descent."""

from functools import partial

from lightning import LightningModule
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from torch_starter.optimization import optimizer_and_scheduler


class LinearRegression(LightningModule):
    """y = weight * x + bias, by least squares.

    Args:
        in_features: numbers per sample in x.
        compile: whether ``torch.compile`` is used.
        optimizer: partial, see ``optimizer_and_scheduler``.
        scheduler: partial, see ``optimizer_and_scheduler``.
    """

    def __init__(
        self, in_features: int, compile: bool, optimizer: "partial[Optimizer]", scheduler: "partial[LRScheduler]"
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, 1)
        # Compared with the data before training.
        self.batch_format = {"x": f"float32 (N, {in_features})", "y": "float32 (N, 1)"}
        if compile:
            self.linear.compile()  # in place: a wrapper would change the keys of the checkpoint
        self.optimizer = optimizer
        self.scheduler = scheduler

    def forward(self, x: Tensor) -> Tensor:
        """Float x (N, in_features) to y (N, 1)."""
        return self.linear(x)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self._step(batch, "test")

    def predict_step(self, x: Tensor) -> dict[str, Tensor]:
        """The columns of `predict.py`: y (N,)."""
        return {"y": self(x).squeeze(1)}

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        x, y = batch
        loss = mse_loss(self(x), y)
        self.log(f"{stage}/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return optimizer_and_scheduler(self, self.optimizer, self.scheduler)
