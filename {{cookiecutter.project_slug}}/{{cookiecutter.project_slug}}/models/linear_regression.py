"""Linear regression by gradient descent."""

import logging
from functools import partial

from lightning import LightningModule
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .optimization import is_logged, optimizer_and_scheduler

log = logging.getLogger(__name__)


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
        # Compared with the data before training, see callbacks/known_batches.py.
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
        # `log` takes longer than all else here: in training only when the logger writes, or beside a validation.
        trainer = self.trainer
        is_validated = trainer.is_last_batch and (self.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
        if stage != "train" or is_validated or is_logged(trainer, self.global_step + 1):
            # A float: Lightning's mean over processes rounds whole numbers down.
            # pyrefly: ignore[bad-argument-type]
            self.log(f"{stage}/loss", loss, prog_bar=True, batch_size=float(len(x)), sync_dist=True)
        return loss

    def line(self) -> tuple[float, float]:
        """Weight and bias, where there is one feature."""
        return self.linear.weight.item(), self.linear.bias.item()

    def on_test_end(self) -> None:
        """Says which line was found, beside the true one where the data knows it."""
        if self.linear.in_features != 1:
            return
        weight, bias = self.line()
        log.info(f"fitted line     y = {weight:.3f} x + {bias:.3f}")
        data = self.trainer.datamodule
        if hasattr(data, "slope") and hasattr(data, "intercept"):
            log.info(f"true line       y = {data.slope:.3f} x + {data.intercept:.3f}")
        log.info(f"at x = 4        y = {weight * 4 + bias:.3f}")

    def configure_optimizers(self):
        return optimizer_and_scheduler(self, self.optimizer, self.scheduler)
