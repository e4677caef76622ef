"""A data set of image files, which stay on the disk."""

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
    """Pictures on a disk, decoded when a batch is asked for.

    Args:
        root: folder that the paths start from.
        pictures: paths and labels.
        image_shape: see ``fit``.
        center_crop_share: see ``fit``.
        augment: from a picture in its own size, the epoch and the index (or the number of the draw, see
            ``BatchLoader``), to what training sees of it.
        skip_broken: leave out of the batch what cannot be read.
    """

    def __init__(
        self,
        root: Path,
        pictures: Sequence[tuple[str, int]],
        image_shape: Sequence[int],
        center_crop_share: float,
        augment: Augmentation | None,
        skip_broken: bool,
    ) -> None:
        self.root = root
        # Arrays, not lists: each worker that looks at a Python object writes to its memory and so gets a copy of it.
        # One after another, not in a column: that would be as wide as the longest.
        paths = [os.fsencode(path) for path, _ in pictures]
        self.paths = numpy.frombuffer(b"".join(paths), dtype=numpy.uint8)
        self.ends = numpy.cumsum([0, *map(len, paths)])
        self.labels = torch.tensor([label for _, label in pictures], dtype=torch.int64)
        self.image_shape = image_shape
        self.center_crop_share = center_crop_share
        self.augment = augment
        self.skip_broken = skip_broken
        self.broken = torch.zeros(len(pictures), dtype=torch.bool).share_memory_()  # for the workers to write to

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, epoch: int, indices: Any) -> tuple[Tensor, Tensor]:
        """Images, uint8 (N, C, H, W), and labels, int64 (N,).

        Raises:
            MisconfigurationException: if a file cannot be read and ``skip_broken`` is off, or no file of a batch can.
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
                        f"{path}: there is no such file, but it is in the split.csv of the run. If the pictures were "
                        f"moved, say where they are: data.root=FOLDER (it is {self.root}). What was removed is left "
                        "out by data.skip_broken=true."
                    ) from None
                if not self.skip_broken:
                    raise MisconfigurationException(
                        f"{path}: {error}. Mend or remove it, or leave out such files by data.skip_broken=true."
                    ) from None
                self.broken[index] = True
                continue
            if self.augment:
                image = self.augment(image, epoch, draw)
            images.append(resize_and_crop(image, self.image_shape, self.center_crop_share))
            labels.append(self.labels[index])
        if not images:
            raise MisconfigurationException(
                f"None of the {len(indices)} files of a batch can be read, such as {self._path(indices[0].item())}."
            )
        return torch.stack(images), torch.stack(labels)

    def broken_files(self) -> list[str]:
        """Paths of the files that were skipped."""
        return [self._path(index) for index in self.broken.nonzero().flatten().tolist()]

    def _path(self, index: int) -> str:
        path = self.paths[self.ends[index] : self.ends[index + 1]].tobytes()
        return str(self.root / os.fsdecode(path))
