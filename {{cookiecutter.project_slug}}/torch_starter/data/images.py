"""Finds and reads image files of all common formats."""

import functools
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor


def find_images(words: Sequence[str]) -> Iterator[str]:
    """Yield the files that the arguments of a command name, in order.

    Hidden files in folders are skipped, since users did not put them there. A word that matches nothing and an empty
    folder are yielded unchanged, so that opening them reports the error.

    Args:
        words: Paths of files, glob patterns, and folders, which are searched with their subfolders.

    Yields:
        The path of each file.
    """
    for word in words:
        matches = [word] if Path(word).exists() else sorted(glob.glob(word, recursive=True)) or [word]
        for path in map(Path, matches):
            if not path.is_dir():
                yield str(path)
                continue
            files = sorted(file for file in path.rglob("*") if file.is_file())
            shown = [str(file) for file in files if not any(p.startswith(".") for p in file.relative_to(path).parts)]
            yield from shown or [str(path)]


def is_image(path: str | Path) -> bool:
    """Return whether Pillow can read a file, judged by its suffix or, if that is unknown, by its first bytes."""
    if os.path.splitext(path)[1].lower() in _suffixes():
        return True
    try:
        with Image.open(path):
            return True
    except Exception:  # Pillow's readers raise errors of any type for files of other kinds.
        return False


# TIFF tags: https://www.loc.gov/preservation/digital/formats/content/tiff_tags.shtml
PHOTOMETRIC, SAMPLE_FORMAT = 262, 339


@functools.cache
def _suffixes() -> frozenset[str]:
    """Return the suffixes, such as ``.jpg``, of the formats that Pillow can decode."""
    endings = Image.registered_extensions()  # This call also loads the formats.
    # Exclude formats that Pillow only identifies or writes.
    decoded = {name for name, (kind, _) in Image.OPEN.items() if not _is_stub(kind)} - {"MPEG"}
    return frozenset(ending for ending, name in endings.items() if name in decoded)


def _is_stub(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, ImageFile.StubImageFile)


def read_image(path: str | Path, channels: int) -> Tensor:
    """Read an image file in its own size.

    The image is rotated by its EXIF orientation, composited on white where it is transparent, and converted to gray or
    RGB. Pixels of more than 8 bits are scaled from their range: 0 to 65535 for 16 bits, 0 to 1 for floats, or 0 to the
    maximum value that a TIFF declares.

    Args:
        path: Path of a file in a format that Pillow reads: PNG, JPEG, WebP, GIF, BMP, TIFF and others.
        channels: 1 (gray) or 3 (RGB).

    Returns:
        uint8 (channels, H, W), 0 to 255.

    Raises:
        OSError: If the file does not exist, is not an image, or is truncated.
        ValueError: If the image is so large that it may be a decompression bomb, or the range of its pixels is unknown.
    """
    try:
        with Image.open(path) as file:
            tags = getattr(file, "tag_v2", {})
            is_signed = file.mode == "L" and 2 in tags.get(SAMPLE_FORMAT, ())
            is_negative = tags.get(PHOTOMETRIC) == 0 and file.mode[0] in "IF"
            layout = str(file.tile[0][3]) if file.tile else ""  # such as RGB;16B, which Pillow converts to RGB
            largest = _largest_value(file)
            image = ImageOps.exif_transpose(file)
            image.load()
    except UnidentifiedImageError:
        raise OSError("it is not an image") from None
    except IsADirectoryError:
        raise OSError("there is no image in this folder") from None
    except (Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError(str(error)) from None
    except OSError as error:
        raise OSError(f"it cannot be read: {error.strerror or error}") from None
    except Exception as error:  # Pillow's readers raise errors of any type for damaged files.
        raise OSError(f"it cannot be read: {error}") from None
    if is_signed or is_negative:
        raise ValueError(f"{'it has signed pixels' if is_signed else '0 means white in it'}; save it as a PNG")
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_eight_bits(numpy.asarray(image), largest))
    elif ";16" in layout:
        _refuse_twelve_bits(int(numpy.asarray(image.convert("RGB")).max()) << 8)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return pil_to_tensor(image.convert("L" if channels == 1 else "RGB"))


