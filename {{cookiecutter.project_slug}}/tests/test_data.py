"""Where the batches come from: splits, order, and files that are missing or damaged."""

import functools
import gzip
import hashlib
import http.server
import multiprocessing
import pickle
import shutil
import threading

import numpy
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torchvision import datasets

from conftest import ROOT, draw_digits


def make(*overrides: str):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return instantiate(compose("train", ["data=mnist", "data.num_val=100", "data.batch_size=64", *overrides]).data)


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def order(data, epoch: int) -> torch.Tensor:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # as Lightning does
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


def test_coloured_images_have_their_channels_first(tmp_path, monkeypatch):
    """CIFAR-10's own format, read by torchvision: rows of 3072 bytes, all red first."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = numpy.random.default_rng(0).integers(0, 256, (8, 3072), dtype=numpy.uint8)
    for name in ["test_batch", *(f"data_batch_{i}" for i in range(1, 6))]:
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": list(range(8))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}))
    # torchvision knows the checksums of the real files alone.
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})

    data = make(f"data.root={tmp_path}", "data.dataset=CIFAR10", "data.image_shape=[3,32,32]", "data.num_val=10")
    data.setup("fit")
    data.setup("test")
    assert data.test_set.tensors[0].numpy().reshape(8, 3072).tolist() == pixels.tolist()
    assert data.test_set.tensors[1].tolist() == list(range(8))


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
