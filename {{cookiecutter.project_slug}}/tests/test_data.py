"""Where the batches come from: splits, order, and files that are missing or damaged."""

import functools
import gzip
import hashlib
import http.server
import multiprocessing
import pickle
import shutil
import threading

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate
from lightning import Callback
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


def order(data, epoch: int) -> torch.Tensor:
    loader = data.train_dataloader()
    loader.batch_sampler.sampler.set_epoch(epoch)  # as Lightning does
    return torch.cat([labels for _, labels in loader])


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


def test_the_test_set_is_the_official_one_and_the_rest_is_cut_from_the_training_split(mnist):
    train, val, test = (rows(split.tensors[0]) for split in (mnist.train_set, mnist.val_set, mnist.test_set))
    assert (len(train), len(val), len(test)) == (500, 100, 200)
    assert train | val == rows(draw_digits(600, seed=0)[0])
    assert test == rows(draw_digits(200, seed=1)[0])
    assert not train & val


def test_the_cut_depends_on_the_seed_alone(digits, mnist):
    def val_images(seed):
        data = make(f"data.root={digits}", f"seed={seed}")
        data.setup("fit")
        return rows(data.val_set.tensors[0])

    assert val_images(42) == rows(mnist.val_set.tensors[0])
    assert val_images(0) != val_images(42)


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


@pytest.mark.parametrize("choice", ["fashion_mnist", "kmnist"])
def test_the_relatives_of_mnist(digits, choice):
    data = make(f"data={choice}", f"data.root={digits}")
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (500, 100, 200)
    assert data.facts()["num_classes"] == len(data.facts()["class_names"]) == 10


def test_coloured_images_have_their_channels_first(photos):
    data = make("data=cifar10", f"data.root={photos}")
    data.setup("fit")
    data.setup("test")
    rows = pickle.loads((photos / "cifar-10-batches-py/test_batch").read_bytes())
    assert data.test_set.tensors[0].numpy().reshape(100, 3072).tolist() == rows["data"].tolist()
    assert data.test_set.tensors[1].tolist() == rows["labels"]
    assert data.class_names[3] == "kind 3"


@pytest.mark.parametrize(("dataset", "shape"), [("CIFAR100", [3, 32, 32]), ("KMNIST", [1, 28, 28])])
def test_any_other_data_set_by_its_name_says_the_rest_itself(photos, digits, dataset, shape):
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
def test_a_data_set_of_another_kind_is_refused(tmp_path, monkeypatch, dataset, message):
    monkeypatch.setattr(f"{ImageDataModule.__module__}.download", lambda *args: None)
    monkeypatch.setattr(datasets.Food101, "__init__", lambda self, root, split: None)
    with pytest.raises(MisconfigurationException, match=message):
        make("data=torchvision", f"data.dataset={dataset}", f"data.root={tmp_path}").facts()


# Augmentation

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


def test_off_for_mnist_and_crop_and_flip_for_cifar10(photos, mnist):
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
    assert 30 < flipped < 70, "half of the hundred"


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
    (run,) = train(f"experiment={experiment}", *files, *quick, "+callbacks.seen._target_=test_data.Seen")
    assert (run / "results.json").exists()
    assert len(Seen.batches) == 3
    assert (Seen.batches[0] == Seen.batches[1] == Seen.batches[2]) == overfit


# Files that are missing or damaged


@pytest.fixture
def server(digits, tmp_path_factory, monkeypatch):
    """A mirror of MNIST on this machine that offers the small files; counts what is asked of it."""
    folder = tmp_path_factory.mktemp("mirror")
    resources, requests = [], []
    for file in sorted((digits / "MNIST/raw").iterdir()):
        archive = folder / f"{file.name}.gz"
        archive.write_bytes(gzip.compress(file.read_bytes()))
        resources.append((archive.name, hashlib.md5(archive.read_bytes()).hexdigest()))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.headers["Method"] == "HEAD":  # so torchvision asks whether the address has moved
                return self.do_HEAD()
            requests.append(self.path)
            return super().do_GET()

        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    use_mirror([f"http://127.0.0.1:{httpd.server_port}/"], resources, monkeypatch.setattr)
    httpd.requests = requests
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def use_mirror(mirrors, resources, set_attribute=setattr):
    set_attribute(datasets.MNIST, "mirrors", mirrors)
    set_attribute(datasets.MNIST, "resources", resources)


def prepare(root, mirrors=None, resources=None):
    if mirrors:  # a process of its own
        use_mirror(mirrors, resources)
    data = make(f"data.root={root}")
    data.prepare_data()
    data.setup("test")
    assert len(data.test_set) == 200


def test_it_is_downloaded_once(server, tmp_path):
    prepare(tmp_path)
    assert len(server.requests) == 4
    prepare(tmp_path)
    assert len(server.requests) == 4


def test_two_processes_on_an_empty_folder_download_once(server, tmp_path):
    context = multiprocessing.get_context("spawn")
    arguments = (tmp_path, datasets.MNIST.mirrors, datasets.MNIST.resources)
    processes = [context.Process(target=prepare, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(server.requests) == 4


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "changed"])
def test_a_damaged_file_is_fetched_again(server, tmp_path, name, damage):
    prepare(tmp_path)
    file = tmp_path / "MNIST/raw" / name
    whole = file.read_bytes()
    damaged = {"truncated": whole[:-50], "empty": b"", "changed": whole[:-1] + bytes([whole[-1] ^ 1])}
    file.write_bytes(damaged[damage])
    prepare(tmp_path)
    assert file.read_bytes() == whole


def test_a_truncated_archive_is_fetched_again(server, tmp_path):
    prepare(tmp_path)
    archive = tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:100])
    archive.with_suffix("").unlink()
    prepare(tmp_path)
    assert archive.read_bytes() == whole


def test_a_folder_that_has_everything_is_only_read(digits, tmp_path):
    root = tmp_path / "read_only"
    shutil.copytree(digits, root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    prepare(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_without_a_network_the_message_says_which_files_belong_where(server, digits, tmp_path):
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    server.shutdown()
    server.server_close()
    with pytest.raises(MisconfigurationException) as error:
        prepare(tmp_path)
    assert str(tmp_path / "MNIST/raw") in str(error.value)
    for name, _ in datasets.MNIST.resources:
        assert name.removesuffix(".gz") in str(error.value)
