"""Chance in what training sees of an image, and yet the same each time."""

from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor


class Augmentation:
    """Transforms of ``torchvision.transforms.v2``, drawn anew for each image and epoch.

    What they draw depends on (seed, epoch, index) alone: not on the process that draws it, nor on what was drawn
    before. So neither workers nor an interruption change it. For a ``BatchLoader`` with weights, the number of the draw
    takes the place of the index.

    Args:
        transforms: by names that are for people; None is left out.
        seed: of the run.
    """

    def __init__(self, transforms: Mapping[str, Any], seed: int) -> None:
        # Imported here, for it takes a quarter of a second, which most runs need not wait for.
        from torchvision.transforms import v2

        self.transform = v2.Compose([transform for transform in transforms.values() if transform])
        self.seed = seed

    def __call__(self, image: Tensor, epoch: int, index: int) -> Tensor:
        """From a uint8 image (C, H, W) to another, of the size that the transforms give it."""
        sequence = numpy.random.SeedSequence([self.seed, epoch, index])
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reach for the generators of the GPUs, too.
            torch.default_generator.manual_seed(int(sequence.generate_state(1)[0]))
            return self.transform(image)


def augmentation(transforms: Mapping[str, Any] | None, seed: int) -> Augmentation | None:
    """An Augmentation, or None if there is nothing to do."""
    return Augmentation(transforms, seed) if transforms and any(transforms.values()) else None
