"""Converts a drawing on a sheet to an image like those of MNIST: http://yann.lecun.com/exdb/mnist/."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d, pad

SHEET = 1000  # maximum length of the longer side of a sheet, in pixels; larger sheets are scaled down
OVERVIEW = 64  # length of the longer side of the overview that shows the background and the specks, in pixels
FAINTEST = 0.1  # minimum contrast between ink and background, on the scale 0 to 1
DETAIL = 4  # pixels per pixel of the result, at the resolution where strokes are thickened
STROKE = 2.4  # stroke width of MNIST, 2 * area / perimeter, in pixels of the result


def center_ink(image: Tensor, image_shape: Sequence[int], ink_size: int) -> Tensor:
    """Return the ink on a sheet as bright ink in the center of a black image.

    The steps are those of MNIST's authors: the ink is scaled, with its aspect ratio, so that its longer side is
    ``ink_size``, and its center of mass moves to the center of the image. Thin strokes are widened to the stroke width
    of MNIST. In an image that already has the size of the result, the ink stays where it is; the image is inverted if
    most of it is bright.

    Args:
        image: uint8 (C, H, W), dark ink on a bright background or bright ink on a dark one, evenly lit or not.
        image_shape: Channels, height and width of the result.
        ink_size: Length of the longer side of the ink in the result, in pixels; at most the height and the width.

    Returns:
        uint8 image of ``image_shape``.

    Raises:
        ValueError: If there is no ink.
    """
    if image.shape[1:] == tuple(image_shape[1:]):
        return 255 - image if image.median() > 127 else image
    sheet = image.float().mean(dim=0)[None, None] / 255
    sheet = _scale(sheet, min(1, SHEET / max(sheet.shape)))
    ink = _extract_ink(sheet)
    height, width = (slice(*span) for span in _bounding_box(ink > 0.5))
    ink = _widen_strokes(_scale(ink[..., height, width], DETAIL * ink_size / max(_size(ink[..., height, width]))))
    ink = _scale(ink, ink_size / max(_size(ink)))
    return _center((255 * ink / ink.max()).round().byte()[0], image_shape)


def _extract_ink(sheet: Tensor) -> Tensor:
    """Return the amount of ink, 0 to 1, in each pixel of a sheet (1, 1, H, W), 0 to 1, without specks."""
    small = _scale(sheet, min(1, OVERVIEW / max(sheet.shape)))
    contrast = sheet - interpolate(_estimate_background(small), _size(sheet), mode="bilinear")
    # A mean over the pixels of the overview would almost erase a line that is thinner than such a pixel.
    smooth = avg_pool2d(contrast, 3, stride=1, padding=1, count_include_pad=False)
    # Ink covers less area than the background and differs more from the mean.
    contrast = contrast * smooth.pow(3).sum().sign()
    smooth = smooth * smooth.pow(3).sum().sign()
    strongest = smooth.max()
    if strongest < FAINTEST:
        raise ValueError("it has no drawing on it")
    drawn = smooth > 0.4 * strongest
    level = smooth[drawn].median()
    ink = (contrast / level).clamp(0, 1) * max_pool2d(drawn.float(), 3, stride=1, padding=1)
    return ink * _find_large_parts(drawn)


def _estimate_background(small: Tensor) -> Tensor:
    """Return the background of a sheet (1, 1, H, W): the median of the neighborhood of each pixel."""
    window = min(33, 2 * min(_size(small)) - 1) // 2 * 2 + 1
    around = pad(small, [window // 2] * 4, mode="reflect" if min(_size(small)) > window // 2 else "replicate")
    # Every other pixel gives the same quality and is four times as fast.
    around = around.unfold(2, window, 1).unfold(3, window, 1)[..., ::2, ::2]
    return around.flatten(4).median(dim=4).values


def _find_large_parts(drawn: Tensor) -> Tensor:
    """Return 1 at the parts of a drawing, bool (1, 1, H, W), that are similar in size to the largest; 0 elsewhere."""
    size = _size(drawn)
    cell = max(1, max(size) // (2 * OVERVIEW))
    mass = avg_pool2d(drawn.float(), cell, ceil_mode=True, count_include_pad=False)
    parts = torch.arange(1.0, mass.numel() + 1).view_as(mass) * (mass > 0)
    while True:  # each part gets the largest number in it; the steps double
        grown = max_pool2d(parts, 3, stride=1, padding=1) * (mass > 0)
        grown = torch.cat([torch.zeros(1), grown.flatten()])[grown.long()]
        if grown.equal(parts):
            break
        parts = grown
    masses = torch.bincount(parts.long().flatten(), mass.flatten().double())
    kept = (masses > 0.08 * masses.max())[parts.long()] & (parts > 0)
    return interpolate(max_pool2d(kept.float(), 3, stride=1, padding=1), size)


def _widen_strokes(ink: Tensor) -> Tensor:
    """Widen the strokes of ink (1, 1, H, W) to at least the stroke width of MNIST."""
    inner = pad((ink > 0.5).float(), [1] * 4)
    edge = inner + max_pool2d(-inner, 3, stride=1, padding=1)
    width = 2 * inner.sum() / edge.sum()
    missing = max(0, round(DETAIL * STROKE - width.item()))
    if not missing:
        return ink
    ink = pad(ink, [missing // 2 + 1] * 4)
    ink = max_pool2d(ink, missing // 2 * 2 + 1, stride=1, padding=missing // 2)
    height, width = (slice(*span) for span in _bounding_box(ink > 0.3))
    return ink[..., height, width]


def _center(ink: Tensor, image_shape: Sequence[int]) -> Tensor:
    """Place ink (1, h, w) with its center of mass in the center of a black image, as far as there is room."""
    image = torch.zeros(tuple(image_shape), dtype=torch.uint8)
    corner = []
    for dim, room in enumerate(image_shape[1:]):
        mass = ink[0].double().sum(dim=1 - dim)
        middle = (mass * torch.arange(0.5, len(mass))).sum() / mass.sum()
        corner.append(int((room / 2 - middle).round().clamp(0, room - len(mass))))
    top, left = corner
    image[:, top : top + ink.shape[1], left : left + ink.shape[2]] = ink
    return image


def _bounding_box(drawn: Tensor) -> list[tuple[int, int]]:
    """Return the row span and the column span of the true pixels in bool (1, 1, H, W); ends are exclusive."""
    spans = []
    for dim in (3, 2):
        indices = drawn.any(dim=dim).flatten().nonzero()
        spans.append((int(indices.min()), int(indices.max()) + 1))
    return spans


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[2], image.shape[3]


def _scale(image: Tensor, factor: float) -> Tensor:
    """Scale an image (1, 1, H, W) with its aspect ratio, to at least one pixel in height and width."""
    if factor == 1:
        return image
    size = [max(1, round(factor * length)) for length in _size(image)]
    return interpolate(image, size, mode="bilinear", antialias=True).clamp(0, 1)
