"""Rows of speed.py on large folders: finding the latest of many runs, and reading many images."""

import csv
import os
import time
from pathlib import Path
from typing import Any

import loops
import torch
from bench import Bench, compare, quiet
from hydra.utils import instantiate
from image_folder import make_images
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

RUNS = 10_000
IMAGES, CLASSES = 1_000_000, 1000
JPEGS = 2000


def latest(bench: Bench) -> None:
    """Time finding the latest of 10,000 runs, each time after one more run was made."""
    from torch_starter.run_lookup import find, has_checkpoint

    for folders in (1, 5):
        root = bench.new_run()
        for number in range(RUNS):
            make_run(root / f"outputs/experiment_{number % folders}/{number}")
        os.chdir(root)
        seconds = []
        for repeat in range(3 * bench.repeats + 1):
            start = time.perf_counter()
            found, _ = find(["latest"], has_checkpoint)
            seconds.append(time.perf_counter() - start)
            assert not repeat or found.name == f"new_{repeat - 1}", found
            make_run(root / f"outputs/experiment_0/new_{repeat}")
        os.chdir(bench.project)
        what = f"`latest` among {RUNS:,} runs in {folders} folders of `outputs/`: seconds, against the goal"
        compare(f"{what}; the first time {seconds[0]:.2g} s", seconds[1:], [0.02], at_most=1)


def make_run(run: Path) -> None:
    """Create the files of a run, empty."""
    for name in (".hydra/config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "figures/a.png", "train.log"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()


def million(bench: Bench) -> None:
    """Measure what a million image files add to the start of a run with a split.csv, and to a worker's memory."""
    root, small = bench.new_run(), IMAGES // 100
    for number in range(CLASSES):
        folder = root / f"class_{number:04}"
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32), (number % 256, 0, 0)).save(folder / f"image_of_{number:04}.jpg")
    splits = {images: bench.folder / f"split_{images}.csv" for images in (small, IMAGES)}
    for images, path in splits.items():
        with path.open("w", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["split", "class", "picture"])
            # A million rows that name existing files.
            for number in range(images):
                name, tenth = f"{number % CLASSES:04}", number // CLASSES % 10
                split = "train" if tenth < 8 else "val" if tenth < 9 else "test"
                rows.writerow([split, f"class_{name}", f"class_{name}/image_of_{name}.jpg"])
    overrides = ["data=image_folder", "model=cnn", f"data.root={root}", "data.image_shape=[3,32,32]"]
    few = [
        "callbacks.classifier_figures=null",
        *(f"trainer.limit_{kind}_batches=1" for kind in ("train", "val", "test")),
    ]
    begun, reading = [], []
    read = "import csv, sys; list(csv.reader(open(sys.argv[1], newline='')))"
    for _ in range(bench.repeats):
        seconds = {
            images: bench.process(
                "train.py",
                *overrides,
                *few,
                "trainer.max_epochs=1",
                f"data.split_file={path}",
                f"hydra.run.dir={bench.new_run()}",
            )
            for images, path in splits.items()
        }
        begun.append(seconds[IMAGES] - seconds[small])
        reading.append(bench.process("-c", read, str(splits[IMAGES])))
    what = f"startup time added by {IMAGES:,} image files with an existing split.csv: seconds"
    compare(f"{what}, against `list(csv.reader(…))`", begun, reading)
    compare(f"{what}, against the goal", begun, [10], at_most=1)
    private = {images: worker_memory(bench, [*overrides, f"data.split_file={path}"]) for images, path in splits.items()}
    for batches in private[IMAGES]:
        compare(
            f"private memory of a worker after {batches} batches, {IMAGES:,} files: MB, against {small:,} files",
            [private[IMAGES][batches]],
            [private[small][batches]],
            at_most=1.1,
        )


def worker_memory(bench: Bench, overrides: list[str]) -> dict[int, float]:
    """Return the private memory in MB of the larger of two workers after 1, 50 and 200 batches."""
    config = loops.compose_config(bench.project, *overrides, "data.num_workers=2", f"run_dir={bench.new_run()}")
    data = instantiate(config.data, _convert_="all")
    data.setup("fit")
    found = {}
    try:
        for number, _ in enumerate(data.train_dataloader(), start=1):
            if number in (1, 50, 200):
                found[number] = max(private_memory(worker.pid) for worker in data.workers.loader._iterator._workers)
            if number == 200:
                break
    finally:
        data.workers.stop()
    return found


def private_memory(pid: int) -> float:
    """Return the memory in MB that a process shares with no other (Linux only)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def jpeg(bench: Bench) -> None:
    """Time `predict.py` and `evaluate.py` on a folder of JPEG files, including the start of their workers."""
    from torch_starter import load_run
    from torch_starter.prediction import find_inputs, predict

    folder, run = bench.new_run(), bench.new_run()
    (folder / "test").mkdir(parents=True)
    make_images(folder / "test", JPEGS)
    (folder / "train").mkdir()
    make_images(folder / "train", 40)
    overrides = ["data=image_folder", "model=cnn", f"data.root={folder}", "trainer.max_epochs=1"]
    bench.process("train.py", *overrides, "trainer.limit_test_batches=1", f"hydra.run.dir={run}")
    found: dict[str, list[float]] = {"predict.py": [], "evaluate.py": [], "bare": []}
    for _ in range(bench.repeats + 1):
        loaded = load_run(run, "last", ["trainer.limit_test_batches=1.0"])
        network, data = loaded.model.network, loaded.data
        start = time.perf_counter()
        with quiet():
            loaded.evaluate()
        found["evaluate.py"].append(JPEGS / (time.perf_counter() - start))
        data.setup("test")
        workers = data.workers.count if data.workers else 0
        start = time.perf_counter()
        rows: list[dict[str, Any]] = []
        predict(loaded, find_inputs(loaded, [str(folder / "test")]), rows.extend)
        found["predict.py"].append(len(rows) / (time.perf_counter() - start))
        found["bare"].append(JPEGS / infer(folder / "test", network, data, workers))
    for name in ("predict.py", "evaluate.py"):
        what = f"`{name}`, {JPEGS:,} JPEG of 500 x 375, {workers} workers: images/s, against a bare DataLoader"
        compare(what, found[name][1:], found["bare"][1:], at_least=0.9)


def infer(folder: Path, network: torch.nn.Module, data: Any, workers: int) -> float:
    """Return the seconds of a plain loop over a folder of images with the transforms and the network of a run."""
    height, width = data.image_shape[1:]
    side = round(max(height, width) / data.center_crop_share)
    transform = v2.Compose([v2.PILToTensor(), v2.Resize([side], antialias=True), v2.CenterCrop([height, width])])
    start = time.perf_counter()
    loader = DataLoader(ImageFolder(str(folder), transform), batch_size=data.batch_size, num_workers=workers)
    right = torch.tensor(0)
    with torch.inference_mode():
        for images, labels in loader:
            right += (network(loops.normalize(images, data)).argmax(1) == labels).sum()
    assert right.item() <= JPEGS
    return time.perf_counter() - start
