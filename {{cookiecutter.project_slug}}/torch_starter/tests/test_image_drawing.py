"""Tests of converting drawings on sheets to images."""

import numpy
import pytest
import torch
from PIL import Image, ImageDraw

from project_for_tests import draw_digits
from torch_starter.data.drawing import center_ink

SHAPE = (1, 28, 28)


def draw_seven(size, corner, height, width=None, pen=8):
    """Return a sheet of ``size`` (width, height) with a 7 in black ink, its upper left corner at ``corner``."""
    sheet = Image.new("L", size, 235)
    (left, top), width = corner, width or height // 2
    places = [(left, top), (left + width, top), (left + width // 3, top + height)]
    ImageDraw.Draw(sheet).line(places, fill=30, width=pen, joint="curve")
    return torch.from_numpy(numpy.array(sheet))[None]


def bounding_box(image):
    """Return the height and width of the bounding box of the nonblack pixels."""
    return tuple(int(places.max() - places.min()) + 1 for places in image[0].nonzero().T)


def center_of_mass(image):
    """Return row and column of the center of mass, in pixels from the upper left corner."""
    mass = image[0].double()
    places = torch.arange(0.5, 28, dtype=torch.float64)
    return [float((mass.sum(dim=dim) * places).sum() / mass.sum()) for dim in (1, 0)]


@pytest.mark.parametrize("pen", [2, 8, 20])
@pytest.mark.parametrize(("height", "width"), [(150, 80), (90, 180), (200, 20)])
def test_ink_is_scaled_and_centered_by_mass(height, width, pen):
    image = center_ink(draw_seven((500, 400), (60, 120), height, width, pen), SHAPE, 20)
    assert image.dtype == torch.uint8
    assert image.shape == SHAPE
    assert image.max() == 255
    assert max(bounding_box(image)) == 20
    assert (bounding_box(image)[0] > bounding_box(image)[1]) == (height > width)
    assert center_of_mass(image) == [pytest.approx(14, abs=0.51)] * 2


def test_result_ignores_position_size_and_brightness():
    sheet = draw_seven((500, 400), (60, 120), 150)
    image = center_ink(sheet, SHAPE, 20).float()
    others = [255 - sheet, draw_seven((500, 400), (300, 30), 150), draw_seven((400, 800), (60, 120), 300, pen=16)]
    others += [sheet // 2 + 60, (sheet * torch.linspace(0.6, 1, 500)).byte()]
    others[1][0, 5:8, 5:8] = 30  # a speck
    for other in others:
        assert (center_ink(other, SHAPE, 20).float() - image).abs().mean() < 6


@pytest.mark.parametrize("sheet", [torch.full((1, 90, 60), 240), torch.zeros(1, 50, 50), torch.full((1, 1, 300), 9)])
def test_blank_sheet_raises_error(sheet):
    noise = torch.randint(8, sheet.shape, generator=torch.Generator().manual_seed(0))
    for blank in (sheet, sheet + noise):
        with pytest.raises(ValueError, match="it has no drawing on it"):
            center_ink(blank.byte(), SHAPE, 20)


def test_images_of_data_set_stay_unchanged():
    for image in draw_digits(100, seed=3)[0][:, None]:
        assert center_ink(image, SHAPE, 20).equal(image)
        assert center_ink(255 - image, SHAPE, 20).equal(image)


@pytest.mark.parametrize("size", [(1, 1), (2, 900), (3000, 5), (28, 27)])
def test_extreme_sheet_sizes_give_right_shape(size):
    sheet = torch.full((1, *size), 240, dtype=torch.uint8)
    sheet[0, size[0] // 2, size[1] // 2] = 0
    try:
        image = center_ink(sheet, SHAPE, 20)
    except ValueError:  # The ink is too faint to find.
        return
    assert image.shape == SHAPE
