"""Picture files as people have them."""

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
    """Files, in order: those named, those that match a pattern, and those in a folder and its subfolders.

    Hidden files in a folder, which people did not put there, are left out. A word that matches nothing, and
    a folder of nothing, are returned as they are, for whoever opens them to say so.
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
    """Whether Pillow reads a file: by the end of its name or, if that says nothing, by its first bytes."""
    if os.path.splitext(path)[1].lower() in _suffixes():
        return True
    try:
        with Image.open(path):
            return True
    except Exception:  # of files of other kinds Pillow's readers raise whatever their lines happen to
        return False


# Tags of a TIFF: https://www.loc.gov/preservation/digital/formats/content/tiff_tags.shtml
PHOTOMETRIC, SAMPLE_FORMAT = 262, 339


@functools.cache
def _suffixes() -> frozenset[str]:
    """Ends of names, such as ``.jpg``, of the formats that Pillow can decode."""
    endings = Image.registered_extensions()  # which loads the formats
    # Not those that it only recognizes or writes.
    decoded = {name for name, (kind, _) in Image.OPEN.items() if not _is_stub(kind)} - {"MPEG"}
    return frozenset(ending for ending, name in endings.items() if name in decoded)


def _is_stub(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, ImageFile.StubImageFile)


def read_image(path: str | Path, channels: int) -> Tensor:
    """A picture of any kind, in its own size, as uint8 (channels, H, W), 0 to 255.

    Turned as its EXIF data say, laid on white where it is transparent, made grey or coloured. Wide pixels are scaled by
    what they are: 16 bits from 0 to 65535, floats from 0 to 1, any of them to the largest value that a TIFF names.

    Args:
        path: of a file in a format that Pillow reads: PNG, JPEG, WebP, GIF, BMP, TIFF and others.
        channels: 1 or 3.

    Raises:
        OSError: if there is no such file, or it is no picture, or only a part of one.
        ValueError: if it has more pixels than can be meant (a decompression bomb), or pixels of an unknown range.
    """
    try:
        with Image.open(path) as file:
            tags = getattr(file, "tag_v2", {})
            is_signed = file.mode == "L" and 2 in tags.get(SAMPLE_FORMAT, ())
            is_negative = tags.get(PHOTOMETRIC) == 0 and file.mode[0] in "IF"
            layout = str(file.tile[0][3]) if file.tile else ""  # such as RGB;16B, which Pillow makes RGB
            largest = _largest_value(file)
            picture = ImageOps.exif_transpose(file)
            picture.load()
    except UnidentifiedImageError:
        raise OSError("it is not a picture") from None
    except IsADirectoryError:
        raise OSError("there is no image in this folder") from None
    except (Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError(str(error)) from None
    except OSError as error:
        raise OSError(f"it cannot be read: {error.strerror or error}") from None
    except Exception as error:  # of a damaged file Pillow's readers raise whatever their lines happen to
        raise OSError(f"it cannot be read: {error}") from None
    if is_signed or is_negative:
        raise ValueError(f"{'it has signed pixels' if is_signed else '0 stands for white in it'}: save it as a PNG")
    if picture.mode.startswith(("I", "F")):
        picture = Image.fromarray(_eight_bits(numpy.asarray(picture), largest))
    elif ";16" in layout:
        _refuse_twelve_bits(int(numpy.asarray(picture.convert("RGB")).max()) << 8)
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return pil_to_tensor(picture.convert("L" if channels == 1 else "RGB"))


def _largest_value(file: Image.Image) -> float | None:
    """What stands for white, if that is not what the mode says: None for 32 bits that could be anything."""
    tags = getattr(file, "tag_v2", {})
    named = tags.get(341, tags.get(281))  # SMaxSampleValue, MaxSampleValue: https://www.loc.gov/preservation/digital
    if named is not None:
        return float(max(named) if isinstance(named, tuple) else named)
    if file.mode == "F":
        return 1.0
    return None if file.mode == "I" and file.format == "TIFF" else 65535.0


def _eight_bits(pixels: numpy.ndarray, largest: float | None) -> numpy.ndarray:
    """Wide pixels (H, W) as uint8.

    Raises:
        ValueError: if it is not known which value is white, or there are values beyond it.
    """
    low, high = pixels.min(), pixels.max()
    kind = "floats" if pixels.dtype.kind == "f" else "32-bit numbers" if largest is None else "numbers"
    if largest is None or not 0 <= low <= high <= largest:
        known = "" if largest is None else f", and {largest:g} is white"
        raise ValueError(
            f"its pixels are {kind} from {low:g} to {high:g}{known}: scale them to 0 to 255 and save it with 8 bits"
        )
    if largest == 65535:
        _refuse_twelve_bits(int(high))
        return (pixels.astype(numpy.int64) >> 8).astype(numpy.uint8)
    return (pixels.astype(numpy.float64) * (255 / largest)).round().astype(numpy.uint8)


def _refuse_twelve_bits(high: int) -> None:
    """Refuses what would be all but black.

    Raises:
        ValueError: if the largest of values with 16 bits needs no more than 12.
    """
    if 0 < high < 4096:
        raise ValueError(
            "its pixels have 16 bits and use 12 at most, so that it would be read as black: scale them to 0 to 255 and "
            "save it with 8 bits, or name the largest value in the tag MaxSampleValue of a TIFF"
        )


def resize_and_crop(image: Tensor, image_shape: Sequence[int], center_crop_share: float = 1.0) -> Tensor:
    """Scales an image and cuts out its centre; one that has the size already is not changed.

    Args:
        image: uint8 (C, H, W).
        image_shape: channels, height and width of the result.
        center_crop_share: of the shorter side, what is left of it, in (0, 1].
    """
    # Imported here, for it takes a quarter of a second, which most runs need not wait for.
    from torchvision.transforms.v2.functional import center_crop, resize

    height, width = image_shape[1:]
    if image.shape[1:] == (height, width):
        return image
    return center_crop(resize(image, [round(max(height, width) / center_crop_share)], antialias=True), [height, width])


def normalization_constants(mean: Sequence[float], std: Sequence[float]) -> dict[str, Tensor]:
    """``mean`` and ``std`` as tensors (C, 1, 1), to subtract and to divide by.

    Args:
        mean: per channel, on the scale 0 to 1.
        std: standard deviation, likewise.

    Raises:
        MisconfigurationException: if one is no list, or a standard deviation is not positive.
    """
    for key, values in {"mean": mean, "std": std}.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise MisconfigurationException(f"data.{key} is {values}; it must be a list: a number per channel.")
    if not all(value > 0 for value in std):
        raise MisconfigurationException(f"data.std is {list(std)}; each standard deviation must be greater than 0.")
    return {name: torch.tensor(list(values)).view(-1, 1, 1) for name, values in (("mean", mean), ("std", std))}


def mean_and_std(images: Tensor) -> tuple[list[float], list[float]]:
    """Per channel, on the scale 0 to 1, of uint8 images (N, C, H, W)."""
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    shares = counts / counts.sum(dim=1, keepdim=True)
    mean = shares @ values
    std = (shares @ values**2 - mean**2).sqrt()
    return mean.tolist(), std.tolist()
