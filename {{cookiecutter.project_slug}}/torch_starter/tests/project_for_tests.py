"""Create a small project with copies of this package and of the commands.

The tests are therefore independent of the user's package and of the folders `configs` and `tests`.
"""

import atexit
import os
import shutil
import struct
import sys
import tempfile
from pathlib import Path

import numpy
import torch
from PIL import Image

PACKAGE = "small_task"
LIBRARY = Path(__file__).parents[1]
COMMANDS = ("train", "resume", "evaluate", "predict", "export", "compare", "sweep", "demo")


def _create_project(folder: Path) -> Path:
    shutil.copytree(Path(__file__).parent / "small_project", folder, dirs_exist_ok=True)
    shutil.copytree(LIBRARY, folder / LIBRARY.name, ignore=shutil.ignore_patterns("tests", "__pycache__"))
    for command in COMMANDS:
        shutil.copy(LIBRARY.parent / f"{command}.py", folder)
    return folder


ROOT = _create_project(Path(tempfile.mkdtemp(prefix="small_project_")).resolve())
atexit.register(shutil.rmtree, ROOT, ignore_errors=True)
# Takes precedence over the project that contains this package.
sys.path.insert(0, str(ROOT))

# The ten digits, five rows of three pixels each.
GLYPHS = """
    ### .#. ### ### #.# ### ### ### ### ###
    #.# ##. ..# ..# #.# #.. #.. ..# #.# #.#
    #.# .#. ### ### ### ### ### .#. ### ###
    #.# .#. #.. ..# ..# ..# #.# .#. #.# ..#
    ### ### ### ### ..# ### ### .#. ### ###
"""


def draw_digits(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return uint8 images (count, 28, 28) of digits at random positions on noise, and uint8 labels (count,)."""
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


def write_idx_pair(folder: Path, split: str, count: int, seed: int) -> None:
    """Write images and labels in the IDX format: http://yann.lecun.com/exdb/mnist/."""
    images, labels = draw_digits(count, seed)
    header = struct.pack(">BBBBIII", 0, 0, 8, 3, *images.shape)
    (folder / f"{split}-images-idx3-ubyte").write_bytes(header + images.numpy().tobytes())
    header = struct.pack(">BBBBI", 0, 0, 8, 1, len(labels))
    (folder / f"{split}-labels-idx1-ubyte").write_bytes(header + labels.numpy().tobytes())


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Return the weights after the last epoch of a run."""
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def environment() -> dict[str, str]:
    """Return the environment variables of this process, without those of Hydra, for a subprocess."""
    return {key: value for key, value in os.environ.items() if not key.startswith("HYDRA")}


COLORS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 50, 40)}


def write_images(folder: Path, count: int, seed: int, colors: tuple[str, ...] = tuple(COLORS)) -> None:
    """Write ``count`` JPEG files per color, named by seed and number."""
    generator = numpy.random.default_rng(seed)
    for color in colors:
        (folder / color).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            height, width = generator.integers(24, 60, 2)
            noise = generator.integers(-40, 40, (height, width, 3))
            pixels = (numpy.array(COLORS[color]) + noise).clip(0, 255).astype(numpy.uint8)
            Image.fromarray(pixels).save(folder / color / f"{seed}_{number:02}.jpg")
