"""LightningModule for regression and classification of table rows."""

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
    """Regression or classification of table rows with any network.

    Takes raw rows and standardizes them with constants that are stored in its checkpoints. Regression targets are
    divided by their standard deviation, so that the learning rate does not depend on their unit: the loss is in units
    of the standard deviation, metrics and predictions are in the unit of the column.

    Args:
        network: maps float32 (N, ``data.in_features``) to numbers (N, 1) or to logits (N, num_classes).
        columns: descriptions of the columns, see ``torch_starter.data.tables.describe_columns``.
        num_classes: number of classes; None for regression.
        target_mean: mean target of the training rows; None for classification.
        target_std: standard deviation of the target of the training rows; None for classification.
        loss: maps predictions and targets, both (N,), or logits and labels, to a scalar.
        metrics: metrics of predictions and targets, or of logits and labels, by name.
        compile: whether to compile the network with ``torch.compile``.
        optimizer: partial optimizer, see ``optimizer_and_scheduler``.
        scheduler: partial learning rate scheduler, see ``optimizer_and_scheduler``.
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
        if isinstance(network, nn.Linear):  # its class name does not say what the model is
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
        # Checked against the data before training.
        targets = f"int64 (N,) from 0 to {num_classes - 1}" if num_classes else "float32 (N,)"
        self.batch_format = {"rows": f"float32 (N, {len(columns)})", "targets": targets}

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows (N, columns), see ``tables.encode_rows``, to logits (N, num_classes) or predictions (N,)."""
        outputs = self._outputs(rows)
        return outputs if self.num_classes else outputs * self.target_std + self.target_mean

    def _outputs(self, rows: Tensor) -> Tensor:
        """Return logits (N, num_classes) or standardized predictions (N,)."""
        outputs = self.network(self.encoder(rows))
        return outputs if self.num_classes else outputs.squeeze(1).float()  # 16 bits would round the predictions

    def training_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return self._step(batch, "test")

    def predict_step(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the columns of `predict.py`.

        Returns:
            ``prediction`` (N,) in the unit of the column for regression; for classification ``label`` int64 (N,), its
            ``probability`` (N,), 0 to 1, and all ``probabilities`` (N, num_classes).
        """
        outputs = self(rows)
        if not self.num_classes:
            return {"prediction": outputs}
        probabilities = outputs.softmax(dim=1)
        probability, label = probabilities.max(dim=1)
        return {"label": label, "probability": probability, "probabilities": probabilities}

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> dict[str, Tensor]:
        """Return ``loss``, which Lightning minimizes, and ``logits`` or ``predictions``, which callbacks read."""
        rows, targets = batch
        outputs = self._outputs(rows)
        if self.num_classes:
            loss = self.loss(outputs, targets)
        else:
            loss = self.loss(outputs, (targets - self.target_mean) / self.target_std)
            # The sums of squares in R² lose precision in 32 bits for targets far from 0. MPS has no float64.
            dtype = torch.float32 if self.device.type == "mps" else torch.float64
            outputs, targets = (outputs * self.target_std + self.target_mean).to(dtype), targets.to(dtype)
        self.log(f"{stage}/loss", loss, prog_bar=True)
        getattr(self, f"{stage}_metrics").update(outputs.detach(), targets)
        return {"loss": loss, "logits" if self.num_classes else "predictions": outputs}

    def configure_optimizers(self):
        return optimizer_and_scheduler(self, self.optimizer, self.scheduler)


def loss_by_target(num_classes: int | None) -> nn.Module:
    """Return the default loss for a table: cross-entropy for classification, squared error for regression."""
    return nn.CrossEntropyLoss() if num_classes else nn.MSELoss()


def metrics_by_target(num_classes: int | None, **others: Metric | None) -> dict[str, Metric | None]:
    """Return the default metrics for a table, by name: accuracy, or R² and mean absolute error; and ``others``."""
    if num_classes:
        return {"acc": MulticlassAccuracy(num_classes, average="micro", validate_args=False), **others}
    return {"r2": R2Score(), "mae": MeanAbsoluteError(), **others}
