"""Picture files as people have them."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor


def find_pictures(words: Sequence[str]) -> Iterator[str]:
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


def read_picture(path: str, channels: int) -> Tensor:
    """A picture of any kind, in its own size, as uint8 (channels, H, W), 0 to 255.

    Turned as its EXIF data say, laid on white where it is transparent, made grey or coloured, 16 bits made 8.

    Args:
        path: of a file in a format that Pillow reads: PNG, JPEG, WebP, GIF, BMP, TIFF and others.
        channels: 1 or 3.

    Raises:
        OSError: if there is no such file, or it is no picture, or only a part of one.
        ValueError: if it has more pixels than can be meant (a decompression bomb).
    """
    try:
        with Image.open(path) as file:
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
    if picture.mode.startswith("I"):
        # 16 bits per pixel. Pillow would cut what is over 255 instead of scaling it.
        picture = Image.fromarray((numpy.asarray(picture) >> 8).astype(numpy.uint8))
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return pil_to_tensor(picture.convert("L" if channels == 1 else "RGB"))


def fit(image: Tensor, image_shape: Sequence[int], center_crop_share: float = 1.0) -> Tensor:
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