def _largest_value(file: Image.Image) -> float | None:
    """Return the pixel value of white in an image of more than 8 bits; None for 32 bits of unknown range."""
    tags = getattr(file, "tag_v2", {})
    declared = tags.get(341, tags.get(281))  # SMaxSampleValue, MaxSampleValue: see TIFF tags above
    if declared is not None:
        return float(max(declared) if isinstance(declared, tuple) else declared)
    if file.mode == "F":
        return 1.0
    return None if file.mode == "I" and file.format == "TIFF" else 65535.0


def _to_eight_bits(pixels: numpy.ndarray, largest: float | None) -> numpy.ndarray:
    """Convert pixels (H, W) of more than 8 bits to uint8.

    Raises:
        ValueError: If the value of white is unknown or pixels exceed it.
    """
    low, high = pixels.min(), pixels.max()
    kind = "floats" if pixels.dtype.kind == "f" else "32-bit numbers" if largest is None else "numbers"
    if largest is None or not 0 <= low <= high <= largest:
        known = "" if largest is None else f", and {largest:g} is white"
        raise ValueError(
            f"its pixels are {kind} from {low:g} to {high:g}{known}; scale them to 0 to 255 and save it with 8 bits"
        )
    if largest == 65535:
        _refuse_twelve_bits(int(high))
        return (pixels.astype(numpy.int64) >> 8).astype(numpy.uint8)
    return (pixels.astype(numpy.float64) * (255 / largest)).round().astype(numpy.uint8)


def _refuse_twelve_bits(high: int) -> None:
    """Refuse an image that would be almost black.

    Raises:
        ValueError: If the largest 16-bit value fits into 12 bits.
    """
    if 0 < high < 4096:
        raise ValueError(
            "its pixels have 16 bits but use 12 at most, so it would be almost black; scale them to 0 to 255 and save "
            "it with 8 bits, or save it as a TIFF with the largest value in its tag MaxSampleValue"
        )


def resize_and_crop(image: Tensor, image_shape: Sequence[int], center_crop_share: float = 1.0) -> Tensor:
    """Resize an image and crop its center; an image that already has the right size is returned unchanged.

    Args:
        image: uint8 (C, H, W).
        image_shape: Channels, height and width of the result.
        center_crop_share: Fraction of the shorter side that the crop keeps, in (0, 1].

    Returns:
        uint8 (C, height, width).
    """
    # This import takes a quarter of a second, and most runs do not need it.
    from torchvision.transforms.v2.functional import center_crop, resize

    height, width = image_shape[1:]
    if image.shape[1:] == (height, width):
        return image
    return center_crop(resize(image, [round(max(height, width) / center_crop_share)], antialias=True), [height, width])


def normalization_constants(mean: Sequence[float], std: Sequence[float]) -> dict[str, Tensor]:
    """Return the constants that normalize images.

    Args:
        mean: Mean per channel, on the scale 0 to 1.
        std: Standard deviation per channel, on the scale 0 to 1.

    Returns:
        ``mean`` to subtract and ``std`` to divide by, both float32 (C, 1, 1).

    Raises:
        MisconfigurationException: If one is not a list, or a standard deviation is not positive.
    """
    for key, values in {"mean": mean, "std": std}.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise MisconfigurationException(f"data.{key} is {values}; it must be a list with one number per channel.")
    if not all(value > 0 for value in std):
        raise MisconfigurationException(f"data.std is {list(std)}; each standard deviation must be greater than 0.")
    return {name: torch.tensor(list(values)).view(-1, 1, 1) for name, values in (("mean", mean), ("std", std))}


def mean_and_std(images: Tensor) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation of each channel, on the scale 0 to 1.

    Args:
        images: uint8 (N, C, H, W).
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    shares = counts / counts.sum(dim=1, keepdim=True)
    mean = shares @ values
    std = (shares @ values**2 - mean**2).sqrt()
    return mean.tolist(), std.tolist()
