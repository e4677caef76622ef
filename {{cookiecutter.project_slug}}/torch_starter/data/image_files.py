"""A data set of image files that are read from the disk for each batch."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from .augmentation import Augmentation
from .images import read_image, resize_and_crop


class ImageFiles:
    """Image files on the disk; a batch decodes its files.

    Args:
        root: Folder that the paths are relative to.
        images: Path and label of each image.
        image_shape: Channels, height and width of the images, see ``resize_and_crop``.
        center_crop_share: See ``resize_and_crop``.
        augment: Maps an image in its own size, the epoch, and the index of the image (or the number of its draw, see
            ``BatchLoader``) to the image that training sees.
        skip_broken: Whether to skip files that cannot be read instead of raising an error.
    """

    def __init__(
        self,
        root: Path,
        images: Sequence[tuple[str, int]],
        image_shape: Sequence[int],
        center_crop_share: float,
        augment: Augmentation | None,
        skip_broken: bool,
    ) -> None:
        self.root = root
        # Arrays, not lists: reading a Python object changes its reference count, so each worker would copy its memory.
        # The paths are concatenated: an array with one path per row would be as wide as the longest path.
        paths = [os.fsencode(path) for path, _ in images]
        self.paths = numpy.frombuffer(b"".join(paths), dtype=numpy.uint8)
        self.ends = numpy.cumsum([0, *map(len, paths)])
        self.labels = torch.tensor([label for _, label in images], dtype=torch.int64)
        self.image_shape = image_shape
        self.center_crop_share = center_crop_share
        self.augment = augment
        self.skip_broken = skip_broken
        self.broken = torch.zeros(len(images), dtype=torch.bool).share_memory_()  # Workers write to it.

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, epoch: int, indices: Any) -> tuple[Tensor, Tensor]:
        """Return a batch of images, augmented for ``epoch``, and their labels.

        Args:
            epoch: The epoch, from 0.
            indices: The indices of the images or the numbers of their draws (see ``BatchLoader``), int64 (N,).

        Returns:
            Images, uint8 (N, C, H, W), and labels, int64 (N,); fewer than N if files are skipped.

        Raises:
            MisconfigurationException: If a file cannot be read and ``skip_broken`` is false, or no file of the batch
                can be read.
        """
        images, labels = [], []
        draws, indices = indices, indices % len(self)
        for draw, index in zip(draws.tolist(), indices.tolist(), strict=True):
            path = self._path(index)
            try:
                image = read_image(path, self.image_shape[0])
            except (OSError, ValueError) as error:
                if not self.skip_broken and not os.path.exists(path):
                    raise MisconfigurationException(
                        f"{path} does not exist, but the split.csv of the run lists it. If the images were moved, set "
                        f"their folder: data.root=FOLDER (it is {self.root}). If they were removed, skip them: "
                        "data.skip_broken=true"
                    ) from None
                if not self.skip_broken:
                    raise MisconfigurationException(
                        f"{path}: {error}. Repair or remove it, or skip such files: data.skip_broken=true"
                    ) from None
                self.broken[index] = True
                continue
            if self.augment:
                image = self.augment(image, epoch, draw)
            images.append(resize_and_crop(image, self.image_shape, self.center_crop_share))
            labels.append(self.labels[index])
        if not images:
            raise MisconfigurationException(
                f"None of the {len(indices)} files of a batch can be read. One is {self._path(indices[0].item())}."
            )
        return torch.stack(images), torch.stack(labels)

    def broken_files(self) -> list[str]:
        """Return the paths of the files that were skipped."""
        return [self._path(index) for index in self.broken.nonzero().flatten().tolist()]

    def _path(self, index: int) -> str:
        path = self.paths[self.ends[index] : self.ends[index + 1]].tobytes()
        return str(self.root / os.fsdecode(path))
