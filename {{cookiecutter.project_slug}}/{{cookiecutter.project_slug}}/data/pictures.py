"""Picture files as people have them."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor


def find_pictures(words: Sequence[str]) -> Iterator[str]:
    """Files, in order: those named, those that match a pattern, and those in a folder and its subfolders.

    Hidden files in a folder, which people did not put there, are left out. A word that matches nothing is
    returned as it is, for whoever opens it to say so.
    """
    for word in words:
        matches = [word] if Path(word).exists() else sorted(glob.glob(word, recursive=True)) or [word]
        for path in map(Path, matches):
            if not path.is_dir():
                yield str(path)
                continue
            files = sorted(file for file in path.rglob("*") if file.is_file())
            yield from (str(file) for file in files if not any(p.startswith(".") for p in file.relative_to(path).parts))


def read_picture(path: str, image_shape: Sequence[int], invert: bool = False) -> Tensor:
    """A picture of any size and kind as uint8 (C, H, W), 0 to 255.

    Turned as its EXIF data say, laid on white where it is transparent, made grey or coloured, scaled to cover
    H x W and cut around its centre. A picture that has the right size and kind already is not changed.

    Args:
        path: of a file in a format that Pillow reads: PNG, JPEG, WebP, GIF, BMP, TIFF and others.
        image_shape: C, H and W; C is 1 or 3.
        invert: black for white and white for black.

    Raises:
        OSError: if there is no such file, or it is no picture, or only a part of one.
        ValueError: if it has more pixels than can be meant (a decompression bomb).
    """
    channels, height, width = image_shape
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            image.load()
    except UnidentifiedImageError:
        raise OSError("it is not a picture") from None
    except (Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError(str(error)) from None
    except OSError as error:
        raise OSError(f"it cannot be read: {error.strerror or error}") from None
    if image.mode.startswith("I"):
        # 16 bits per pixel. Pillow would cut what is over 255 instead of scaling it.
        image = Image.fromarray((numpy.asarray(image) >> 8).astype(numpy.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    return pil_to_tensor(ImageOps.invert(image) if invert else image)
