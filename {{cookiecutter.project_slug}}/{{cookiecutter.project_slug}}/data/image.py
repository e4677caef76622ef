"""Images of torchvision's data sets that fit in memory."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchvision import datasets

from .batches import TensorBatches, dataloader
from .download import download
from .pictures import find_pictures, read_picture


class ImageDataModule(LightningDataModule):
    """A data set of torchvision, held as one uint8 tensor.

    torchvision's test split is the test set and nothing else touches it; the validation set is cut from
    the training split. Batches are pairs: uint8 images (N, C, H, W), 0 to 255, and int64 labels (N,).

    Args:
        dataset: name of a class in ``torchvision.datasets`` that has ``train=`` and keeps its images in
            ``data`` and its labels in ``targets``, as MNIST, FashionMNIST, KMNIST and CIFAR10 do.
        root: folder of the files; they are downloaded to it if they are not there.
        image_shape: channels, height and width; checked against the files.
        num_classes: number of classes; checked against the files.
        mean: of the training images, per channel, on the scale 0 to 1. For the model to read.
        std: standard deviation of the training images, likewise.
        batch_size: images per step.
        num_val: images of the training split that are kept for validation.
        seed: of the validation cut and of the order of the training batches.

    Raises:
        MisconfigurationException: if an argument does not fit the data set, or its files are not to be had.
    """

    def __init__(
        self,
        dataset: str,
        root: str,
        image_shape: Sequence[int],
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        num_val: int,
        seed: int,
    ) -> None:
        super().__init__()
        if dataset not in datasets.__all__:
            nearest = ", ".join(difflib.get_close_matches(dataset, datasets.__all__)) or "none"
            raise MisconfigurationException(
                f"data.dataset is {dataset}, which torchvision.datasets does not have. Nearest: {nearest}."
            )
        self.dataset = getattr(datasets, dataset)
        self.root = Path(root).expanduser()
        self.image_shape = tuple(image_shape)
        self.num_classes = num_classes
        self.mean = mean
        self.std = std
        self.batch_size = batch_size
        self.num_val = num_val
        self.seed = seed
        self.invert = False  # for `predict.py`

    def prepare_data(self) -> None:
        download(self.dataset, self.root)

    def setup(self, stage: str) -> None:
        if stage == "test":
            self.test_set = TensorBatches(*self._load(train=False))
            return
        images, labels = self._load(train=True)
        if not 1 <= self.num_val < len(images):
            raise MisconfigurationException(
                f"data.num_val is {self.num_val}; the training split has {len(images)} images, "
                f"so it can be 1 to {len(images) - 1}."
            )
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
        val, train = order[: self.num_val], order[self.num_val :]
        self.val_set = TensorBatches(images[val], labels[val])
        self.train_set = TensorBatches(images[train], labels[train])

    def _load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W), uint8, and labels (N,), int64, of one split."""
        split = self.dataset(self.root, train=train)
        # MNIST calls its classes "0 - zero", "1 - one", …
        self.class_names = [name.partition(" - ")[0] for name in split.classes]
        images, labels = torch.as_tensor(split.data), torch.as_tensor(split.targets)
        # torchvision keeps grey images as (N, H, W) and coloured ones as (N, H, W, C).
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
        if tuple(images.shape[1:]) != self.image_shape:
            raise MisconfigurationException(
                f"data.image_shape is {list(self.image_shape)}, but the files hold images of {list(images.shape[1:])}."
            )
        if labels.max() >= self.num_classes:
            raise MisconfigurationException(
                f"data.num_classes is {self.num_classes}, but the files hold the label {labels.max()}."
            )
        return images, labels

    def find_inputs(self, words: Sequence[str]) -> Iterator[str]:
        """The picture files that the command line of `predict.py` means."""
        return find_pictures(words)

    def read_input(self, path: str) -> Tensor:
        """A picture as the network takes it, see ``read_picture``."""
        return read_picture(path, self.image_shape, self.invert)

    def train_dataloader(self):
        return dataloader(self.train_set, self.batch_size, shuffle_seed=self.seed)

    def val_dataloader(self):
        return dataloader(self.val_set, self.batch_size)

    def test_dataloader(self):
        return dataloader(self.test_set, self.batch_size)
