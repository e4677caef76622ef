"""Classification of images."""

from collections.abc import Sequence
from functools import partial

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.classification import MulticlassAccuracy

from .optimization import is_logged, optimizer_and_scheduler


class ImageClassifier(LightningModule):
    """Any network from images to logits, trained with cross-entropy.

    Takes raw images and normalises them itself, with constants that its checkpoint holds, so that
    training, evaluation and whatever is built on a checkpoint cannot disagree about it.

    Args:
        network: from float images (N, C, H, W) to logits (N, num_classes).
        num_classes: number of classes.
        mean: of the training images, per channel, on the scale 0 to 1.
        std: standard deviation of the training images, likewise.
        compile: whether ``torch.compile`` makes the network faster; it needs a C++ compiler, and a minute.
        optimizer: partial, see ``optimizer_and_scheduler``.
        scheduler: partial, see ``optimizer_and_scheduler``.

    Raises:
        MisconfigurationException: if ``mean`` or ``std`` is no list, or a standard deviation is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        compile: bool,
        optimizer: "partial[Optimizer]",
        scheduler: "partial[LRScheduler]",
    ) -> None:
        for key, values in {"mean": mean, "std": std}.items():
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise MisconfigurationException(f"data.{key} is {values}; it must be a list: a number per channel.")
        if not all(value > 0 for value in std):
            raise MisconfigurationException(f"data.std is {list(std)}; each standard deviation must be greater than 0.")
        super().__init__()
        self.num_classes = num_classes
        # Compared with the data before training, see callbacks/known_batches.py.
        labels = f"int64 (N,) from 0 to {num_classes - 1}"
        self.batch_format = {"images": f"uint8 (N, {len(mean)}, H, W)", "labels": labels}
        # Convolutions are faster on most devices when the channels of a pixel lie side by side.
        # torch 2.8 has no type hint for that.
        # pyrefly: ignore[no-matching-overload]
        self.network = network.to(memory_format=torch.channels_last)
        if compile:
            self.network.compile()  # in place: a wrapper would change the keys of the checkpoint
        self.register_buffer("mean", torch.tensor(list(mean)).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(-1, 1, 1))
        self.train_acc, self.val_acc, self.test_acc = (
            MulticlassAccuracy(num_classes, average="micro", validate_args=False) for _ in range(3)
        )
        self.optimizer = optimizer
        self.scheduler = scheduler

    def setup(self, stage: str) -> None:
        """Tries the network on an image of the size that the data have, before anything is trained.

        Raises:
            MisconfigurationException: if it does not take such images, or gives another number of logits, or ``mean``
                or ``std`` is for another number of channels.
        """
        image_shape = getattr(self.trainer.datamodule, "image_shape", None)
        if not image_shape:
            return
        for key, values in {"mean": self.mean, "std": self.std}.items():
            if len(values) != image_shape[0]:
                numbers = [round(value, 6) for value in values.flatten().tolist()]
                raise MisconfigurationException(
                    f"data.{key} is {numbers}: {len(numbers)} numbers, but images have {image_shape[0]} channels "
                    f"(data.image_shape is {list(image_shape)})."
                )
        if stage != "fit":
            return
        name = getattr(self, "name", type(self.network).__name__)
        modes = [(module, module.training) for module in self.modules()]
        self.eval()  # so that batch normalisation learns nothing from it
        try:
            with torch.no_grad():
                image = self._normalized(torch.zeros(1, *image_shape, dtype=torch.uint8))
                shape = tuple(self.network.forward(image).shape)
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise MisconfigurationException(
                f"{name} does not take images of {list(image_shape)} (channels, height, width), as data= serves them: "
                f"{reason}\nChoose another model=, or change the network or data.image_shape."
            ) from error
        finally:
            for module, mode in modes:
                module.training = mode
        if shape != (1, self.num_classes):
            raise MisconfigurationException(
                f"{name} gives {list(shape[1:])} numbers per image; the data have {self.num_classes} classes."
            )

    def forward(self, images: Tensor) -> Tensor:
        """Raw uint8 images (N, C, H, W) to logits (N, num_classes)."""
        return self.network(self._normalized(images))

    def _normalized(self, images: Tensor) -> Tensor:
        # The constants and not the images are brought to the other scale: fewer operations on large tensors.
        images = (images - 255 * self.mean) / (255 * self.std)
        return images.contiguous(memory_format=torch.channels_last)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return self._step(batch, "test")

    def predict_step(self, images: Tensor) -> dict[str, Tensor]:
        """The columns of `predict.py`: label (N,), int64, and its probability (N,), 0 to 1."""
        probability, label = self(images).softmax(dim=1).max(dim=1)
        return {"label": label, "probability": probability}

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> dict[str, Tensor]:
        """What Lightning minimises, ``loss``, and what callbacks look at, ``logits`` (N, num_classes)."""
        images, labels = batch
        logits = self(images)
        loss = cross_entropy(logits, labels)
        getattr(self, f"{stage}_acc").update(logits, labels)
        # `log` takes as long as a step of a small network: in training only when the logger writes.
        is_last = stage == "train" and self.trainer.is_last_batch
        if stage != "train" or is_last or is_logged(self.trainer, self.global_step + 1):
            # A float: Lightning's mean over processes rounds whole numbers down.
            # pyrefly: ignore[bad-argument-type]
            self.log(f"{stage}/loss", loss, prog_bar=True, batch_size=float(len(labels)), sync_dist=True)
        if is_last:
            self._log_accuracy("train")
        return {"loss": loss, "logits": logits}

    def on_validation_epoch_end(self) -> None:
        self._log_accuracy("val")

    def on_test_epoch_end(self) -> None:
        self._log_accuracy("test")

    def _log_accuracy(self, stage: str) -> None:
        self.log(f"{stage}/acc", getattr(self, f"{stage}_acc"), on_step=False, on_epoch=True, prog_bar=True)

    def configure_optimizers(self):
        return optimizer_and_scheduler(self, self.optimizer, self.scheduler)
