"""LightningModule for image classification."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from torch_starter.data.images import normalization_constants
from torch_starter.metrics import metrics_of_stages, refuse_misfits
from torch_starter.optimization import optimizer_and_scheduler


class ImageClassifier(LightningModule):
    """Image classifier with any network that maps images to logits.

    Takes raw images and normalizes them with constants that are stored in its checkpoints, so that training, evaluation
    and everything built on a checkpoint use the same normalization.

    Args:
        network: maps float images (N, C, H, W) to logits (N, num_classes).
        num_classes: number of classes.
        mean: mean of the training images per channel, in the range 0 to 1.
        std: standard deviation of the training images per channel, in the range 0 to 1.
        loss: maps logits (N, num_classes) and int64 labels (N,) to a scalar.
        metrics: metrics of logits and labels, by name.
        compile: whether to compile the network with ``torch.compile``, which needs a C++ compiler and about a minute.
        optimizer: partial optimizer, see ``optimizer_and_scheduler``.
        scheduler: partial learning rate scheduler, see ``optimizer_and_scheduler``.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        loss: nn.Module,
        metrics: Mapping[str, Metric | None],
        compile: bool,
        optimizer: "partial[Optimizer]",
        scheduler: "partial[LRScheduler]",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        for name, values in normalization_constants(mean, std).items():
            self.register_buffer(name, values)
        # Convolutions are faster on most devices in the channels-last memory format, for which torch 2.8 has no type
        # hint.
        # pyrefly: ignore[no-matching-overload]
        self.network = network.to(memory_format=torch.channels_last)
        if compile:
            self.network.compile()  # in place: a wrapper would change the keys of the checkpoint
        batch = num_classes + 1
        refuse_misfits(loss, metrics, torch.zeros(batch, num_classes), torch.zeros(batch, dtype=torch.int64))
        self.loss = loss
        self.train_metrics, self.val_metrics, self.test_metrics = metrics_of_stages(metrics)
        self.optimizer = optimizer
        self.scheduler = scheduler
        # Checked against the data before training.
        labels = f"int64 (N,) from 0 to {num_classes - 1}"
        self.batch_format = {"images": f"uint8 (N, {len(mean)}, H, W)", "labels": labels}

    def forward(self, images: Tensor) -> Tensor:
        """Map raw uint8 images (N, C, H, W) to logits (N, num_classes)."""
        return self.network(self.normalize(images))

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize raw uint8 images (N, C, H, W) to floats with mean 0 and standard deviation 1."""
        # Scaling the constants instead of the images needs fewer operations on large tensors.
        images = (images - 255 * self.mean) / (255 * self.std)
        return images.contiguous(memory_format=torch.channels_last)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return self._step(batch, "test")

    def predict_step(self, images: Tensor) -> dict[str, Tensor]:
        """Return the columns of `predict.py`.

        Returns:
            ``label`` int64 (N,), its ``probability`` (N,), 0 to 1, and all ``probabilities`` (N, num_classes).
        """
        probabilities = self(images).softmax(dim=1)
        probability, label = probabilities.max(dim=1)
        return {"label": label, "probability": probability, "probabilities": probabilities}

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> dict[str, Tensor]:
        """Return ``loss``, which Lightning minimizes, and ``logits`` (N, num_classes), which callbacks read."""
        images, labels = batch
        logits = self(images)
        loss = self.loss(logits, labels)
        self.log(f"{stage}/loss", loss, prog_bar=True)
        getattr(self, f"{stage}_metrics").update(logits, labels)
        return {"loss": loss, "logits": logits}

    def configure_optimizers(self):
        return optimizer_and_scheduler(self, self.optimizer, self.scheduler)
