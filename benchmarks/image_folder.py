"""Compare images per second from a folder with a plain DataLoader over torchvision's ImageFolder on the same files.

    python benchmarks/image_folder.py --project build/my_project

Creates JPEG files of 500 x 375 in a temporary folder, and times both sides alternately. Prints a Markdown table.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2


def make_images(folder: Path, count: int) -> None:
    """Write JPEG files of 500 x 375 into two class folders."""
    generator = numpy.random.default_rng(0)
    for number in range(count):
        # As smooth as a photo, because the size of a JPEG and its decoding time depend on that.
        small = generator.integers(0, 256, (30, 40, 3), dtype=numpy.uint8)
        path = folder / f"class_{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)


def make_torchvision_loader(folder: Path, workers: int) -> DataLoader:
    """Return a DataLoader over torchvision's ImageFolder with the transforms of `data=image_folder`."""
    transform = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    dataset = ImageFolder(str(folder), transform)
    return DataLoader(dataset, batch_size=32, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def make_project_loader(project: Path, folder: Path, workers: int) -> Iterable:
    """Return the training loader of `data=image_folder`."""
    overrides = ["data=image_folder", f"data.root={folder}", f"data.num_workers={workers}", "data.val_share=0.01"]
    with initialize_config_dir(str(project / "configs"), version_base="1.3"):
        config = compose("train", [*overrides, "data.test_share=0.01", "run_dir=nowhere"]).data
    data = instantiate(config, _convert_="all")
    data.setup("fit")
    return data.train_dataloader()


def images_per_second(loader: Iterable) -> float:
    """Return the speed of one pass over a loader."""
    start = time.perf_counter()
    count = sum(len(labels) for _, labels in loader)
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--project", type=Path, required=True, help="a generated project")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    project = arguments.project.resolve()
    sys.path.insert(0, str(project))

    print(f"{os.cpu_count()} cores, torch {torch.__version__}, {arguments.images:,} JPEG of 500 x 375\n")
    print("| workers | `data=image_folder`, images/s | `ImageFolder`, images/s | median ratio (range) |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder, arguments.images)
        for workers in (0, 1, 2):
            torch.set_num_threads(1)  # as in a worker
            loaders = {
                "ours": make_project_loader(project, folder, workers),
                "theirs": make_torchvision_loader(folder, workers),
            }
            speeds: dict[str, list[float]] = {name: [] for name in loaders}
            for loader in loaders.values():  # starts the workers and fills the file cache
                images_per_second(loader)
            for _ in range(arguments.repeats):
                for name, loader in loaders.items():
                    speeds[name].append(images_per_second(loader))
            ratios = [a / b for a, b in zip(*speeds.values(), strict=True)]
            a, b = (statistics.median(values) for values in speeds.values())
            print(
                f"| {workers} | {a:.0f} | {b:.0f} | "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
            )


if __name__ == "__main__":
    main()
