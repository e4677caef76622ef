"""A drawing anywhere on a sheet, made into an image as MNIST's own: http://yann.lecun.com/exdb/mnist/."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d, pad

SHEET = 1000  # pixels of the longer side that a large sheet is scaled down to
OVERVIEW = 64  # pixels of the longer side, to see the ground and the specks
FAINTEST = 0.1  # contrast of ink to its ground, on the scale 0 to 1
DETAIL = 4  # pixels of a drawing, where strokes are thickened, for one of the result
STROKE = 2.4  # pixels of the result: the width of MNIST's strokes by 2 * area / perimeter


def center_ink(image: Tensor, image_shape: Sequence[int], ink_size: int) -> Tensor:
    """Finds what is drawn on a sheet, and puts it into the middle of an image: bright ink on a black ground.

    As MNIST's makers did: the ink is scaled, with its proportions, so that its longer side is ``ink_size``, and its
    center of mass is put into the middle. Thin strokes are made as wide as theirs. An image that has the size of
    the result already keeps its ink where it is, and is inverted if most of it is bright.

    Args:
        image: uint8 (C, H, W), dark ink on a bright ground or bright ink on a dark one, evenly lit or not.
        image_shape: channels, height and width of the result.
        ink_size: height or width of the ink in the result, in pixels, at most the smaller of the two.

    Returns:
        uint8 image of ``image_shape``.

    Raises:
        ValueError: if there is no ink.
    """
    if image.shape[1:] == tuple(image_shape[1:]):
        return 255 - image if image.median() > 127 else image
    sheet = image.float().mean(dim=0)[None, None] / 255
    sheet = _scaled(sheet, min(1, SHEET / max(sheet.shape)))
    ink = _ink(sheet)
    height, width = (slice(*span) for span in _box(ink > 0.5))
    ink = _thickened(_scaled(ink[..., height, width], DETAIL * ink_size / max(_size(ink[..., height, width]))))
    ink = _scaled(ink, ink_size / max(_size(ink)))
    return _centered((255 * ink / ink.max()).round().byte()[0], image_shape)


def _ink(sheet: Tensor) -> Tensor:
    """How much ink there is, 0 to 1, in each pixel of a sheet (1, 1, H, W), 0 to 1; specks are left out."""
    small = _scaled(sheet, min(1, OVERVIEW / max(sheet.shape)))
    contrast = sheet - interpolate(_ground(small), _size(sheet), mode="bilinear")
    # Of a line thinner than a pixel of the overview a mean would leave little.
    smooth = avg_pool2d(contrast, 3, stride=1, padding=1, count_include_pad=False)
    contrast = contrast * smooth.pow(3).sum().sign()  # ink is less than its ground, and farther from its mean
    smooth = smooth * smooth.pow(3).sum().sign()
    strongest = smooth.max()
    if strongest < FAINTEST:
        raise ValueError("there is nothing drawn on it")
    drawn = smooth > 0.4 * strongest
    level = smooth[drawn].median()
    ink = (contrast / level).clamp(0, 1) * max_pool2d(drawn.float(), 3, stride=1, padding=1)
    return ink * _without_specks(drawn)


def _ground(small: Tensor) -> Tensor:
    """What a sheet (1, 1, H, W) would be without ink: the median of what is around each pixel."""
    window = min(33, 2 * min(_size(small)) - 1) // 2 * 2 + 1
    around = pad(small, [window // 2] * 4, mode="reflect" if min(_size(small)) > window // 2 else "replicate")
    # Of every other pixel, which is as good and four times as fast.
    around = around.unfold(2, window, 1).unfold(3, window, 1)[..., ::2, ::2]
    return around.flatten(4).median(dim=4).values


def _without_specks(drawn: Tensor) -> Tensor:
    """1 where a part of what is drawn, bool (1, 1, H, W), is not much smaller than the largest part; 0 elsewhere."""
    size = _size(drawn)
    cell = max(1, max(size) // (2 * OVERVIEW))
    mass = avg_pool2d(drawn.float(), cell, ceil_mode=True, count_include_pad=False)
    parts = torch.arange(1.0, mass.numel() + 1).view_as(mass) * (mass > 0)
    while True:  # each part takes the largest number in it, in steps that double
        grown = max_pool2d(parts, 3, stride=1, padding=1) * (mass > 0)
        grown = torch.cat([torch.zeros(1), grown.flatten()])[grown.long()]
        if grown.equal(parts):
            break
        parts = grown
    masses = torch.bincount(parts.long().flatten(), mass.flatten().double())
    kept = (masses > 0.08 * masses.max())[parts.long()] & (parts > 0)
    return interpolate(max_pool2d(kept.float(), 3, stride=1, padding=1), size)


def _thickened(ink: Tensor) -> Tensor:
    """Ink (1, 1, H, W) whose strokes have at least the width that MNIST's have."""
    inner = pad((ink > 0.5).float(), [1] * 4)
    edge = inner + max_pool2d(-inner, 3, stride=1, padding=1)
    width = 2 * inner.sum() / edge.sum()
    missing = max(0, round(DETAIL * STROKE - width.item()))
    if not missing:
        return ink
    ink = pad(ink, [missing // 2 + 1] * 4)
    ink = max_pool2d(ink, missing // 2 * 2 + 1, stride=1, padding=missing // 2)
    height, width = (slice(*span) for span in _box(ink > 0.3))
    return ink[..., height, width]


def _centered(ink: Tensor, image_shape: Sequence[int]) -> Tensor:
    """Ink (1, h, w), its center of mass in the middle of a black image of ``image_shape``, as far as there is room."""
    image = torch.zeros(tuple(image_shape), dtype=torch.uint8)
    corner = []
    for dim, room in enumerate(image_shape[1:]):
        mass = ink[0].double().sum(dim=1 - dim)
        middle = (mass * torch.arange(0.5, len(mass))).sum() / mass.sum()
        corner.append(int((room / 2 - middle).round().clamp(0, room - len(mass))))
    top, left = corner
    image[:, top : top + ink.shape[1], left : left + ink.shape[2]] = ink
    return image


def _box(drawn: Tensor) -> list[tuple[int, int]]:
    """First and last + 1 row, and first and last + 1 column, of what is true in bool (1, 1, H, W)."""
    spans = []
    for dim in (3, 2):
        places = drawn.any(dim=dim).flatten().nonzero()
        spans.append((int(places.min()), int(places.max()) + 1))
    return spans


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[2], image.shape[3]


def _scaled(image: Tensor, factor: float) -> Tensor:
    """An image (1, 1, H, W) of another size, with its proportions; at least a pixel high and wide."""
    if factor == 1:
        return image
    size = [max(1, round(factor * length)) for length in _size(image)]
    return interpolate(image, size, mode="bilinear", antialias=True).clamp(0, 1)
