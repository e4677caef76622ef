"""Tests of batches: order, augmentation, weights, and distribution across ranks."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torchvision.transforms import v2

from project_for_tests import ROOT
from torch_starter.data import batches
from torch_starter.data.augmentation import Augmentation
from torch_starter.data.batches import BatchLoader, TensorBatches, balanced_weights, make_workers


def make(*overrides: str):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("train", ["data=mnist", "data.num_val=100", "data.batch_size=64", *overrides])
        return instantiate(config.data, _convert_="all")


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pytest.fixture
def mnist(digits):
    data = make(f"data.root={digits}")
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def order(data, epoch: int) -> torch.Tensor:
    loader = data.train_dataloader()
    loader.batch_sampler.sampler.set_epoch(epoch)  # as Lightning does
    return torch.cat([labels for _, labels in loader])


def test_order_depends_only_on_seed_and_epoch(digits, mnist):
    torch.rand(7)  # Other draws have no effect.
    assert order(mnist, epoch=3).equal(order(mnist, epoch=3))
    assert not order(mnist, epoch=3).equal(order(mnist, epoch=4))
    other = make(f"data.root={digits}", "seed=0")
    other.setup("fit")
    assert not order(other, epoch=3).equal(order(mnist, epoch=3))


def test_epoch_contains_every_image_once(mnist):
    images = torch.cat([images for images, _ in mnist.train_dataloader()])
    assert rows(images) == rows(mnist.train_set.tensors[0])
    assert len(images) == 500


SHIFT = "+data.augmentation.shift={_target_:torchvision.transforms.v2.RandomCrop,size:28,padding:4}"


def images_of(loader, epoch: int) -> torch.Tensor:
    loader.set_epoch(epoch)
    return torch.cat([images for images, _ in loader])


def test_augmentation_depends_only_on_seed_epoch_and_index(digits):
    loaders = {}
    for name, override in {"": "", "0 workers": "data.num_workers=0", "other seed": "seed=7"}.items():
        data = make(f"data.root={digits}", SHIFT, *([override] if override else []))
        data.setup("fit")
        loaders[name] = data.train_dataloader()
    with_workers, without, other = loaders.values()
    assert with_workers.workers, "augmenting single images needs workers"
    assert not without.workers
    second = images_of(with_workers, 1)  # The third epoch must not depend on the second.
    assert images_of(with_workers, 2).equal(images_of(without, 2))
    assert images_of(without, 1).equal(second)
    assert not images_of(without, 2).equal(second)
    assert not images_of(other, 2).equal(images_of(without, 2))

    plain = images_of(without, 1)
    assert len(plain) == sum(without.batch_sizes()) == 500
    state = torch.get_rng_state()
    images_of(without, 3)
    assert torch.get_rng_state().equal(state), "the global random state does not change"


def test_only_training_images_are_augmented(digits):
    data = make(f"data.root={digits}", SHIFT)
    data.setup("fit")
    data.setup("test")
    assert rows(images_of(data.val_dataloader(), 1)) == rows(data.val_set.tensors[0])
    assert rows(images_of(data.test_dataloader(), 1)) == rows(data.test_set.tensors[0])
    assert rows(images_of(data.train_dataloader(), 1)) != rows(data.train_set.tensors[0])


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (5, 1), (6, 3), (7, 3), (8, 3), (2, 3), (1, 3)])
def test_batches_have_the_announced_sizes(count, batch_size, seed):
    loader = BatchLoader(TensorBatches(torch.arange(count)), batch_size, shuffle_seed=seed)
    batches = [samples for (samples,) in loader]
    assert [len(samples) for samples in batches] == loader.batch_sizes()
    assert len(batches) == len(loader)
    assert torch.cat(batches).sort().values.tolist() == list(range(count))


def test_last_batch_of_one_sample_joins_the_previous(digits):
    data = make(f"data.root={digits}", "data.batch_size=499")
    data.setup("fit")
    assert [len(labels) for _, labels in data.train_dataloader()] == [500]
    assert [len(labels) for _, labels in data.val_dataloader()] == [100]
    assert len(data.train_dataloader()) == 1


class Seen(Callback):
    """Records the targets of each training batch."""

    batches: list[list[float]]

    def __init__(self):
        Seen.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        Seen.batches.append(batch[1].flatten().tolist())


@pytest.mark.parametrize("experiment", ["linear_regression", "mnist"])
@pytest.mark.parametrize("overfit", [True, False])
def test_overfit_batches_repeats_the_same_batch(train, digits, experiment, overfit):
    files = [f"data.root={digits}", "data.num_val=100"] if experiment == "mnist" else []
    limit = "overfit_batches" if overfit else "limit_train_batches"
    quick = [f"trainer.{limit}=1", "data.batch_size=20", "trainer.max_epochs=3"]
    (run,) = train(f"experiment={experiment}", *files, *quick, "+callbacks.seen._target_=test_batches.Seen")
    assert (run / "results.json").exists()
    assert len(Seen.batches) == 3
    assert (Seen.batches[0] == Seen.batches[1] == Seen.batches[2]) == overfit


# Weights

LABELS = torch.tensor([0] * 80 + [1] * 15 + [2] * 5)


def balanced(num_workers: int = 0, seed: int = 42) -> BatchLoader:
    """Return a loader of augmented noise in which two of three classes are rare."""
    images = torch.randint(256, (100, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    augment = Augmentation({"crop": v2.RandomCrop(8, padding=8)}, seed)
    dataset = TensorBatches(images, LABELS, torch.arange(100), augment=augment)
    return BatchLoader(dataset, 32, seed, make_workers([dataset], num_workers), balanced_weights(LABELS))


def epoch_of(loader: BatchLoader, epoch: int) -> list[torch.Tensor]:
    """Return the images, labels, and indices of an epoch."""
    loader.set_epoch(epoch)
    return [torch.cat(tensors) for tensors in zip(*loader, strict=True)]


def test_balanced_weights_draw_classes_equally_often():
    loader = balanced()
    epochs = [epoch_of(loader, epoch)[1] for epoch in range(30)]
    assert all(len(labels) == 100 for labels in epochs)
    shares = torch.cat(epochs).bincount() / 3000
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.04)


def test_balanced_batches_depend_only_on_seed_and_epoch():
    loader, with_workers = balanced(), balanced(num_workers=2)
    expected = epoch_of(loader, 3)
    epoch_of(with_workers, 1)
    torch.rand(7)
    for found in (epoch_of(with_workers, 3), epoch_of(loader, 3)):
        assert all(map(torch.equal, found, expected))
    with_workers.workers.stop()
    assert not epoch_of(loader, 4)[2].equal(expected[2])
    assert not epoch_of(balanced(seed=7), 3)[2].equal(expected[2])


def test_two_ranks_split_each_balanced_batch(monkeypatch):
    whole = list(balanced())
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(batches, "rank_and_count", lambda rank=rank: (rank, 2))
        shares.append(list(balanced()))
    assert len(whole) == len(shares[0]) == len(shares[1])
    for batch, first, second in zip(whole, *shares, strict=True):
        assert all(map(torch.equal, batch, map(torch.cat, zip(first, second, strict=True))))


def test_repeated_images_are_augmented_differently():
    images, _, indices = epoch_of(balanced(), 0)
    index = int(indices.bincount().argmax())
    repeated = images[indices == index]
    assert len(repeated) > 3
    assert len(rows(repeated)) > len(repeated) / 2, "few of the 289 crops are equal"


def test_weights_without_a_seed_have_no_effect():
    loader = balanced()
    loader.shuffle_seed = None
    assert epoch_of(loader, 0)[2].tolist() == list(range(100))


def test_wrong_number_of_weights_is_rejected():
    with pytest.raises(MisconfigurationException, match="2 weights for 3 samples"):
        BatchLoader(TensorBatches(torch.zeros(3)), 2, 0, weights=torch.ones(2))
