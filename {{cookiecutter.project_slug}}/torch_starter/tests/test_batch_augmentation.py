"""Tests of the augmentation of whole batches: images and their random numbers are independent of each other."""

import math

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from torch_starter.data import batches
from torch_starter.data.augmentation import Augmentation, BatchAugmentation, augmentation
from torch_starter.data.batch_augmentation import (
    GAMMA,
    Cutout,
    Draws,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    mix,
)
from torch_starter.data.batches import BatchLoader, TensorBatches


class Brighten:
    """A transform as a user may write it."""

    def augment_batch(self, images, draws):
        return (images + draws.uniform(0, 50)[:, None, None, None]).clamp(max=255).to(torch.uint8)


ALL = {
    "crop": RandomCrop(4),
    "flip": RandomHorizontalFlip(),
    "affine": RandomAffine(15, (0.1, 0.2), (0.8, 1.2), 5),
    "cutout": Cutout(6),
    "brighten": Brighten(),
}
SHAPE = (3, 16, 20)


def noise(count: int = 101) -> Tensor:
    return torch.randint(1, 256, (count, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def draws(count: int, seed: int = 1, epoch: int = 0, place: int = 0) -> Draws:
    return Draws(seed, epoch, place, torch.arange(count))


def epoch_of(augment, epoch: int = 1, batch_size: int = 32, seed: int = 7, weights: Tensor | None = None) -> Tensor:
    """Return the images of an epoch in the order of the data set."""
    dataset = TensorBatches(noise(), torch.arange(101), augment=augment)
    loader = BatchLoader(dataset, batch_size, seed, weights=weights)
    loader.set_epoch(epoch)
    images, indices = (torch.cat(tensors) for tensors in zip(*loader, strict=True))
    return images if weights is not None else images[indices.argsort()]


# Random numbers


def test_mix_matches_the_reference_splitmix64():
    # The first numbers of the reference implementation with seed 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    found = mix(1234567 + torch.arange(1, 4) * GAMMA)
    assert [number % 2**64 for number in found.tolist()] == expected
    assert [mix(1234567 + step * GAMMA) % 2**64 for step in (1, 2, 3)] == expected


@pytest.mark.parametrize("change", ["index", "epoch", "place", "seed", "draw"])
def test_numbers_are_uniform_and_independent(change):
    count = 100_000
    first = draws(count)
    numbers = first.uniform()
    if change == "index":
        other = numbers.roll(1)
    elif change == "draw":
        other = first.uniform()
    else:
        other = draws(count, **{change: 2}).uniform()
    assert numbers.dtype == torch.float32
    # Five standard errors of a mean, a variance and a correlation.
    error = 5 / math.sqrt(count)
    for values in (numbers, other):
        assert 0 <= values.min() < 1e-3
        assert 1 - 1e-3 < values.max() < 1
        assert values.mean().item() == pytest.approx(1 / 2, abs=error * math.sqrt(1 / 12))
        assert values.var().item() == pytest.approx(1 / 12, abs=error * math.sqrt(1 / 180))
    assert abs(torch.corrcoef(torch.stack([numbers, other]))[0, 1].item()) < error


def test_draws_are_uncorrelated():
    numbers = draws(1000)
    rows = torch.stack([numbers.uniform() for _ in range(20)])
    assert (torch.corrcoef(rows) - torch.eye(20)).abs().max() < 0.2


def test_draws_cover_their_ranges():
    numbers = draws(10_000)
    assert numbers.integer(-2, 3).unique().tolist() == [-2, -1, 0, 1, 2]
    assert -3 <= (values := numbers.uniform(-3, 5)).min() < -2.9
    assert 4.9 < values.max() <= 5


# Independence of the images


@pytest.mark.parametrize("batch_size", [1, 7, 32, 101])
def test_batch_size_does_not_change_images(batch_size):
    augment = augmentation(ALL, seed=3)
    assert isinstance(augment, BatchAugmentation)
    assert epoch_of(augment, batch_size=batch_size).equal(epoch_of(augment))


def test_epoch_and_seed_change_images_but_order_does_not():
    augment = augmentation(ALL, seed=3)
    expected = epoch_of(augment)
    assert epoch_of(augment, seed=8).equal(expected)
    assert not epoch_of(augment, epoch=2).equal(expected)
    assert not epoch_of(augmentation(ALL, seed=4)).equal(expected)


@pytest.mark.parametrize("name", ALL)
def test_single_image_matches_the_batch(name):
    augment = augmentation({name: ALL[name]}, seed=3)
    images = epoch_of(augment)
    assert images.shape == noise().shape
    assert images.dtype == torch.uint8
    assert not images.equal(noise())
    for index in range(20):
        assert augment(noise()[index], 1, index).equal(images[index])


def test_ranks_split_the_augmented_batches(monkeypatch):
    dataset = TensorBatches(noise(), augment=augmentation(ALL, seed=3))
    whole = [images for (images,) in BatchLoader(dataset, 17, 7)]
    shares = []
    for rank in range(3):
        monkeypatch.setattr(batches, "rank_and_count", lambda rank=rank: (rank, 3))
        shares.append([images for (images,) in BatchLoader(dataset, 17, 7)])
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.cat(parts).equal(batch)


def test_resumed_epoch_matches_uninterrupted_epoch():
    dataset = TensorBatches(noise(), augment=augmentation(ALL, seed=3))
    expected = [images for (images,) in BatchLoader(dataset, 32, 7)]
    resumed = BatchLoader(dataset, 32, 7)
    resumed.load_state_dict({"epoch": 0, "batch": 2})
    assert all(map(torch.equal, (images for (images,) in resumed), expected[2:]))


def test_repeated_images_are_augmented_differently():
    weights = torch.zeros(101)
    weights[5] = 1
    images = epoch_of(augmentation(ALL, seed=3), weights=weights)
    assert len(images.unique(dim=0)) > 90


def test_augmentation_keeps_the_global_random_state():
    state = torch.get_rng_state()
    epoch_of(augmentation(ALL, seed=3))
    assert torch.get_rng_state().equal(state)


# Transforms


def test_crops_are_exact_and_uniform():
    images, padding = noise(2000), 2
    padded = functional.pad(images, [padding])
    places = {}
    for crop, source in zip(RandomCrop(padding).augment_batch(images, draws(2000)), padded, strict=True):
        matches = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if crop.equal(source[:, top : top + SHAPE[1], left : left + SHAPE[2]])
        ]
        assert len(matches) == 1
        places[matches[0]] = places.get(matches[0], 0) + 1
    assert len(places) == 25
    assert 40 < min(places.values()) <= max(places.values()) < 125, "80 on average"


@pytest.mark.parametrize("p", [0, 0.3, 1])
def test_flips_are_exact(p):
    images = noise(1000)
    flipped = RandomHorizontalFlip(p).augment_batch(images, draws(1000))
    is_flipped = (flipped == images.flip(3)).all(dim=(1, 2, 3))
    assert ((flipped == images).all(dim=(1, 2, 3)) ^ is_flipped).all()
    assert is_flipped.float().mean().item() == pytest.approx(p, abs=0.075 if 0 < p < 1 else 0)


@pytest.mark.parametrize("size", [1, 5, 6])
def test_cutout_blackens_a_square_around_any_pixel(size):
    black = Cutout(size).augment_batch(noise(5000), draws(5000)) == 0
    assert (black == black[:, :1]).all(), "in all channels"
    heights, widths = (black[:, 0].any(dim=dim).sum(dim=1) for dim in (2, 1))
    assert (black[:, 0].sum(dim=(1, 2)) == heights * widths).all(), "a rectangle"
    assert heights.max() == widths.max() == size
    assert heights.min() >= size // 2
    assert black.any(dim=0).all(), "every pixel, including the corners"


def test_affine_with_zero_degrees_is_the_identity():
    assert RandomAffine(0).augment_batch(noise(), draws(101)).equal(noise())


@pytest.mark.parametrize(
    ("angle", "shift", "scale", "shear"),
    [(30, (0, 0), 1, 0), (0, (-3, 2), 1, 0), (0, (0, 0), 1.3, 0), (20, (1, 2), 0.8, 10), (-170, (0, 0), 1, -20)],
)
def test_affine_matches_torchvision(angle, shift, scale, shear):
    numbers = iter([angle, shear, scale, shift[0] / SHAPE[2], shift[1] / SHAPE[1]])

    class Given:
        def uniform(self, low, high):
            return torch.full((101,), float(next(numbers)))

    found = RandomAffine(1).augment_batch(noise(), Given()).int()
    expected = functional.affine(noise(), angle, list(shift), scale, [shear, 0], InterpolationMode.BILINEAR).int()
    assert (found - expected).abs().max() <= 1, "of 255, because torchvision rounds differently"


def test_affine_stays_within_its_bounds():
    images = torch.zeros(500, 1, 41, 41, dtype=torch.uint8)
    images[:, :, 20, 20] = 255
    moved = RandomAffine(0, translate=(0.2, 0)).augment_batch(images, draws(500)).float()
    places = (moved[:, 0].sum(dim=1) * torch.arange(41)).sum(dim=1) / moved.sum(dim=(1, 2, 3))
    assert 11.7 < places.min() < 12.5, "0.2 of 41 pixels to the left"
    assert 27.5 < places.max() < 28.3
    assert moved[:, 0, 20].sum() == moved.sum(), "neither up nor down"


# Choice between batches and single images


def test_augmentation_without_transforms_is_none():
    assert augmentation(None, 1) is augmentation({}, 1) is augmentation({"crop": None}, 1) is None


def test_transforms_that_are_none_are_skipped():
    crop = {"crop": ALL["crop"]}
    assert epoch_of(augmentation(crop | {"flip": None}, 3)).equal(epoch_of(augmentation(crop, 3)))


def test_transforms_of_both_kinds_are_applied_in_order():
    mixed = {"crop": ALL["crop"], "invert": v2.RandomInvert(p=1), "cutout": ALL["cutout"]}
    augment = augmentation(mixed, seed=3)
    assert type(augment) is Augmentation
    assert TensorBatches(noise(), augment=augment).is_slow, "it augments one image at a time"

    class Invert:
        def augment_batch(self, images, draws):
            return 255 - images

    whole = augmentation(mixed | {"invert": Invert()}, seed=3)
    assert not TensorBatches(noise(), augment=whole).is_slow
    assert epoch_of(augment).equal(epoch_of(whole))


def test_memory_format_does_not_change_images():
    images = noise(9)
    for transform in ALL.values():
        other = images.contiguous(memory_format=torch.channels_last)
        assert transform.augment_batch(other, draws(9)).equal(transform.augment_batch(images, draws(9)))


@pytest.mark.parametrize(
    ("transform", "arguments", "message"),
    [
        (RandomCrop, {"padding": -1}, r"RandomCrop.padding is -1; it must be a non-negative integer"),
        (RandomHorizontalFlip, {"p": 2}, r"RandomHorizontalFlip.p is 2; it must be between 0 and 1"),
        (
            RandomAffine,
            {"degrees": 10, "scale": [0, 1]},
            r"RandomAffine.scale is \[0, 1\]; it must be two positive numbers",
        ),
        (
            RandomAffine,
            {"degrees": 10, "translate": [2, 0]},
            r"RandomAffine.translate is \[2, 0\]; it must be two fractions",
        ),
        (RandomAffine, {"degrees": [10]}, r"RandomAffine.degrees is \[10\]; it must be two numbers"),
        (RandomAffine, {"degrees": 0, "shear": 90}, r"RandomAffine.shear is 90; it must be less than 90 degrees"),
        (Cutout, {"size": 0}, r"Cutout.size is 0; it must be a positive integer"),
    ],
)
def test_invalid_arguments_are_rejected(transform, arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        transform(**arguments)
