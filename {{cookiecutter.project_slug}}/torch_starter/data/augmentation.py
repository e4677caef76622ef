"""Reproducible random augmentation of images."""

from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

from .batch_augmentation import Draws


class Augmentation:
    """Applies random transforms to one image at a time.

    The random numbers depend only on (seed, epoch, index), not on the process or on earlier draws. Therefore, neither
    workers nor an interruption change the result. For a ``BatchLoader`` with weights, the number of the draw takes the
    place of the index.

    Args:
        transforms: Transforms of ``torchvision.transforms.v2`` or of batches (see batch_augmentation.py) by name,
            applied in this order. The names have no effect; transforms that are None are skipped.
        seed: The seed of the run.
    """

    def __init__(self, transforms: Mapping[str, Any], seed: int) -> None:
        self.transforms = [transform for transform in transforms.values() if transform]
        self.seed = seed

    def __call__(self, image: Tensor, epoch: int, index: int) -> Tensor:
        """Return the augmented image.

        Args:
            image: uint8 (C, H, W).
            epoch: The epoch, from 0.
            index: The index of the sample or the number of its draw.

        Returns:
            The image in the size that the transforms give it.
        """
        sequence = numpy.random.SeedSequence([self.seed, epoch, index])
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed the generators of the GPUs.
            torch.default_generator.manual_seed(int(sequence.generate_state(1)[0]))
            for place, transform in enumerate(self.transforms):
                if _is_for_batches(transform):
                    draws = Draws(self.seed, epoch, place, torch.tensor([index]))
                    image = transform.augment_batch(image[None], draws)[0]
                else:
                    image = transform(image)
        return image


class BatchAugmentation(Augmentation):
    """Applies transforms to whole batches; each image becomes what ``Augmentation`` makes of it alone."""

    def augment_batch(self, images: Tensor, epoch: int, indices: Tensor) -> Tensor:
        """Return the augmented images.

        Args:
            images: uint8 (N, C, H, W).
            epoch: The epoch, from 0.
            indices: The indices of the samples or the numbers of their draws, int64 (N,), on the device of the images.
        """
        for place, transform in enumerate(self.transforms):
            images = transform.augment_batch(images, Draws(self.seed, epoch, place, indices))
        return images


def augmentation(transforms: Mapping[str, Any] | None, seed: int) -> Augmentation | None:
    """Return the augmentation of a data set; it handles whole batches if all transforms can.

    Args:
        transforms: Transforms by name; those that are None are skipped.
        seed: The seed of the run.

    Returns:
        The augmentation, or None if there are no transforms.
    """
    if not transforms or not any(transforms.values()):
        return None
    are_for_batches = all(_is_for_batches(transform) for transform in transforms.values() if transform)
    return (BatchAugmentation if are_for_batches else Augmentation)(transforms, seed)


def _is_for_batches(transform: Any) -> bool:
    return hasattr(transform, "augment_batch")
