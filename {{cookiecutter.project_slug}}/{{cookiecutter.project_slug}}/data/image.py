"""Data module for torchvision's image data sets that fit in memory."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchvision import datasets

from torch_starter.data.augmentation import augmentation
from torch_starter.data.batches import BatchLoader, TensorBatches, make_workers, shuffle_seed
from torch_starter.data.download import download
from torch_starter.data.drawing import center_ink
from torch_starter.data.evaluation import evaluation_batch_size
from torch_starter.data.images import find_images, mean_and_std, read_image, resize_and_crop
from torch_starter.data.splits import check_folds, split_fold
from torch_starter.mistakes import close_to


class ImageDataModule(LightningDataModule):
    """A data set of torchvision, stored as one uint8 tensor per split.

    The test set is torchvision's test split and is used only for testing. The validation set is split off the training
    split. Batches are pairs of uint8 images (N, C, H, W), 0 to 255, and int64 labels (N,).

    Args:
        dataset: name of a class in ``torchvision.datasets`` that has a training and a test split and stores its
            images in ``data``: MNIST, FashionMNIST, KMNIST, QMNIST, EMNIST, USPS, CIFAR10, CIFAR100, SVHN, STL10.
        root: folder of the files, which are downloaded if missing.
        image_shape: channels, height and width; must match the files. None: read from the files.
        num_classes: number of classes; must match the files. None: read from the files.
        class_names: class names in the order of the labels. None: torchvision's names.
        mean: mean of the training images per channel, in the range 0 to 1, for the model. None: computed.
        std: standard deviation of the training images per channel, in the range 0 to 1, for the model. None: computed.
        batch_size: images per training step.
        num_val: number of images that are split off the training split for validation.
        augmentation: training transforms of ``torch_starter.data.batch_augmentation`` or
            ``torchvision.transforms.v2``, by names of your choice.
        num_workers: number of processes for transforms of one image at a time, see ``workers_for``. Transforms of
            whole batches need none.
        seed: seed of the validation split or folds, of the order of the training batches and of the augmentation.
        options: other arguments of the data set class, such as EMNIST's ``split``.
        ink_size: for drawings, the height or width of the ink in an image, in pixels; ``predict.py`` then finds the
            ink on a sheet, see ``center_ink``. None: images are resized and cropped.
        num_folds: number of folds of the training split, for cross-validation. None: ``num_val`` images are split off.
        fold: the fold for validation, from 0 to ``num_folds - 1``.
        eval_batch_size: images per validation or test step. None: see ``evaluation_batch_size``.

    Raises:
        MisconfigurationException: if an argument does not match the data set, or its files are not available.
    """

    def __init__(
        self,
        dataset: str,
        root: str,
        image_shape: Sequence[int] | None,
        num_classes: int | None,
        class_names: Sequence[str] | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        batch_size: int,
        num_val: int,
        augmentation: Mapping[str, Any] | None,
        num_workers: int | None,
        seed: int,
        options: Mapping[str, Any],
        ink_size: int | None = None,
        num_folds: int | None = None,
        fold: int = 0,
        eval_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if dataset not in datasets.__all__:
            nearest = ", ".join(close_to(dataset, datasets.__all__, count=3)) or "none"
            raise MisconfigurationException(
                f"data.dataset is {dataset}; torchvision.datasets has no such class. Nearest: {nearest}."
            )
        self.dataset = getattr(datasets, dataset)
        self.root = Path(root).expanduser()
        self.image_shape = tuple(image_shape or ())  # set when the files are read
        self.num_classes = num_classes
        self.class_names = class_names
        self.mean = mean
        self.std = std
        self.batch_size = batch_size
        self.num_val = num_val
        self.augmentation = augmentation
        self.num_workers = num_workers
        self.seed = seed
        self.options = dict(options)
        self.ink_size = ink_size
        self.num_folds = num_folds
        self.fold = fold
        self.eval_batch_size = eval_batch_size
        check_folds(num_folds, fold)

    def prepare_data(self) -> None:
        if hasattr(self, "train_set"):
            return  # facts has prepared the data
        try:
            download(self.dataset, self.root, [self._split(train=True), self._split(train=False)])
        except ModuleNotFoundError as error:  # SVHN is stored in MATLAB files
            raise MisconfigurationException(
                f"{self.dataset.__name__} needs a package that is not installed: pip install {error.name}"
            ) from error

    def facts(self) -> dict[str, Any]:
        """Return the values that the config leaves open, read from the files."""
        self.prepare_data()
        self._read()
        names = ("num_classes", "class_names", "mean", "std")
        return {"image_shape": list(self.image_shape), **{name: getattr(self, name) for name in names}}

    def class_counts(self) -> list[int]:
        """Return the number of training images of each class."""
        return self.train_set.tensors[1].bincount(minlength=self.num_classes or 0).tolist()

    def setup(self, stage: str) -> None:
        if stage == "test":
            self.test_set = TensorBatches(*self._load(train=False))
            return
        if not hasattr(self, "train_set"):
            self._read()
        is_slow = self.train_set.is_slow  # otherwise worker processes do not pay off
        self.workers = make_workers([self.train_set, self.val_set], self.num_workers) if is_slow else None

    def _read(self) -> None:
        """Read the training and the validation set."""
        images, labels = self._load(train=True)
        if self.num_folds is None and not 1 <= self.num_val < len(images):
            raise MisconfigurationException(
                f"data.num_val is {self.num_val}; the training split has {len(images)} images, "
                f"so it must be 1 to {len(images) - 1}."
            )
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
        if self.num_folds is None:
            val, train = order[: self.num_val], order[self.num_val :]
        else:
            train, val = split_fold(order, self.num_folds, self.fold)
        augment = augmentation(self.augmentation, self.seed)
        self.val_set = TensorBatches(images[val], labels[val])
        self.train_set = TensorBatches(images[train], labels[train], augment=augment)
        if self.mean is None or self.std is None:
            self.mean, self.std = mean_and_std(self.train_set.tensors[0])

    def _split(self, train: bool) -> dict[str, Any]:
        """Return the arguments of the data set class that select a split."""
        parameters = inspect.signature(self.dataset).parameters
        if "train" in parameters or issubclass(self.dataset, datasets.MNIST):
            split: dict[str, Any] = {"train": train}
        else:
            split = {"split": "train" if train else "test"}
        missing = [
            name
            for name, parameter in parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind is not parameter.VAR_KEYWORD
            and name not in ("root", *split, *self.options)
        ]
        if not {"train", "split"} & parameters.keys():
            raise MisconfigurationException(f"data.dataset is {self.dataset.__name__}; it has no test split.")
        if missing:
            raise MisconfigurationException(
                f"{self.dataset.__name__} requires {', '.join(missing)}. Set it: +data.options.{missing[0]}=…"
            )
        return split | self.options

    def _load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return the uint8 images (N, C, H, W) and int64 labels (N,) of a split."""
        split = self.dataset(self.root, **self._split(train))
        if not hasattr(split, "data"):
            raise MisconfigurationException(
                f"data.dataset is {self.dataset.__name__}; it does not keep its images in memory. "
                "If it has one folder per class, use data=image_folder."
            )
        images = torch.as_tensor(split.data)
        labels = torch.as_tensor(split.targets if hasattr(split, "targets") else split.labels).long()
        labels = labels[:, 0] if labels.ndim == 2 else labels  # QMNIST has seven more columns
        # torchvision stores grayscale images as (N, H, W) and most color images as (N, H, W, C).
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[3] == 3:
            images = images.permute(0, 3, 1, 2).contiguous()
        if not self.image_shape:
            self.image_shape = tuple(images.shape[1:])
        if tuple(images.shape[1:]) != self.image_shape:
            raise MisconfigurationException(
                f"data.image_shape is {list(self.image_shape)}, but the images are {list(images.shape[1:])}."
            )
        if self.class_names is None:
            # MNIST names its classes "0 - zero", "1 - one", …
            classes = getattr(split, "classes", range(self.num_classes or int(labels.max()) + 1))
            self.class_names = [str(name).partition(" - ")[0] for name in classes]
        if self.num_classes is None:
            self.num_classes = len(self.class_names)
        if labels.max() >= self.num_classes:
            raise MisconfigurationException(
                f"data.num_classes is {self.num_classes}, but the files contain the label {labels.max()}."
            )
        return images, labels

    def find_inputs(self, words: Sequence[str]) -> Iterator[str]:
        """Yield the image files that the arguments of `predict.py` select."""
        return find_images(words)

    def read_input(self, path: str) -> Tensor:
        """Read an image as uint8 (C, H, W), resized and cropped to ``image_shape`` around its center or its ink."""
        image = read_image(path, self.image_shape[0])
        if self.ink_size:
            return center_ink(image, self.image_shape, self.ink_size)  # detects whether the ink is dark or bright
        return resize_and_crop(image, self.image_shape)

    def invert(self, image: Tensor) -> Tensor:
        """Return an image with inverted brightness, unless ``center_ink`` has already detected dark ink."""
        return image if self.ink_size else 255 - image

    def train_dataloader(self):
        return BatchLoader(self.train_set, self.batch_size, shuffle_seed(self), self.workers)

    def val_dataloader(self):
        return BatchLoader(self.val_set, evaluation_batch_size(self), workers=self.workers)

    def test_dataloader(self):
        return BatchLoader(self.test_set, evaluation_batch_size(self))

    def teardown(self, stage: str) -> None:
        if getattr(self, "workers", None):
            self.workers.stop()

    def on_exception(self, exception: BaseException) -> None:
        self.teardown("fit")
