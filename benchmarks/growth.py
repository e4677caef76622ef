"""Rows of speed.py on scaling: training time by epochs, points, images and loggers, and lookup time by runs.

Writes growth.png beside this file.
"""

import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from bench import Bench
from matplotlib.figure import Figure

COPIES = (1, 2, 4)


def growth(bench: Bench) -> None:
    """Print a row for each growing quantity, and write growth.png."""
    points = ["data.batch_size=100", "trainer.max_epochs=3", "callbacks.regression_figures=null"]
    mlp = [*bench.mnist, "model=mlp", "data.batch_size=512", "trainer.max_epochs=1"]
    roots = {copies: copy_mnist(bench.data, bench.new_run(), copies) for copies in COPIES}
    loggers = {0: "~logger", 1: "logger=tensorboard", 2: "logger=[tensorboard,csv]"}

    def fit(*overrides: str) -> float:
        return bench.train(*overrides).fit

    panels = {
        "epochs of a linear regression": {n: [fit(f"trainer.max_epochs={n}")] for n in (250, 500, 1000, 2000)},
        "points on the line, 3 epochs": {
            n: [fit(*points, f"data.num_train={n}")] for n in (100, 1000, 10_000, 100_000)
        },
        "copies of MNIST, mlp, one epoch": {n: [fit(*mlp, f"data.root={roots[n]}") for _ in range(2)] for n in COPIES},
        "loggers, mlp on MNIST": {n: [fit(*mlp, logger) for _ in range(2)] for n, logger in loggers.items()},
        "runs in outputs/, finding the latest": {
            n: [time_lookup(bench, n) for _ in range(3)] for n in (10, 100, 1000, 10_000)
        },
    }
    medians = {what: {n: statistics.median(values) for n, values in panel.items()} for what, panel in panels.items()}
    for what, panel in medians.items():
        shown = ", ".join(f"{n:,}: {seconds:.3g} s" for n, seconds in panel.items())
        (few, least), *_, (many, most) = panel.items()
        more = f"{many / few:g} times as many: {most / least:.2g} times the seconds" if few else f"{most / least:.2f}"
        print(f"| {what} | {shown} | | {more} | near-linear or flat |", flush=True)
    draw(medians).savefig(Path(__file__).with_name("growth.png"), dpi=100)


def copy_mnist(data: Path, root: Path, copies: int) -> Path:
    """Write MNIST with its training images repeated, in files that torchvision reads, and return the root."""
    raw = root / "MNIST/raw"
    raw.mkdir(parents=True)
    for path in sorted((data / "MNIST/raw").glob("*-ubyte")):
        content, times = path.read_bytes(), copies if path.name.startswith("train") else 1
        header = 4 + 4 * content[3]
        count = (int.from_bytes(content[4:8], "big") * times).to_bytes(4, "big")
        (raw / path.name).write_bytes(content[:4] + count + content[8:header] + content[header:] * times)
    return root


def time_lookup(bench: Bench, runs: int) -> float:
    """Return the seconds to find the latest of a number of runs, which have the files of a real run."""
    import os

    from torch_starter.run_lookup import find, has_checkpoint

    folder = bench.folder / f"runs-{runs}"
    for number in range(0 if folder.exists() else runs):
        run = folder / f"outputs/mnist/{number}"
        for name in (
            ".hydra/config.yaml",
            "checkpoints/best.ckpt",
            "checkpoints/last.ckpt",
            "figures/a.png",
            "train.log",
        ):
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).touch()
    os.chdir(folder)
    start = time.perf_counter()
    find(["latest"], has_checkpoint)
    seconds = time.perf_counter() - start
    os.chdir(bench.project)
    return seconds


def draw(panels: dict[str, dict[int, float]]) -> Figure:
    """Return a figure with a plot for each quantity, with the measured and the proportional time."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    for place, (what, panel) in enumerate(panels.items(), start=1):
        numbers, seconds = list(panel), list(panel.values())
        axes = figure.add_subplot(2, 3, place, xlabel=what, ylabel="seconds")
        axes.plot(numbers, seconds, "o-", color="black", label="measured")
        if numbers[0]:
            axes.plot(
                numbers, [seconds[-1] / numbers[-1] * n for n in numbers], "--", color="gray", label="proportional"
            )
            axes.set(xscale="log", yscale="log", ylim=limits(seconds))
            axes.legend()
        else:
            axes.set(ylim=(0, 1.3 * max(seconds)))
        axes.xaxis.minorticks_off()
        axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
    return figure


def limits(seconds: Sequence[float]) -> tuple[float, float]:
    """Return the powers of ten around the measured values."""
    return 10 ** math.floor(math.log10(min(seconds))), 10 ** math.ceil(math.log10(max(seconds)))
