"""Tests of missing and damaged files of a data set."""

import functools
import gzip
import hashlib
import http.server
import multiprocessing
import shutil
import threading

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torchvision import datasets

from project_for_tests import ROOT


def make(*overrides: str):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("train", ["data=mnist", "data.num_val=100", "data.batch_size=64", *overrides])
        return instantiate(config.data, _convert_="all")


@pytest.fixture
def server(digits, tmp_path_factory, monkeypatch):
    """A local mirror of MNIST that serves the small files and records the requests."""
    folder = tmp_path_factory.mktemp("mirror")
    resources, requests = [], []
    for file in sorted((digits / "MNIST/raw").iterdir()):
        archive = folder / f"{file.name}.gz"
        archive.write_bytes(gzip.compress(file.read_bytes()))
        resources.append((archive.name, hashlib.md5(archive.read_bytes()).hexdigest()))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.headers["Method"] == "HEAD":  # torchvision checks for redirects with this method.
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
    if mirrors:  # in a separate process
        use_mirror(mirrors, resources)
    data = make(f"data.root={root}")
    data.prepare_data()
    data.setup("test")
    assert len(data.test_set) == 200


def test_data_set_is_downloaded_once(server, tmp_path):
    prepare(tmp_path)
    assert len(server.requests) == 4
    prepare(tmp_path)
    assert len(server.requests) == 4


@pytest.mark.slow
def test_two_processes_download_once(server, tmp_path):
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
def test_damaged_file_is_downloaded_again(server, tmp_path, name, damage):
    prepare(tmp_path)
    file = tmp_path / "MNIST/raw" / name
    whole = file.read_bytes()
    damaged = {"truncated": whole[:-50], "empty": b"", "changed": whole[:-1] + bytes([whole[-1] ^ 1])}
    file.write_bytes(damaged[damage])
    prepare(tmp_path)
    assert file.read_bytes() == whole


def test_truncated_archive_is_downloaded_again(server, tmp_path):
    prepare(tmp_path)
    archive = tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:100])
    archive.with_suffix("").unlink()
    prepare(tmp_path)
    assert archive.read_bytes() == whole


def test_complete_folder_is_only_read(digits, tmp_path):
    root = tmp_path / "read_only"
    shutil.copytree(digits, root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    prepare(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_message_without_a_network_names_files_and_folder(server, digits, tmp_path):
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
