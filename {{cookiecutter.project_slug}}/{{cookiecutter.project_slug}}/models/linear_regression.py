"""LightningModule for linear regression by gradient descent."""

from collections.abc import Mapping
from functools import partial

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from torch_starter.metrics import metrics_of_stages, refuse_misfits
from torch_starter.optimization import optimizer_and_scheduler


class LinearRegression(LightningModule):
    """Linear regression, y = weight * x + bias, by gradient descent. With ``loss=mse`` this is least squares.

    Args:
        in_features: number of features in x.
        loss: maps predictions and targets, both (N, 1), to a scalar.
        metrics: metrics of predictions and targets, both (N,), by name.
        compile: whether to compile the network with ``torch.compile``.
        optimizer: partial optimizer, see ``optimizer_and_scheduler``.
        scheduler: partial learning rate scheduler, see ``optimizer_and_scheduler``.
    """

    def __init__(
        self,
        in_features: int,
        loss: nn.Module,
        metrics: Mapping[str, Metric | None],
        compile: bool,
        optimizer: "partial[Optimizer]",
        scheduler: "partial[LRScheduler]",
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, 1)
        refuse_misfits(loss, metrics, torch.zeros(2), torch.zeros(2))
        self.loss = loss
        self.train_metrics, self.val_metrics, self.test_metrics = metrics_of_stages(metrics)
        # Checked against the data before training.
        self.batch_format = {"x": f"float32 (N, {in_features})", "y": "float32 (N, 1)"}
        if compile:
            self.linear.compile()  # in place: a wrapper would change the keys of the checkpoint
        self.optimizer = optimizer
        self.scheduler = scheduler

    def forward(self, x: Tensor) -> Tensor:
        """Map float x (N, in_features) to y (N, 1)."""
        return self.linear(x)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self._step(batch, "test")

    def predict_step(self, x: Tensor) -> dict[str, Tensor]:
        """Return the columns of `predict.py`: ``y`` (N,)."""
        return {"y": self(x).squeeze(1)}

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        x, y = batch
        predictions = self(x)
        loss = self.loss(predictions, y)
        self.log(f"{stage}/loss", loss, prog_bar=True)
        getattr(self, f"{stage}_metrics").update(predictions.squeeze(1), y.squeeze(1))
        return loss

    def configure_optimizers(self):
        return optimizer_and_scheduler(self, self.optimizer, self.scheduler)
