"""How long things take, always beside something to compare them with, in turn and in one run.

    python benchmarks/speed.py --project build/my_project --data FOLDER

FOLDER has MNIST/raw. Without --data only the start is timed. Prints a table in Markdown.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent.resolve()
# A terminal, so that the progress bar is drawn (to nowhere) as a user has it.
# And no setting that keeps Python from caching its bytecode.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
ENVIRONMENT |= {"PYTHONPATH": str(HERE), "FORCE_COLOR": "1", "COLUMNS": "120"}


def run(*arguments: str, cwd: Path, status: int = 0) -> float:
    """Wall seconds of a Python process that ends with an exit status."""
    start = time.perf_counter()
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if done.returncode != status:
        sys.exit(f"{' '.join(command)} ended with exit status {done.returncode}")
    return time.perf_counter() - start


def compared(ours: list[float], theirs: list[float]) -> str:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return (
        f"{statistics.median(ours):.2f} s | {statistics.median(theirs):.2f} s | "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def start(project: Path, repeats: int) -> None:
    commands = {
        "`train.py --help`": (0, "train.py", "--help"),
        "`train.py --cfg job`": (0, "train.py", "--cfg", "job"),
        "`train.py trainer.max_epoch=1`, a mistake,": (1, "train.py", "trainer.max_epoch=1"),
        "`train.py optimizer=adamm`, a mistake,": (1, "train.py", "optimizer=adamm"),
        "import": (0, "-c", "import lightning.pytorch"),
    }
    for status, *command in commands.values():  # once for the file cache
        run(*command, cwd=project, status=status)
    seconds = {name: [] for name in commands}
    for _ in range(repeats):
        for name, (status, *command) in commands.items():
            seconds[name].append(run(*command, cwd=project, status=status))
    for name in list(commands)[:-1]:
        row = compared(seconds[name], seconds["import"])
        print(f"| {name} against `import lightning.pytorch` | {row} | 0.25 |", flush=True)


def epoch(project: Path, data: Path, repeats: int) -> None:
    for model, batch_size in (("cnn", 256), ("mlp", 256), ("mlp", 128)):
        overrides = ["experiment=mnist", f"model={model}", f"data.batch_size={batch_size}", f"data.root={data}"]
        overrides += ["optimizer=adam", "scheduler=constant"]
        ours, bare = [], []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "seconds.json")
            clock = f"+callbacks.clock={{_target_:epoch_clock.EpochClock,path:{path}}}"
            for repeat in range(repeats):
                here = f"hydra.run.dir={folder}/{repeat}"
                run("train.py", *overrides, "trainer.max_epochs=3", clock, here, cwd=project)
                ours.append(statistics.median(json.loads(path.read_text())))
                run(str(HERE / "bare_loop.py"), str(path), "3", *overrides, cwd=project)
                bare.append(statistics.median(json.loads(path.read_text())))
        row = compared(ours, bare)
        print(f"| an MNIST epoch, {model}, batch {batch_size}, against a bare loop | {row} | 1.6 |", flush=True)


def watched(project: Path, data: Path, repeats: int) -> None:
    """The whole of `train.py experiment=mnist`, with all that is drawn and logged, against the same without."""
    callbacks = ("curves", "run_description", "regression_figures", "classifier_figures")
    unwatched = ["~logger", *(f"callbacks.{name}=null" for name in callbacks)]
    command = ["train.py", "experiment=mnist", f"data.root={data}"]
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        # A small difference of long runs, so more of them, and each goes first as often as the other.
        for repeat in range(3 * repeats):
            here = f"hydra.run.dir={folder}/{repeat}"
            sides = [(ours, [here, "logger=[tensorboard,csv]"]), (theirs, [here + "-unwatched", *unwatched])]
            for seconds, arguments in sides if repeat % 2 else reversed(sides):
                seconds.append(run(*command, *arguments, cwd=project))
    row = compared(ours, theirs)
    print(f"| `train.py experiment=mnist` with all pictures and loggers, against none | {row} | 1.1 |", flush=True)


def accuracy(project: Path, data: Path) -> None:
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(5):
            here = f"hydra.run.dir={folder}/{seed}"
            run("train.py", "experiment=mnist", f"data.root={data}", f"seed={seed}", here, cwd=project)
            results.append(json.loads(Path(folder, str(seed), "results.json").read_text()))
    accuracies = [result["metrics"]["test/acc"] for result in results]
    print(
        f"\n`train.py experiment=mnist`, seeds 0 to 4, {results[0]['epochs']} epochs: test accuracy "
        + ", ".join(f"{100 * value:.2f} %" for value in accuracies)
        + f"; mean {100 * statistics.mean(accuracies):.2f} %, worst {100 * min(accuracies):.2f} % (goal: above 99.0 %);"
        f" {statistics.median(result['seconds'] for result in results):.0f} s each."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, required=True, help="a generated project")
    parser.add_argument("--data", type=Path, help="a folder that has MNIST/raw")
    parser.add_argument("--repeats", type=int, default=3, help="of each pair (default: 3)")
    arguments = parser.parse_args()
    project = arguments.project.resolve()
    has_mnist = arguments.data is not None and (arguments.data / "MNIST/raw/train-images-idx3-ubyte").exists()

    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "hydra-core"))
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    print(f"{machine}, Python {platform.python_version()}, {packages}")
    print(
        "\n| what | ours | theirs | median ratio (range) | goal: at most |\n| --- | --- | --- | --- | --- |", flush=True
    )
    start(project, arguments.repeats)
    if not has_mnist:
        print(f"\nNo MNIST in {arguments.data}: its rows are left out. See --data.")
        return
    watched(project, arguments.data.resolve(), arguments.repeats)
    epoch(project, arguments.data.resolve(), arguments.repeats)
    accuracy(project, arguments.data.resolve())


if __name__ == "__main__":
    main()
