"""Chance in what training sees of an image, and yet the same each time."""

from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

from .batch_augmentation import Draws


class Augmentation:
    """Transforms that are drawn anew for each image and epoch, one image at a time.

    What they draw depends on (seed, epoch, index) alone: not on the process that draws it, nor on what was drawn
    before. So neither workers nor an interruption change it. For a ``BatchLoader`` with weights, the number of the draw
    takes the place of the index.

    Args:
        transforms: of ``torchvision.transforms.v2`` or of batches (see batch_augmentation.py), in this order, by names
            that are for people; None is left out.
        seed: of the run.
    """

    def __init__(self, transforms: Mapping[str, Any], seed: int) -> None:
        self.transforms = [transform for transform in transforms.values() if transform]
        self.seed = seed

    def __call__(self, image: Tensor, epoch: int, index: int) -> Tensor:
        """From a uint8 image (C, H, W) to another, of the size that the transforms give it."""
        sequence = numpy.random.SeedSequence([self.seed, epoch, index])
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reach for the generators of the GPUs, too.
            torch.default_generator.manual_seed(int(sequence.generate_state(1)[0]))
            for place, transform in enumerate(self.transforms):
                if _is_for_batches(transform):
                    draws = Draws(self.seed, epoch, place, torch.tensor([index]))
                    image = transform.augment_batch(image[None], draws)[0]
                else:
                    image = transform(image)
        return image


class BatchAugmentation(Augmentation):
    """Transforms of whole batches; what an image becomes is what ``Augmentation`` makes of it alone."""

    def augment_batch(self, images: Tensor, epoch: int, indices: Tensor) -> Tensor:
        """From uint8 images (N, C, H, W) and their indices, int64 (N,) on the same device, to as many images."""
        for place, transform in enumerate(self.transforms):
            images = transform.augment_batch(images, Draws(self.seed, epoch, place, indices))
        return images


def augmentation(transforms: Mapping[str, Any] | None, seed: int) -> Augmentation | None:
    """What a data set augments with: whole batches, if all transforms can do that.

    Args:
        transforms: by names that are for people; None is left out.
        seed: of the run.

    Returns:
        an Augmentation, or None if there is nothing to do.
    """
    if not transforms or not any(transforms.values()):
        return None
    are_for_batches = all(_is_for_batches(transform) for transform in transforms.values() if transform)
    return (BatchAugmentation if are_for_batches else Augmentation)(transforms, seed)


def _is_for_batches(transform: Any) -> bool:
    return hasattr(transform, "augment_batch")
