import os
import runpy
import struct
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]

# The ten digits, five rows of three pixels each.
GLYPHS = """
    ### .#. ### ### #.# ### ### ### ### ###
    #.# ##. ..# ..# #.# #.. #.. ..# #.# #.#
    #.# .#. ### ### ### ### ### .#. ### ###
    #.# .#. #.. ..# ..# ..# #.# .#. #.# ..#
    ### ### ### ### ..# ### ### .#. ### ###
"""


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small tensors do not gain from more, and so no result depends on how many cores a machine has."""
    torch.set_num_threads(1)


@pytest.fixture
def script(tmp_path, monkeypatch):
    """`python SCRIPT ARGUMENTS` in a folder of its own, in this process."""

    def script(name: str, *arguments: object) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / name), run_name="__main__")

    return script


@pytest.fixture
def train(tmp_path, script):
    """`python train.py ARGUMENTS` in a folder of its own; returns the run folders that it made, sorted."""

    def train(*arguments: str) -> list[Path]:
        before = set(tmp_path.glob("outputs/**/.hydra"))
        script("train.py", *arguments)
        return sorted(folder.parent for folder in set(tmp_path.glob("outputs/**/.hydra")) - before)

    return train


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """A data root with small files in MNIST's own format, which torchvision reads as it reads MNIST's."""
    root = tmp_path_factory.mktemp("digits")
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    write_idx_pair(folder, "train", 600, seed=0)
    write_idx_pair(folder, "t10k", 200, seed=1)
    return root


def write_idx_pair(folder: Path, split: str, count: int, seed: int) -> None:
    """Images and labels in the IDX format: http://yann.lecun.com/exdb/mnist/."""
    images, labels = draw_digits(count, seed)
    header = struct.pack(">BBBBIII", 0, 0, 8, 3, *images.shape)
    (folder / f"{split}-images-idx3-ubyte").write_bytes(header + images.numpy().tobytes())
    header = struct.pack(">BBBBI", 0, 0, 8, 1, len(labels))
    (folder / f"{split}-labels-idx1-ubyte").write_bytes(header + labels.numpy().tobytes())


def draw_digits(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (count, 28, 28) of digits in places of their own on a noisy ground, and their labels; both uint8."""
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


def environment() -> dict[str, str]:
    """For a process of its own: that of the tests, without their settings for Hydra."""
    return {key: value for key, value in os.environ.items() if not key.startswith("HYDRA")}
