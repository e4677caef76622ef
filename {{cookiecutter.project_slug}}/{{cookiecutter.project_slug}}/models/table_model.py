"""Regression and classification of the rows of a table."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.regression import MeanAbsoluteError, R2Score

from torch_starter.data.tables import Column, TableEncoder
from torch_starter.metrics import metrics_of_stages, refuse_misfits
from torch_starter.optimization import optimizer_and_scheduler


class TableModel(LightningModule):
    """Any network from the columns of a table to a number, or to logits.

    Takes rows as they are and standardizes them itself, with constants that its checkpoint holds. A number is learned
    in units of its standard deviation, so that no learning rate depends on the unit of the target: the loss is in these
    units, metrics and predictions are in those of the column.

    Args:
        network: from float32 (N, ``data.in_features``) to (N, 1), or to logits (N, num_classes).
        columns: what the rows hold, see ``torch_starter.data.tables.describe``.
        num_classes: number of classes; None for a number.
        target_mean: of the training rows; None for classes.
        target_std: standard deviation of the training rows; None for classes.
        loss: from outputs and targets to a number: both (N,), or logits and labels.
        metrics: of predictions and targets, or of logits and labels, by names.
        compile: whether ``torch.compile`` is used.
        optimizer: partial, see ``optimizer_and_scheduler``.
        scheduler: partial, see ``optimizer_and_scheduler``.
    """

    target_mean: Tensor
    target_std: Tensor

    def __init__(
        self,
        network: nn.Module,
        columns: Sequence[Column],
        num_classes: int | None,
        target_mean: float | None,
        target_std: float | None,
        loss: nn.Module,
        metrics: Mapping[str, Metric | None],
        compile: bool,
        optimizer: "partial[Optimizer]",
        scheduler: "partial[LRScheduler]",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.encoder = TableEncoder(columns)
        self.register_buffer("target_mean", torch.tensor(target_mean or 0.0))
        self.register_buffer("target_std", torch.tensor(target_std or 1.0))
        self.network = network
        if isinstance(network, nn.Linear):  # whose class is not what people call it
            self.name = "LogisticRegression" if num_classes else "LinearRegression"
        if compile:
            self.network.compile()  # in place: a wrapper would change the keys of the checkpoint
        batch = (num_classes or 1) + 1
        outputs = torch.zeros(batch, num_classes) if num_classes else torch.zeros(batch)
        targets = torch.zeros(batch, dtype=torch.int64 if num_classes else torch.float32)
        refuse_misfits(loss, metrics, outputs, targets)
        self.loss = loss
        self.train_metrics, self.val_metrics, self.test_metrics = metrics_of_stages(metrics)
        self.optimizer = optimizer
        self.scheduler = scheduler
        # Compared with the data before training.
        targets = f"int64 (N,) from 0 to {num_classes - 1}" if num_classes else "float32 (N,)"
        self.batch_format = {"rows": f"float32 (N, {len(columns)})", "targets": targets}

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (N, columns), see ``tables.encode``, to logits (N, num_classes) or to numbers (N,) in their own unit."""
        outputs = self._outputs(rows)
        return outputs if self.num_classes else outputs * self.target_std + self.target_mean

    def _outputs(self, rows: Tensor) -> Tensor:
        """Logits (N, num_classes), or numbers (N,) in units of the standard deviation of the target."""
        outputs = self.network(self.encoder(rows))
        return outputs if self.num_classes else outputs.squeeze(1).float()  # 16 bits would round what comes of them

    def training_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return self._step(batch, "test")

    def predict_step(self, rows: Tensor) -> dict[str, Tensor]:
        """The columns of `predict.py`: a prediction (N,); or a label, its probability, and those of all classes."""
        outputs = self(rows)
        if not self.num_classes:
            return {"prediction": outputs}
        probabilities = outputs.softmax(dim=1)
        probability, label = probabilities.max(dim=1)
        return {"label": label, "probability": probability, "probabilities": probabilities}

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> dict[str, Tensor]:
        """What Lightning minimizes, ``loss``, and what callbacks look at: ``logits`` or ``predictions``."""
        rows, targets = batch
        outputs = self._outputs(rows)
        if self.num_classes:
            loss = self.loss(outputs, targets)
        else:
            loss = self.loss(outputs, (targets - self.target_mean) / self.target_std)
            # R² has sums of squares, which lose a target that is far from 0 in 32 bits. MPS has no more.
            dtype = torch.float32 if self.device.type == "mps" else torch.float64
            outputs, targets = (outputs * self.target_std + self.target_mean).to(dtype), targets.to(dtype)
        self.log(f"{stage}/loss", loss, prog_bar=True)
        getattr(self, f"{stage}_metrics").update(outputs.detach(), targets)
        return {"loss": loss, "logits" if self.num_classes else "predictions": outputs}

    def configure_optimizers(self):
        return optimizer_and_scheduler(self, self.optimizer, self.scheduler)


def loss_by_target(num_classes: int | None) -> nn.Module:
    """What suits a table: cross-entropy for classes, the squared error for a number."""
    return nn.CrossEntropyLoss() if num_classes else nn.MSELoss()


def metrics_by_target(num_classes: int | None, **others: Metric | None) -> dict[str, Metric | None]:
    """What suits a table, by names, and ``others``: the accuracy of classes; R² and mean absolute error of a number."""
    if num_classes:
        return {"acc": MulticlassAccuracy(num_classes, average="micro", validate_args=False), **others}
    return {"r2": R2Score(), "mae": MeanAbsoluteError(), **others}
