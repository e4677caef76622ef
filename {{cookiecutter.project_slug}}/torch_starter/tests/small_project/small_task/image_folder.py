"""Images in one folder per class."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from torch_starter.data.augmentation import augmentation
from torch_starter.data.batches import BatchLoader, balanced_weights, make_workers, shuffle_seed
from torch_starter.data.image_files import ImageFiles
from torch_starter.data.images import find_images, read_image, resize_and_crop
from torch_starter.data.splits import check_folds, make_splits, read_splits, write_splits

log = logging.getLogger(__name__)


class ImageFolder(LightningDataModule):
    """Images in a folder per class, optionally below `train`, `val` and `test`; batches have the format of `Digits`."""

    def __init__(
        self,
        root: str,
        image_shape: Sequence[int],
        center_crop_share: float,
        num_classes: int | None,
        class_names: Sequence[str] | None,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        val_share: float,
        test_share: float,
        split_file: str,
        split_of: str | None,
        augmentation: Mapping[str, Any] | None,
        skip_broken: bool,
        num_workers: int | None,
        seed: int,
        num_folds: int | None = None,
        fold: int = 0,
        balance: bool = False,
    ) -> None:
        super().__init__()
        self.root = Path(root).expanduser()
        self.image_shape = tuple(image_shape)
        self.center_crop_share = center_crop_share
        self.num_classes = num_classes
        self.class_names = class_names
        self.mean, self.std = (
            [sum(values) / 3] if image_shape[0] == 1 and len(values) == 3 else values for values in (mean, std)
        )
        self.batch_size = batch_size
        self.shares = {"val": val_share, "test": test_share}
        self.split_file = Path(split_file)
        self.split_of = split_of
        self.augmentation = augmentation
        self.skip_broken = skip_broken
        self.num_workers = num_workers
        self.seed = seed
        self.num_folds = num_folds
        self.fold = fold
        self.balance = balance
        check_folds(num_folds, fold)
        for name, share in {**self.shares, "center_crop": center_crop_share}.items():
            if not 0 < share < 1 and not (name == "center_crop" and share == 1):
                raise MisconfigurationException(f"data.{name}_share is {share}; it must be between 0 and 1.")
        if image_shape[0] not in (1, 3):
            raise MisconfigurationException(
                f"data.image_shape is {list(image_shape)}; images must have 1 or 3 channels."
            )

    def facts(self) -> dict[str, Any]:
        """Return the values of the config that depend on the folder."""
        self._read()
        return {name: getattr(self, name) for name in ("num_classes", "class_names", "mean", "std")}

    def setup(self, stage: str) -> None:
        if not hasattr(self, "train_set"):
            self._read()
        if not hasattr(self, "workers"):
            self.workers = make_workers([self.train_set, self.val_set, self.test_set], self.num_workers)

    def _read(self) -> None:
        """Read all three splits."""
        if self.split_file.exists():
            rows = read_splits(self.split_file)
        else:
            split_of = Path(self.split_of, self.split_file.name) if self.split_of else None
            rows = make_splits(self.root, self.shares, self.seed, split_of, self.num_folds, self.fold)
            if self.split_file.parent.is_dir():
                write_splits(self.split_file, rows)
        classes = sorted({name for split, name, _ in rows if split == "train"})
        if self.class_names is not None and list(self.class_names) != classes:
            raise MisconfigurationException(
                f"data.class_names is {list(self.class_names)}, but {self.split_file} has {classes}."
            )
        self.class_names, self.num_classes = classes, len(classes)
        labels = {name: label for label, name in enumerate(classes)}
        datasets = {}
        for split in ("train", "val", "test"):
            images = [(path, labels[name]) for image_split, name, path in rows if image_split == split]
            augment = augmentation(self.augmentation, self.seed) if split == "train" else None
            datasets[split] = ImageFiles(
                self.root, images, self.image_shape, self.center_crop_share, augment, self.skip_broken
            )
        self.train_set, self.val_set, self.test_set = datasets.values()

    def find_inputs(self, words: Sequence[str]) -> Iterator[str]:
        """Yield the image files that the command line of `predict.py` names."""
        return find_images(words)

    def read_input(self, path: str) -> Tensor:
        """Read an image as in validation and test."""
        return resize_and_crop(read_image(path, self.image_shape[0]), self.image_shape, self.center_crop_share)

    def invert(self, image: Tensor) -> Tensor:
        return 255 - image

    def train_dataloader(self):
        weights = balanced_weights(self.train_set.labels) if self.balance else None
        return BatchLoader(self.train_set, self.batch_size, shuffle_seed(self), self.workers, weights)

    def val_dataloader(self):
        return BatchLoader(self.val_set, self.batch_size, workers=self.workers)

    def test_dataloader(self):
        return BatchLoader(self.test_set, self.batch_size, workers=self.workers)

    def teardown(self, stage: str) -> None:
        if self.workers and stage != "fit":  # the test needs them after fit
            self.workers.stop()
        sets = (self.test_set,) if stage == "test" else (self.train_set, self.val_set)
        broken = [path for dataset in sets for path in dataset.broken_files()]
        if broken:
            more = f" and {len(broken) - 10} more" if len(broken) > 10 else ""
            log.warning(
                f"{len(broken)} files were skipped because they could not be read: {', '.join(broken[:10])}{more}"
            )

    def on_exception(self, exception: BaseException) -> None:
        if getattr(self, "workers", None):
            self.workers.stop()
