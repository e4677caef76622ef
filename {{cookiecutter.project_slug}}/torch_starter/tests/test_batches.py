"""Batches: their order, what augmentation does to them, and how they are shared."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Callback

from project_for_tests import ROOT


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


def test_the_order_depends_on_seed_and_epoch_alone(digits, mnist):
    torch.rand(7)  # what others draw does not matter
    assert order(mnist, epoch=3).equal(order(mnist, epoch=3))
    assert not order(mnist, epoch=3).equal(order(mnist, epoch=4))
    other = make(f"data.root={digits}", "seed=0")
    other.setup("fit")
    assert not order(other, epoch=3).equal(order(mnist, epoch=3))


def test_every_image_is_seen_once_an_epoch(mnist):
    images = torch.cat([images for images, _ in mnist.train_dataloader()])
    assert rows(images) == rows(mnist.train_set.tensors[0])
    assert len(images) == 500


SHIFT = "+data.augmentation.shift={_target_:torchvision.transforms.v2.RandomCrop,size:28,padding:4}"


def images_of(loader, epoch: int) -> torch.Tensor:
    loader.set_epoch(epoch)
    return torch.cat([images for images, _ in loader])


def test_augmentation_depends_on_seed_epoch_and_index_alone(digits):
    loaders = {}
    for name, override in {"": "", "0 workers": "data.num_workers=0", "other seed": "seed=7"}.items():
        data = make(f"data.root={digits}", SHIFT, *([override] if override else []))
        data.setup("fit")
        loaders[name] = data.train_dataloader()
    with_workers, without, other = loaders.values()
    assert with_workers.workers, "there is something for them to do"
    assert not without.workers
    second = images_of(with_workers, 1)  # the third epoch is the same whether there was a second or not
    assert images_of(with_workers, 2).equal(images_of(without, 2))
    assert images_of(without, 1).equal(second)
    assert not images_of(without, 2).equal(second)
    assert not images_of(other, 2).equal(images_of(without, 2))

    plain = images_of(without, 1)
    order = torch.cat([indices for indices in without._split(torch.arange(500))])
    assert len(plain) == len(order) == 500
    state = torch.get_rng_state()
    images_of(without, 3)
    assert torch.get_rng_state().equal(state), "nothing else is drawn from the same numbers"


def test_augmentation_is_for_training_only(digits):
    data = make(f"data.root={digits}", SHIFT)
    data.setup("fit")
    data.setup("test")
    assert rows(images_of(data.val_dataloader(), 1)) == rows(data.val_set.tensors[0])
    assert rows(images_of(data.test_dataloader(), 1)) == rows(data.test_set.tensors[0])
    assert rows(images_of(data.train_dataloader(), 1)) != rows(data.train_set.tensors[0])


def test_a_last_batch_of_one_sample_joins_the_batch_before(digits):
    data = make(f"data.root={digits}", "data.batch_size=499")
    data.setup("fit")
    assert [len(labels) for _, labels in data.train_dataloader()] == [500]
    assert [len(labels) for _, labels in data.val_dataloader()] == [100]
    assert len(data.train_dataloader()) == 1


class Seen(Callback):
    """Writes down the targets of each training batch."""

    batches: list[list[float]]

    def __init__(self):
        Seen.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        Seen.batches.append(batch[1].flatten().tolist())


@pytest.mark.parametrize("experiment", ["linear_regression", "mnist"])
@pytest.mark.parametrize("overfit", [True, False])
def test_overfitting_sees_the_same_batch_in_each_epoch(train, digits, experiment, overfit):
    files = [f"data.root={digits}", "data.num_val=100"] if experiment == "mnist" else []
    limit = "overfit_batches" if overfit else "limit_train_batches"
    quick = [f"trainer.{limit}=1", "data.batch_size=20", "trainer.max_epochs=3"]
    (run,) = train(f"experiment={experiment}", *files, *quick, "+callbacks.seen._target_=test_batches.Seen")
    assert (run / "results.json").exists()
    assert len(Seen.batches) == 3
    assert (Seen.batches[0] == Seen.batches[1] == Seen.batches[2]) == overfit
