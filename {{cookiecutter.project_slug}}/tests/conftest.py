import os
import pickle
import re
import runpy
import shutil
import struct
import sys
import tomllib
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import torch_starter  # noqa: F401  (the resolvers that the configs use)

ROOT = Path(__file__).parents[1]
PACKAGE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]

# The ten digits, each with five rows of three pixels.
GLYPHS = """
    ### .#. ### ### #.# ### ### ### ### ###
    #.# ##. ..# ..# #.# #.. #.. ..# #.# #.#
    #.# .#. ### ### ### ### ### .#. ### ###
    #.# .#. #.. ..# ..# ..# #.# .#. #.# ..#
    ### ### ### ### ..# ### ### .#. ### ###
"""


def skip_if_deleted(arguments: tuple[str, ...] | list[str]) -> None:
    """Skip a test whose config files have been deleted, as described in docs/deleting.md."""
    named = [argument for argument in arguments if re.fullmatch(r"(experiment|data|model)=\w+", argument)]
    for choice in named or ["experiment=linear_regression"]:
        if not Path(ROOT, "configs", *choice.split("=")).with_suffix(".yaml").exists():
            pytest.skip(f"{choice} does not exist")


@pytest.fixture(autouse=True, scope="session")
def _limit_to_one_thread():
    """Use one thread, so that results do not depend on the number of cores; small tensors do not gain from more."""
    torch.set_num_threads(1)


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Return a function that runs `python SCRIPT ARGUMENTS` in a temporary folder, in this process."""

    def script(name: str, *arguments: object) -> None:
        if not (ROOT / name).exists():
            pytest.skip(f"{name} does not exist")
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / name), run_name="__main__")

    return script


@pytest.fixture
def train(tmp_path, script):
    """Return a function that runs `python train.py ARGUMENTS` and returns the new run folders, sorted."""

    def train(*arguments: str) -> list[Path]:
        skip_if_deleted(arguments)
        before = set(tmp_path.glob("outputs/**/.hydra"))
        script("train.py", *arguments)
        return sorted(folder.parent for folder in set(tmp_path.glob("outputs/**/.hydra")) - before)

    return train


@pytest.fixture
def own_project(tmp_path, monkeypatch):
    """Copy the project into the current folder and return a function that runs `python SCRIPT ARGUMENTS` there.

    Scripts run in this process without any imported modules of the project, as in a new process.
    """
    copy_project(tmp_path)
    tops = (PACKAGE, "torch_starter", *(script.stem for script in ROOT.glob("*.py")))
    for module in list(sys.modules):
        if module.partition(".")[0] in tops:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(name: str, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(name, run_name="__main__")

    yield run
    # Remove the modules of the copy; monkeypatch restores those that were imported before.
    for module in list(sys.modules):
        if module.partition(".")[0] in tops:
            del sys.modules[module]


@pytest.fixture
def line(train):
    """Train a linear regression and return its run folder."""
    return train("trainer.max_epochs=60", "optimizer.lr=0.1")[0]


@pytest.fixture
def classifier(train, digits):
    """Train a classifier on small digits and return its run folder."""
    small = ["data.num_val=100", "data.batch_size=50", "trainer.max_epochs=4"]
    return train("experiment=mnist", f"data.root={digits}", *small)[0]


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """Return a data root with small files in the format of MNIST, which torchvision reads."""
    skip_if_deleted(["data=mnist"])
    root = tmp_path_factory.mktemp("digits")
    for name in ("MNIST", "FashionMNIST", "KMNIST"):
        folder = root / name / "raw"
        folder.mkdir(parents=True)
        write_idx_pair(folder, "train", 600, seed=0)
        write_idx_pair(folder, "t10k", 200, seed=1)
    return root


@pytest.fixture
def photos(tmp_path_factory, monkeypatch) -> Path:
    """Return a data root with small files in the formats of CIFAR-10 and CIFAR-100: pickled rows of 3072 bytes."""
    skip_if_deleted(["data=cifar10"])
    from torchvision import datasets

    root = tmp_path_factory.mktemp("photos")
    cifar10 = {f"data_batch_{number}": 40 for number in range(1, 6)} | {"test_batch": 100}
    for folder, files, key in (
        ("cifar-10-batches-py", cifar10, "labels"),
        ("cifar-100-python", {"train": 200, "test": 100}, "fine_labels"),
    ):
        (root / folder).mkdir()
        for seed, (name, count) in enumerate(files.items()):
            generator = numpy.random.default_rng(seed)
            pixels = generator.integers(0, 256, (count, 3072), dtype=numpy.uint8)
            rows = {"data": pixels, key: generator.integers(0, 10, count).tolist()}
            (root / folder / name).write_bytes(pickle.dumps(rows))
    names = [f"kind {number}" for number in range(10)]
    (root / "cifar-10-batches-py/batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    (root / "cifar-100-python/meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    # torchvision checks the checksums of the real files.
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.CIFAR10, "meta", datasets.CIFAR10.meta | {"md5": None})
    monkeypatch.setattr(datasets.CIFAR100, "meta", datasets.CIFAR100.meta | {"md5": None})
    return root


COLORS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 50, 40)}


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Return a folder of small images of various sizes, with one subfolder per color."""
    skip_if_deleted(["data=image_folder"])
    write_images(tmp_path / "images", 30, seed=0)
    return tmp_path / "images"


