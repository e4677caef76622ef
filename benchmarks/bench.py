"""Shared code of speed.py and gpu.py: timed runs of the project, and a table that compares results with goals."""

import argparse
import contextlib
import itertools
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Makes rich draw the progress bar as in a terminal, although the output is discarded.
os.environ |= {"FORCE_COLOR": "1", "COLUMNS": "120"}
# Users have Python cache its bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import loops
from lightning import Callback, Trainer
from omegaconf import OmegaConf

# Goals: 99 % in the least time, and 99.6 % in at most twice the time of experiment=mnist.
QUICK, AUGMENTED = "experiment=mnist_quick", "experiment=mnist_augmented"


class Bench:
    """Times the commands and runs of a generated project.

    Args:
        project: folder of the generated project.
        data: folder that contains MNIST/raw.
        repeats: number of repeats of each measurement.
    """

    def __init__(self, project: Path, data: Path, repeats: int) -> None:
        self.project, self.data, self.repeats = project, data, repeats
        self.mnist = ["experiment=mnist", f"data.root={data}"]
        self.folder = Path(tempfile.mkdtemp())
        self.numbers = itertools.count()

    def process(self, *arguments: str, status: int = 0) -> float:
        """Return the wall-clock seconds of a Python process; exit if its exit status is not ``status``."""
        command = [sys.executable, *arguments]
        start = time.perf_counter()
        ended = subprocess.run(command, cwd=self.project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        if ended.returncode != status:
            sys.exit(f"{' '.join(command)} ended with exit status {ended.returncode}")
        return seconds

    def peak_memory(self, *arguments: str) -> float:
        """Return the peak memory of a Python process in MB.

        A small process starts it, because a child's peak includes that of its parent at the start.
        """
        code = (
            "import resource, subprocess, sys\n"
            "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        command = [sys.executable, "-c", code, sys.executable, *arguments]
        printed = subprocess.run(command, cwd=self.project, check=True, capture_output=True, text=True).stdout
        return int(printed) / (1024 if sys.platform == "linux" else 1024**2)

    def train_py(self, *overrides: str) -> tuple[float, dict[str, Any]]:
        """Return the seconds of a `train.py` process and the content of its results.json."""
        run = self.new_run()
        seconds = self.process("train.py", *overrides, f"hydra.run.dir={run}")
        return seconds, json.loads((run / "results.json").read_text())

    def new_run(self) -> Path:
        """Return the path of a new run folder, without creating it."""
        return self.folder / str(next(self.numbers))

    def train(self, *overrides: str, watchers: Sequence[Callback] = ()) -> "Clock":
        """Train in this process, like `train.py`, and return the times."""
        from train import train

        config = self.compose(*overrides)
        clock = Clock()
        with quiet():
            train(config, *watchers, clock)
        clock.accuracy = json.loads(Path(config.run_dir, "results.json").read_text())["metrics"].get("test/acc")
        return clock

    def compose(self, *overrides: str) -> Any:
        """Return the config of a new run, and write it into the run folder."""
        run = self.new_run()
        config = loops.compose_config(self.project, *overrides, f"run_dir={run}")
        (run / ".hydra").mkdir(parents=True)
        OmegaConf.save(config, run / ".hydra/config.yaml")
        OmegaConf.save(OmegaConf.create(list(overrides)), run / ".hydra/overrides.yaml")
        return config


class Clock(Callback):
    """Measures the seconds of each training epoch without validation, of the fit, and of the last evaluation pass."""

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self.device = "cpu"

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.device = pl_module.device.type
        self.fit_start = loops.wait_for(self.device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.start = loops.wait_for(self.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_last_batch:
            self.epochs.append(loops.wait_for(self.device) - self.start)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.fit = loops.wait_for(self.device) - self.fit_start

    def on_validation_epoch_start(self, *args: Any) -> None:
        self.pass_start = time.perf_counter()

    def on_validation_epoch_end(self, *args: Any) -> None:
        self.seconds = time.perf_counter() - self.pass_start

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard what is printed to stdout."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def compare(
    what: str,
    ours: list[float],
    theirs: list[float],
    at_most: float | None = None,
    at_least: float | None = None,
    times_faster: float | None = None,
) -> None:
    """Print a row of the table: both medians, and the median and range of the pairwise ratios ours / theirs.

    Args:
        what: description of the measurement and its reference.
        ours: measurements of the project, in seconds or another unit.
        theirs: measurements of the reference, of the same length, or a single one for all pairs.
        at_most: upper goal for ours / theirs.
        at_least: lower goal for ours / theirs.
        times_faster: lower goal for theirs / ours; the row then shows this ratio.
    """
    theirs = theirs * len(ours) if len(theirs) == 1 else theirs
    ratios = [b / a if times_faster else a / b for a, b in zip(ours, theirs, strict=True)]
    median, verdict = statistics.median(ratios), ""
    if at_most:
        verdict = f"at most {at_most:.4g}: {'met' if median <= at_most else '**not met**'}"
    elif goal := at_least or times_faster:
        verdict = f"at least {goal:.4g}: {'met' if median >= goal else '**not met**'}"
    row(
        what,
        *(f"{statistics.median(values):.3g}" for values in (ours, theirs)),
        f"{median:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        verdict,
    )


def row(*cells: str) -> None:
    """Print a row of a Markdown table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments that speed.py and gpu.py share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, required=True, help="a generated project")
    parser.add_argument("--data", type=Path, required=True, help="a folder that contains MNIST/raw")
    return parser


def open_bench(arguments: argparse.Namespace) -> Bench:
    """Return a bench, change to the project's folder, and make the project's modules importable."""
    if not (arguments.data / "MNIST/raw/train-images-idx3-ubyte").exists():
        sys.exit(f"{arguments.data.resolve()} does not contain MNIST/raw. Pass a folder that does: DATA=FOLDER")
    bench = Bench(arguments.project.resolve(), arguments.data.resolve(), arguments.repeats)
    sys.path.insert(0, str(bench.project))
    os.chdir(bench.project)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    return bench


def print_head(*machine: str) -> None:
    """Print the machine, the versions, and the head of the table."""
    packages = [f"{name} {version(name)}" for name in ("torch", "lightning", "hydra-core")]
    system = [f"{os.cpu_count()} cores", f"{platform.system()} {platform.machine()}"]
    print(*machine, *system, f"Python {platform.python_version()}", *packages, sep=", ")
    print("\n| what | ours | theirs | median ratio (range) | goal |\n| --- | --- | --- | --- | --- |", flush=True)
