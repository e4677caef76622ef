"""Tests of the image data module: batches, splits, folds, data sets and augmentation."""

import json
import pickle

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torchvision import datasets

from conftest import PACKAGE, ROOT, draw_digits

ImageDataModule = get_object(f"{PACKAGE}.data.image.ImageDataModule")


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


def test_batches_are_raw_images(mnist):
    images, labels = next(iter(mnist.train_dataloader()))
    assert images.shape == (64, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert labels.shape == (64,)
    assert labels.dtype == torch.int64


def test_training_and_validation_sets_partition_the_training_split(mnist):
    train, val, test = (rows(split.tensors[0]) for split in (mnist.train_set, mnist.val_set, mnist.test_set))
    assert (len(train), len(val), len(test)) == (500, 100, 200)
    assert train | val == rows(draw_digits(600, seed=0)[0])
    assert test == rows(draw_digits(200, seed=1)[0])
    assert not train & val


def test_validation_split_depends_only_on_the_seed(digits, mnist):
    def val_images(seed):
        data = make(f"data.root={digits}", f"seed={seed}")
        data.setup("fit")
        return rows(data.val_set.tensors[0])

    assert val_images(42) == rows(mnist.val_set.tensors[0])
    assert val_images(0) != val_images(42)


def test_folds_partition_the_training_split(digits, mnist):
    folds = []
    for fold in range(7):
        data = make(f"data.root={digits}", "data.num_folds=7", f"data.fold={fold}", "data.num_val=1000000")
        data.setup("fit")
        data.setup("test")
        train, val = (rows(split.tensors[0]) for split in (data.train_set, data.val_set))
        assert train | val == rows(draw_digits(600, seed=0)[0])
        assert len(val) in (85, 86)
        assert data.test_set.tensors[0].equal(mnist.test_set.tensors[0])
        folds += val
    assert len(folds) == len(set(folds)) == 600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.fold=1"], "data.fold is 1, but data.num_folds is null"),
        (
            ["data.num_folds=5", "data.fold=7"],
            "data.fold is 7; with data.num_folds=5 it must be an integer from 0 to 4",
        ),
        (["data.num_folds=601"], "data.num_folds is 601, but there are 600 samples"),
    ],
)
def test_invalid_folds_raise(digits, arguments, message):
    with pytest.raises((InstantiationException, MisconfigurationException), match=message):
        make(f"data.root={digits}", *arguments).setup("fit")


@pytest.mark.slow
def test_multirun_trains_every_fold(train, digits):
    small = [f"data.root={digits}", "model=mlp", "trainer.max_epochs=1"]
    runs = train("-m", "experiment=mnist", *small, "data.num_folds=3", "data.fold=0,1,2")
    found = [json.loads((run / "results.json").read_text())["metrics"]["val/loss"] for run in runs]
    assert len(set(found)) == 3


@pytest.mark.parametrize("choice", ["fashion_mnist", "kmnist"])
def test_data_sets_in_mnist_format_load(digits, choice):
    data = make(f"data={choice}", f"data.root={digits}")
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (500, 100, 200)
    assert data.facts()["num_classes"] == len(data.facts()["class_names"]) == 10


def test_color_images_have_channels_first(photos):
    data = make("data=cifar10", f"data.root={photos}")
    data.setup("fit")
    data.setup("test")
    rows = pickle.loads((photos / "cifar-10-batches-py/test_batch").read_bytes())
    assert data.test_set.tensors[0].numpy().reshape(100, 3072).tolist() == rows["data"].tolist()
    assert data.test_set.tensors[1].tolist() == rows["labels"]
    assert data.class_names[3] == "kind 3"


@pytest.mark.parametrize(("dataset", "shape"), [("CIFAR100", [3, 32, 32]), ("KMNIST", [1, 28, 28])])
def test_torchvision_data_set_fills_missing_values(photos, digits, dataset, shape):
    data = make("data=torchvision", f"data.dataset={dataset}", f"data.root={photos if shape[0] == 3 else digits}")
    facts = data.facts()
    assert facts["image_shape"] == shape
    assert facts["num_classes"] == len(facts["class_names"]) == 10
    scaled = data.train_set.tensors[0] / 255.0
    assert facts["mean"] == pytest.approx(scaled.mean(dim=(0, 2, 3)).tolist(), rel=1e-4)
    assert facts["std"] == pytest.approx(scaled.std(dim=(0, 2, 3), correction=0).tolist(), rel=1e-4)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [("FakeData", "no test split"), ("EMNIST", r"\+data\.options\.split="), ("Food101", "data=image_folder")],
)
def test_unsupported_data_set_raises(tmp_path, monkeypatch, dataset, message):
    monkeypatch.setattr(f"{ImageDataModule.__module__}.download", lambda *args: None)
    monkeypatch.setattr(datasets.Food101, "__init__", lambda self, root, split: None)
    with pytest.raises(MisconfigurationException, match=message):
        make("data=torchvision", f"data.dataset={dataset}", f"data.root={tmp_path}").facts()


def images_of(loader, epoch: int) -> torch.Tensor:
    loader.set_epoch(epoch)
    return torch.cat([images for images, _ in loader])


def test_default_augmentation_of_mnist_and_cifar10(photos, mnist):
    assert mnist.train_set.augment is None
    assert mnist.workers is None
    data = make("data=cifar10", f"data.root={photos}")
    data.setup("fit")
    assert [type(transform).__name__ for transform in data.augmentation.values()] == [
        "RandomCrop",
        "RandomHorizontalFlip",
    ]
    data = make("data=cifar10", f"data.root={photos}", "data.augmentation.crop=null", "data.batch_size=100")
    data.setup("fit")
    images, originals = images_of(data.train_dataloader(), 0), data.train_set.tensors[0]
    flipped = len(rows(images) - rows(originals))
    assert rows(images) <= rows(originals) | rows(originals.flip(-1))
    assert 30 < flipped < 70, "about half of 100 images"


def test_affine_experiment_transforms_training_images(digits):
    data = make("experiment=[mnist,affine]", f"data.root={digits}", "data.num_val=100")
    data.setup("fit")
    assert data.workers is None, "transforms of whole batches need no workers"
    images, originals = images_of(data.train_dataloader(), 0), data.train_set.tensors[0]
    assert len(rows(images) - rows(originals)) == len(originals)
    assert rows(images_of(data.val_dataloader(), 0)) == rows(data.val_set.tensors[0])


def test_torchvision_transforms_combine_with_batch_transforms(photos):
    crop = "+data.augmentation.shift={_target_:torchvision.transforms.v2.RandomCrop,size:32,padding:4}"
    data = make("data=cifar10", f"data.root={photos}", crop, "data.num_workers=0", "data.augmentation.crop=null")
    data.setup("fit")
    images, originals = images_of(data.train_dataloader(), 0), data.train_set.tensors[0]
    assert images.shape == originals.shape
    assert len(rows(images) - rows(originals) - rows(originals.flip(-1))) > len(originals) / 2
