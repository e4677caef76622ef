"""Draw digits that look like MNIST, in MNIST's file format, so that nothing is downloaded."""

import struct
from pathlib import Path

import numpy
from PIL import Image, ImageDraw, ImageFont

from this_project import OUTPUTS


def draw(label: int, generator: numpy.random.Generator) -> Image.Image:
    """Draw a digit on 28 x 28 gray pixels, bright on dark, slightly moved, rotated and blurred."""
    size, x, y, angle = generator.uniform([18, 11, 11, -20], [26, 17, 17, 20])
    image = Image.new("L", (28, 28))
    ImageDraw.Draw(image).text((x, y), str(label), fill=255, font=ImageFont.load_default(size), anchor="mm")
    return image.rotate(angle, Image.Resampling.BILINEAR, center=(x, y))


def write(train: int, test: int) -> Path:
    """Write both splits in the IDX format: a header with the type (8 is uint8) and the sizes, then the numbers.

    Args:
        train: number of training images.
        test: number of test images.

    Returns:
        The folder that torchvision calls ``root``.
    """
    root = OUTPUTS / "digits"
    raw = root / "MNIST/raw"
    raw.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate({"train": train, "t10k": test}.items()):
        generator = numpy.random.default_rng(seed)
        labels = generator.integers(10, size=count, dtype=numpy.uint8)
        images = numpy.stack([numpy.asarray(draw(label, generator)) for label in labels])
        for kind, numbers in ((f"images-idx{images.ndim}", images), ("labels-idx1", labels)):
            header = struct.pack(f">BBBB{numbers.ndim}I", 0, 0, 8, numbers.ndim, *numbers.shape)
            (raw / f"{name}-{kind}-ubyte").write_bytes(header + numbers.tobytes())
    return root
