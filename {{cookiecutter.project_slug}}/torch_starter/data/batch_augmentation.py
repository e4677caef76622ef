"""Augmentation of whole batches of images by a few tensor operations on the device of the images.

No operation waits for the device: none reads a value, and no shape depends on a value. A transform is any object with::

    def augment_batch(self, images: Tensor, draws: Draws) -> Tensor: ...

It takes uint8 images (N, C, H, W) and returns N images. It must treat each image independently of the rest of the batch
and take random numbers from ``draws`` only. Then batch size, workers, ranks, and interruptions have no effect on what
training sees.
"""

import math
from collections.abc import Sequence

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn.functional import grid_sample, pad

# Steele, Lea and Flood: Fast splittable pseudorandom number generators (2014), https://doi.org/10.1145/2660193.2660195.
# The constants, as int64, are from https://prng.di.unimi.it/splitmix64.c
GAMMA, FACTOR_1, FACTOR_2 = (n - 2**64 for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
# Random numbers per image that are computed at a time; on a GPU, a block takes as long as one number.
BLOCK = 8


def mix(x):
    """Return the splitmix64 hash of an int64 tensor or of the lowest 64 bits of an int, equal on every device."""
    # Tensors have no logical shift; the mask removes the copies of the sign bit.
    x = (x ^ ((x >> 30) & (2**34 - 1))) * FACTOR_1
    x = (x ^ ((x >> 27) & (2**37 - 1))) * FACTOR_2
    return x ^ ((x >> 31) & (2**33 - 1))


class Draws:
    """Random numbers for each image that depend only on (seed, epoch, place, index) and the number of the draw.

    Each image has its own splitmix64 generator, seeded by a hash of these four numbers.

    Args:
        seed: The seed of the run.
        epoch: The epoch, from 0.
        place: The position of the transform in the list of transforms, from 0.
        indices: The indices of the samples (or the numbers of their draws, see ``BatchLoader``), int64 (N,), on the
            device of the images.
    """

    def __init__(self, seed: int, epoch: int, place: int, indices: Tensor) -> None:
        key = 0
        for number in (seed, epoch, place):
            key = mix(key + number + GAMMA)
        key = (key + 2**63) % 2**64 - 2**63  # as int64
        self.streams = mix(indices * GAMMA + key)
        self.count = 0
        self.ready: list[Tensor] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return a uniform number from ``low`` to ``high`` for each image.

        Returns:
            float32 (N,), in steps of 2**-24 of the range.
        """
        return self._next().float() * ((high - low) / 2**24) + low

    def integer(self, low: int, high: int) -> Tensor:
        """Return a uniform integer from ``low`` to ``high - 1`` for each image, int64 (N,)."""
        return ((self._next() * (high - low)) >> 24) + low

    def _next(self) -> Tensor:
        """Return 24 random bits for each image, int64 (N,); a float32 holds them exactly."""
        if not self.ready:
            steps = torch.arange(self.count + BLOCK, self.count, -1, device=self.streams.device)
            self.ready = list((mix(self.streams + steps[:, None] * GAMMA) >> 40) & (2**24 - 1))
            self.count += BLOCK
        return self.ready.pop()


def _check(is_right: bool, argument: str, value: object, must: str) -> None:
    if not is_right:
        raise MisconfigurationException(f"{argument} is {value}; it must be {must}.")


def _to_range(value: float | Sequence[float]) -> tuple[float, ...]:
    """Return the bounds of a range; a single number is the half-width of a range around 0."""
    return tuple(value) if isinstance(value, Sequence) else (-value, value)


class RandomCrop:
    """Pads images with black and crops each at a random position to its original size.

    Args:
        padding: Pixels on each side.
    """

    def __init__(self, padding: int) -> None:
        _check(type(padding) is int and padding >= 0, "RandomCrop.padding", padding, "a non-negative integer")
        self.padding = padding

    def augment_batch(self, images: Tensor, draws: Draws) -> Tensor:
        """Return randomly cropped images, uint8 (N, C, H, W)."""
        count, channels, height, width = images.shape
        top, left = (draws.integer(0, 2 * self.padding + 1) for _ in range(2))
        padded = pad(images, [self.padding] * 4).contiguous()
        # Each row of a crop is a run of `width` pixels in the memory of the padded images. It is copied as a whole; a
        # gather would look up each pixel.
        image, channel, line, _ = padded.stride()
        first = torch.arange(count, device=images.device) * image + top * line + left
        channel_starts = torch.arange(channels, device=images.device) * channel
        line_starts = torch.arange(height, device=images.device) * line
        starts = first[:, None, None] + channel_starts[:, None] + line_starts
        return padded.flatten().unfold(0, width, 1).index_select(0, starts.flatten()).view_as(images)


class RandomHorizontalFlip:
    """Flips images horizontally.

    Args:
        p: The probability of a flip, from 0 to 1.
    """

    def __init__(self, p: float = 0.5) -> None:
        _check(0 <= p <= 1, "RandomHorizontalFlip.p", p, "between 0 and 1")
        self.p = p

    def augment_batch(self, images: Tensor, draws: Draws) -> Tensor:
        """Return randomly flipped images, uint8 (N, C, H, W)."""
        is_flipped = draws.uniform() < self.p
        # On the CPU, index_select is several times faster than torch.where.
        both = torch.cat([images, images.flip(3)])
        return both.index_select(0, torch.arange(len(images), device=images.device) + len(images) * is_flipped)


class RandomAffine:
    """Rotates, translates, scales, and shears images about their center, with bilinear interpolation and black fill.

    The random numbers are equal on every device; interpolated pixels can differ by 1 of 255 between devices.

    Args:
        degrees: The rotation in degrees: a pair of bounds, or one number for the range from -degrees to degrees.
        translate: The maximum shift as fractions of width and height, from 0 to 1.
        scale: The bounds of the scale factor, above 0.
        shear: The shear along x in degrees: a pair of bounds, or one number for the range from -shear to shear.
    """

    def __init__(
        self,
        degrees: float | Sequence[float],
        translate: Sequence[float] = (0.0, 0.0),
        scale: Sequence[float] = (1.0, 1.0),
        shear: float | Sequence[float] = 0.0,
    ) -> None:
        self.degrees, self.shear = _to_range(degrees), _to_range(shear)
        self.translate = tuple(translate)
        self.scale = tuple(scale)
        for name in ("degrees", "shear", "scale", "translate"):
            _check(len(getattr(self, name)) == 2, f"RandomAffine.{name}", list(getattr(self, name)), "two numbers")
        are_shares = all(0 <= share <= 1 for share in translate)
        _check(are_shares, "RandomAffine.translate", list(translate), "two fractions between 0 and 1")
        _check(min(scale) > 0, "RandomAffine.scale", list(scale), "two positive numbers")
        _check(max(map(abs, self.shear)) < 90, "RandomAffine.shear", shear, "less than 90 degrees")

    def augment_batch(self, images: Tensor, draws: Draws) -> Tensor:
        """Return randomly transformed images, uint8 (N, C, H, W)."""
        height, width = images.shape[2:]
        angle = draws.uniform(*self.degrees)[:, None, None] * (math.pi / 180)
        shear = torch.tan(draws.uniform(*self.shear)[:, None, None] * (math.pi / 180))
        scale = draws.uniform(*self.scale)[:, None, None]
        # Pixels of the result, from the center after the shift: (N, 1, W) and (N, H, 1).
        x, y = (
            torch.arange(size, device=images.device) - (size - 1) / 2 - size * draws.uniform(-share, share)[:, None]
            for size, share in zip((width, height), self.translate, strict=True)
        )
        x, y = x[:, None, :] / scale, y[:, :, None] / scale
        # The inverse matrix gives their source; in grid_sample an image extends from -1 to 1. This multiplies and adds
        # single numbers because a matrix product may depend on the batch size.
        sin, cos = angle.sin(), angle.cos()
        from_x = torch.complex((cos - sin * shear) * (2 / width) * x, -sin * (2 / height) * x)
        from_y = torch.complex((cos * shear + sin) * (2 / width) * y, cos * (2 / height) * y)
        grid = torch.view_as_real(from_x + from_y)  # (N, H, W, 2), much faster than torch.stack
        return grid_sample(images.float(), grid, align_corners=False).round().to(torch.uint8)


class Cutout:
    """Blackens a square around a random pixel; it may extend beyond the image: https://arxiv.org/abs/1708.04552.

    Args:
        size: The side of the square in pixels.
    """

    def __init__(self, size: int) -> None:
        _check(type(size) is int and size >= 1, "Cutout.size", size, "a positive integer")
        self.size = size

    def augment_batch(self, images: Tensor, draws: Draws) -> Tensor:
        """Return images with a random black square, uint8 (N, C, H, W)."""
        # (N, H) and (N, W): distance in pixels from the upper left corner of the square.
        rows, columns = (
            torch.arange(length, device=images.device) - draws.integer(0, length)[:, None] + self.size // 2
            for length in images.shape[2:]
        )
        is_row_cut, is_column_cut = ((place >= 0) & (place < self.size) for place in (rows, columns))
        is_kept = ~(is_row_cut[:, :, None] & is_column_cut[:, None, :])
        return images * is_kept[:, None]