def write_images(folder: Path, count: int, seed: int, colors: tuple[str, ...] = tuple(COLORS)) -> None:
    """Write ``count`` JPEG files for each color, named by seed and number."""
    generator = numpy.random.default_rng(seed)
    for color in colors:
        (folder / color).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            height, width = generator.integers(24, 60, 2)
            noise = generator.integers(-40, 40, (height, width, 3))
            pixels = (numpy.array(COLORS[color]) + noise).clip(0, 255).astype(numpy.uint8)
            Image.fromarray(pixels).save(folder / color / f"{seed}_{number:02}.jpg")


def write_idx_pair(folder: Path, split: str, count: int, seed: int) -> None:
    """Write images and labels in the IDX format: http://yann.lecun.com/exdb/mnist/."""
    images, labels = draw_digits(count, seed)
    header = struct.pack(">BBBBIII", 0, 0, 8, 3, *images.shape)
    (folder / f"{split}-images-idx3-ubyte").write_bytes(header + images.numpy().tobytes())
    header = struct.pack(">BBBBI", 0, 0, 8, 1, len(labels))
    (folder / f"{split}-labels-idx1-ubyte").write_bytes(header + labels.numpy().tobytes())


def draw_digits(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw images (count, 28, 28) of digits at random positions on noise, and their labels (count,); both uint8."""
    generator = torch.Generator().manual_seed(seed)
    rows = [row.split() for row in GLYPHS.split("\n") if row.strip()]
    glyphs = torch.tensor([[[pixel == "#" for pixel in row[digit]] for row in rows] for digit in range(10)])
    glyphs = glyphs.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)  # 20 x 12
    labels = torch.randint(10, (count,), generator=generator)
    images = torch.randint(60, (count, 28, 28), generator=generator)
    for image, label in zip(images, labels, strict=True):
        top, left = torch.randint(8, (2,), generator=generator).tolist()
        image[top : top + 20, left : left + 12] += 180 * glyphs[label]
    return images.to(torch.uint8), labels.to(torch.uint8)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Load the weights after the last epoch of a run."""
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def copy_project(folder: Path) -> None:
    """Copy the commands at the root and everything they need, for tests that change or add files."""
    for name in ("configs", PACKAGE, "torch_starter"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("tests"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, folder)


def environment() -> dict[str, str]:
    """Return the environment for a subprocess, without the Hydra settings of the tests."""
    return {key: value for key, value in os.environ.items() if not key.startswith("HYDRA")}
