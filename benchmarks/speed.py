"""How long things take, always beside something to compare them with, in turn and in one run.

    python benchmarks/speed.py --project build/my_project --data FOLDER

FOLDER has MNIST/raw. Prints a table in Markdown, with the goal of each row; growth.png is put beside this file.
"""

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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

# A terminal, so that the progress bar is drawn (to nowhere) as a user has it.
os.environ |= {"FORCE_COLOR": "1", "COLUMNS": "120"}
# And no setting that keeps Python from caching its bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import growth
import loops
import numpy
import torch
from hydra.utils import instantiate
from lightning import Callback, Trainer
from omegaconf import OmegaConf

HERE = Path(__file__).parent.resolve()
TEMPLATE = HERE.parent
GPU = ["trainer=gpu", "model.compile=true"]


class Bench:
    """The project and the data that everything is timed with, and the table that it makes."""

    def __init__(self, project: Path, data: Path, repeats: int, tutorials: int) -> None:
        self.project, self.repeats, self.tutorials = project, repeats, tutorials
        self.mnist = ["experiment=mnist", f"data.root={data}"]
        self.data = data
        self.folder = Path(tempfile.mkdtemp())
        self.numbers = itertools.count()

    def process(self, *arguments: str, status: int = 0) -> float:
        """Wall seconds of a Python process that ends with an exit status."""
        command = [sys.executable, *arguments]
        start = time.perf_counter()
        ended = subprocess.run(command, cwd=self.project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        if ended.returncode != status:
            sys.exit(f"{' '.join(command)} ended with exit status {ended.returncode}")
        return seconds

    def peak_memory(self, *arguments: str) -> float:
        """Peak MB of a Python process. A small one asks, for a child begins with the peak of its parent."""
        code = (
            "import resource, subprocess, sys\n"
            "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        command = [sys.executable, "-c", code, sys.executable, *arguments]
        printed = subprocess.run(command, cwd=self.project, check=True, capture_output=True, text=True).stdout
        return int(printed) / (1024 if sys.platform == "linux" else 1024**2)

    def train_py(self, *overrides: str) -> tuple[float, dict[str, Any]]:
        """Seconds of a process `train.py`, and its results.json."""
        run = self.new_run()
        seconds = self.process("train.py", *overrides, f"hydra.run.dir={run}")
        return seconds, json.loads((run / "results.json").read_text())

    def new_run(self) -> Path:
        return self.folder / str(next(self.numbers))

    def train(self, *overrides: str) -> "Clock":
        """A run in this process, as `train.py` makes it; its times."""
        from train import train

        config = self.composed(*overrides)
        clock = Clock()
        with quiet():
            train(config, clock)
        clock.accuracy = json.loads(Path(config.run_dir, "results.json").read_text())["metrics"].get("test/acc")
        return clock

    def composed(self, *overrides: str) -> Any:
        run = self.new_run()
        config = loops.composed(self.project, *overrides, f"run_dir={run}")
        (run / ".hydra").mkdir(parents=True)
        OmegaConf.save(config, run / ".hydra/config.yaml")
        OmegaConf.save(OmegaConf.create(list(overrides)), run / ".hydra/overrides.yaml")
        return config


class Clock(Callback):
    """Seconds of each training epoch, without its validation, of the whole fit, and of each pass of another kind."""

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
    """A row of the table: medians, and the median and the range of the ratios, pair by pair.

    Args:
        what: is compared with what.
        ours: seconds, or another measure.
        theirs: of the same length; or a single one, for all.
        at_most: goal for ours by theirs.
        at_least: goal for ours by theirs.
        times_faster: goal for theirs by ours, which is then the ratio that is shown.
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
    print(f"| {' | '.join(cells)} |", flush=True)


def start(bench: Bench) -> None:
    """Row 1."""
    quick = {
        "`train.py --help`": (0, "train.py", "--help"),
        "`train.py --cfg job`": (0, "train.py", "--cfg", "job"),
        "`train.py optimizer=adamm`, a mistake": (1, "train.py", "optimizer=adamm"),
        "`train.py trainer.max_epoch=1`, a mistake": (1, "train.py", "trainer.max_epoch=1"),
        "`import hydra`": (0, "-c", "import hydra"),
    }
    slow = {
        "`train.py trainer.fast_dev_run=true`": (0, "train.py", "trainer.fast_dev_run=true"),
        "`import lightning.pytorch, torchvision`": (0, "-c", "import lightning.pytorch, torchvision"),
        "`import torch`": (0, "-c", "import torch"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in [*quick, *slow]}
    for commands, repeats in ((quick, 3 * bench.repeats), (slow, bench.repeats)):
        for repeat in range(repeats + 1):
            for name, (status, *command) in commands.items():
                if name.startswith("`train.py trainer.fast"):
                    command = [*command, f"hydra.run.dir={bench.new_run()}"]
                found = bench.process(*command, status=status)
                if repeat:  # the first is for the file cache
                    seconds[name].append(found)
    hydra = seconds["`import hydra`"]
    for name in list(quick)[:-1]:
        compare(
            f"{name}: seconds, against 1.5 times `import hydra` and 0.2 s",
            seconds[name],
            [1.5 * s + 0.2 for s in hydra],
            at_most=1,
        )
    fast, lightning, only_torch = (seconds[name] for name in slow)
    compare(
        "`train.py trainer.fast_dev_run=true`: seconds, against `import lightning.pytorch, torchvision`",
        fast,
        lightning,
        at_most=1.25,
    )
    compare("the same, against `import torch`", fast, only_torch)


def epochs(bench: Bench, device: str = "cpu") -> None:
    """Row 2, and on a GPU row 9: the second epoch of a run, for in the first the model's graph is drawn, too."""
    gpu = GPU if device == "cuda" else []
    for model in ("cnn", "mlp"):
        for batch_size in (512, 2048, 8192) if gpu else (128, 512):
            # A fifth of an epoch of the cnn has time enough to be measured; of short ones there are more.
            share, repeats = (1 / 5, 2) if model == "cnn" and not gpu else (1.0, 3)
            overrides = [*bench.mnist, *gpu, f"model={model}", f"data.batch_size={batch_size}"]
            config = loops.composed(bench.project, *overrides, "run_dir=nowhere")
            data = instantiate(config.data, _convert_="all")
            data.setup("fit")
            default = OmegaConf.merge(config, {"optimizer": {**config.optimizer, "fused": None}})
            found: dict[str, list[float]] = {name: [] for name in ("ours", "bare", "0", "2")}
            limits = ["trainer.max_epochs=2", f"trainer.limit_train_batches={share}", "trainer.limit_test_batches=1"]
            for _ in range(repeats * bench.repeats):
                found["ours"].append(bench.train(*overrides, *limits).epochs[-1] / share)
                found["bare"].append(loops.bare(config, data, 2, device, share)[-1] / share)
                for workers in () if gpu else (0, 2):
                    found[str(workers)].append(loops.conventional(default, bench.data, workers, share=1 / 10))
            what = f"an MNIST epoch, {model}, batch {batch_size}: seconds, against"
            if gpu:
                compare(f"{what} the bare loop with the data on the GPU", found["ours"], found["bare"], at_most=1.3)
                continue
            compare(f"{what} the bare loop", found["ours"], found["bare"], at_most=1.15)
            for workers in (0, 2):
                name = f"{what} the conventional pipeline, {workers} workers: theirs by ours"
                compare(name, found["ours"], found[str(workers)], times_faster=5 if model == "mlp" else 1.5)


def accuracy(bench: Bench) -> None:
    """Rows 3 and 6, and five seeds of the whole experiment."""
    theirs = [bench.process(str(HERE / "loops.py"), "tutorial", str(bench.data)) for _ in range(bench.tutorials)]
    ours = [bench.train_py(*bench.mnist, f"seed={seed}", "trainer.max_epochs=1") for seed in range(bench.repeats)]
    lowest = min(results["metrics"]["test/acc"] for _, results in ours)
    if lowest < 0.99:
        sys.exit(f"`trainer.max_epochs=1` does not reach 99 % with each seed: {lowest:.2%}")
    what = f"time to 99 %, whole process, `train.py experiment=mnist trainer.max_epochs=1` ({lowest:.2%} or more)"
    # A single one of theirs, which takes minutes, stands for all.
    slow = [statistics.median(theirs)]
    seconds = [seconds for seconds, _ in ours]
    compare(f"{what}: seconds, against PyTorch's example: theirs by ours", seconds, slow, times_faster=15)
    memory = bench.peak_memory("train.py", *bench.mnist, "trainer.max_epochs=1", f"hydra.run.dir={bench.new_run()}")
    bare = bench.peak_memory(str(HERE / "loops.py"), "bare", str(bench.project), str(bench.data))
    compare("peak memory of a process that trains the cnn: MB, against the bare loop's", [memory], [bare])

    # Two at a time, for here nothing is timed.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ThreadPoolExecutor(2) as pool:
        final = list(pool.map(lambda seed: bench.train_py(*bench.mnist, f"seed={seed}")[1], range(5)))
    del os.environ["OMP_NUM_THREADS"]
    accuracies = [results["metrics"]["test/acc"] for results in final]
    mean = statistics.mean(accuracies)
    spread = f"{min(accuracies):.2%} to {max(accuracies):.2%}"
    verdict = f"at least 99.4 %: {'met' if mean >= 0.994 else '**not met**'}"
    what = f"`train.py experiment=mnist`, {final[0]['epochs']} epochs, seeds 0 to 4: mean test accuracy"
    row(what, f"{mean:.2%}", "", spread, verdict)


def gpu(bench: Bench) -> None:
    """Row 9."""
    epochs(bench, "cuda")
    clocks = [bench.train(*bench.mnist, *GPU, f"seed={seed}", "trainer.max_epochs=1") for seed in range(5)]
    what = f"time to 99 % on the GPU, training alone ({min(clock.accuracy for clock in clocks):.2%} or more): seconds"
    compare(f"{what}, against the goal", [clock.fit for clock in clocks], [3], at_most=1)


def linear_regression(bench: Bench) -> None:
    """Row 4."""
    sides = {"`train.py`": [], "`train.py` without pictures": ["callbacks.regression_figures=null"]}
    ours: dict[str, list[float]] = {name: [] for name in sides}
    lightning, bare = [], []
    for _ in range(bench.repeats):
        for name, overrides in sides.items():
            ours[name].append(bench.train_py(*overrides)[0] - bench.train_py(*overrides, "trainer.max_epochs=1")[0])
        lightning.append(loops.barebones_line(500) - loops.barebones_line(1))
        bare.append(loops.line(499))
    for name, seconds in ours.items():
        what = f"{name}, less the same with `trainer.max_epochs=1`: seconds, against the bare loop of 499 steps"
        compare(what, seconds, bare, at_most=5)
    compare("Lightning alone, `Trainer(barebones=True)`: seconds, against the bare loop of 499 steps", lightning, bare)


def table(bench: Bench) -> None:
    """A table of a million rows and 50 columns: the second epoch of a run, and the time until it trains."""
    import polars

    file, generator = bench.folder / "table.csv", numpy.random.default_rng(0)
    columns = {f"x{number}": generator.normal(size=1_000_000).round(4) for number in range(50)}
    target = sum(weight * column for weight, column in zip(generator.normal(size=50), columns.values(), strict=True))
    polars.DataFrame(columns | {"y": target + generator.normal(size=1_000_000)}).write_csv(file)
    overrides = ["experiment=table", f"data.file={file}", "data.target=y"]
    short = ["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1", "trainer.limit_test_batches=1"]
    for model in ("linear_regression", "mlp"):
        run = bench.new_run()
        bench.process("train.py", *overrides, f"model={model}", *short, f"hydra.run.dir={run}")
        config = OmegaConf.merge(OmegaConf.load(run / ".hydra/config.yaml"), {"run_dir": str(run)})
        data = instantiate(config.data, _convert_="all")
        data.setup("fit")
        found, bare = [], []
        for _ in range(bench.repeats):
            found.append(bench.train(*overrides, f"model={model}", *short).epochs[-1])
            bare.append(loops.regress(config, data, 2)[-1])
        batch = config.data.batch_size
        what = (
            f"an epoch of 700,000 rows of a table of 50 columns, {model}, batch {batch}: seconds, against the bare loop"
        )
        compare(what, found, bare, at_most=1 / 0.7)
    few = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1"]
    begun, reading = [], []
    read = "import polars, sys; polars.read_csv(sys.argv[1])"
    for _ in range(bench.repeats):
        seconds = bench.process("train.py", *overrides, *few, "trainer.limit_test_batches=1")
        begun.append(seconds - bench.process("train.py", *few, "trainer.limit_test_batches=1"))
        reading.append(bench.process("-c", read, str(file)))
    compare(
        "what that table, a CSV file of 400 MB, adds to the start of a run: seconds, against reading it", begun, reading
    )


def throughput(bench: Bench) -> None:
    """Row 5, with the batches of the experiment, and with `data.batch_size=1024` for evaluate.py."""
    from torch_starter import load_run

    for model in ("cnn", "mlp"):
        run = bench.new_run()
        short = ["trainer.max_epochs=1", "trainer.limit_train_batches=5", f"hydra.run.dir={run}"]
        bench.process("train.py", *bench.mnist, f"model={model}", *short)
        for overrides in ([], ["data.batch_size=1024"]):
            loaded = load_run(run, "last", overrides)
            config, data, ours, trainer = loaded.config, loaded.data, loaded.model, loaded.trainer
            clock = Clock()
            trainer.callbacks.append(clock)
            data.setup("fit")
            data.setup("test")
            for kind, dataset in (("validate", data.val_set), ("test", data.test_set), ("predict", data.test_set)):
                images, labels = dataset.tensors
                found, bare = [], []
                for repeat in range(2 * bench.repeats + 1):
                    with quiet():
                        # As evaluate.py and predict.py call it.
                        if kind == "predict":
                            trainer.predict(ours, iter(images.split(data.batch_size)))
                        else:
                            getattr(trainer, kind)(ours, data, verbose=False)
                    seconds = loops.infer(ours.network, kind, images, labels, data)
                    if repeat:
                        found.append(len(dataset) / clock.seconds)
                        bare.append(len(dataset) / seconds)
                what = f"{kind}, {model}, batch {config.data.batch_size}"
                compare(f"{what}: images/s, against a bare loop in inference mode", found, bare, at_least=0.85)


def watched(bench: Bench) -> None:
    """All that is drawn and logged: a small difference of long runs, and so not among the default rows."""
    callbacks = ("curves", "run_description", "regression_figures", "classifier_figures")
    sides = {
        "all": ["logger=[tensorboard,csv]"],
        "none": ["~logger", *(f"callbacks.{name}=null" for name in callbacks)],
    }
    found: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(3 * bench.repeats):  # each goes first as often as the other
        for name in sides if repeat % 2 else reversed(sides):
            found[name].append(bench.train_py(*bench.mnist, *sides[name])[0])
    what = "`train.py experiment=mnist` with all pictures and loggers: seconds, against none"
    compare(what, found["all"], found["none"], at_most=1.1)


def generation(bench: Bench) -> None:
    """Row 8."""
    command = ["-m", "cookiecutter", str(TEMPLATE), "--no-input", "--output-dir"]
    ours = [bench.process(*command, str(bench.new_run())) for _ in range(bench.repeats)]
    imports = [bench.process("-c", "import cookiecutter.main") for _ in ours]
    compare("`cookiecutter . --no-input`: seconds, against `import cookiecutter.main`", ours, imports)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, required=True, help="a generated project")
    parser.add_argument("--data", type=Path, required=True, help="a folder that has MNIST/raw")
    parser.add_argument("--repeats", type=int, default=3, help="of each pair (default: 3)")
    parser.add_argument("--tutorials", type=int, default=1, help="runs of PyTorch's example, minutes each (default: 1)")
    rows = [start, generation, linear_regression, table, throughput, epochs, accuracy, growth.growth]
    names = [row.__name__ for row in rows]
    parser.add_argument(
        "--rows", nargs="+", choices=[*names, "watched"], default=names, help="default: all but watched"
    )
    arguments = parser.parse_args()
    if not (arguments.data / "MNIST/raw/train-images-idx3-ubyte").exists():
        sys.exit(
            f"There is no MNIST/raw in {arguments.data.resolve()}. Name a folder that has it: make bench DATA=FOLDER"
        )
    bench = Bench(arguments.project.resolve(), arguments.data.resolve(), arguments.repeats, arguments.tutorials)
    sys.path.insert(0, str(bench.project))
    os.chdir(bench.project)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "hydra-core"))
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    print(f"{machine}, Python {platform.python_version()}, {packages}; {arguments.repeats} repeats")
    print("\n| what | ours | theirs | median ratio (range) | goal |\n| --- | --- | --- | --- | --- |", flush=True)
    begin = time.monotonic()
    for measure in [*rows, watched]:
        if measure.__name__ in arguments.rows:
            began = time.monotonic()
            measure(bench)
            print(f"{measure.__name__}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if torch.cuda.is_available():
        gpu(bench)
    print(f"\n{(time.monotonic() - begin) / 60:.0f} minutes in all.")


if __name__ == "__main__":
    main()
