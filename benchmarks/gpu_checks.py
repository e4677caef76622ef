"""Checks of gpu.py: the commands of a generated project on a GPU, each in a separate process."""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from bench import Bench
from torchvision.datasets import MNIST

TIMEOUT = 300  # seconds of a process
ON_THE_CPU = """
import sys, torch
from torch_starter import load_run
from torch_starter.export import write_model
folder, images, output = sys.argv[1:]
assert not torch.cuda.is_available()
run = load_run(folder)
found, trained = run.evaluate()["test/acc"], run.metrics["test/acc"]
assert abs(found - trained) < 0.002, f"test/acc is {found} on the CPU, but {trained} after training"
assert len(run.predict(images)) == 300
from pathlib import Path
write_model(run.model, next(iter(run.data.test_dataloader()))[0], Path(output), "pt2")
"""


def check(bench: Bench, device: str) -> int:
    """Print a line for each command: ok or FAILED, its seconds, and the last lines of its errors.

    Args:
        bench: names the project, the data and the run folders.
        device: "cuda" or "cpu".

    Returns:
        The number of failures.
    """
    trainer = "trainer=gpu" if device == "cuda" else "trainer=cpu"
    # On the CPU, train an eighth of an epoch.
    limits = {"train": "0.125", "val": "4", "test": "8"} if device == "cpu" else {}
    short = ["trainer.max_epochs=1", *(f"trainer.limit_{kind}_batches={limit}" for kind, limit in limits.items())]
    short = [*bench.mnist, *short]
    whole, images = bench.new_run(), write_images(bench)
    killed, predictions = bench.new_run(), bench.folder / "predictions.csv"

    def train(*overrides: str, run: Path | None = None) -> tuple[str, Callable[[], None]]:
        run = run or bench.new_run()
        return " ".join(["train.py", *overrides]), partial(train_run, bench, run, *short, *overrides)

    backend = "nccl" if device == "cuda" else "gloo"
    place = [] if device == "cuda" else ["trainer.accelerator=cpu"]
    ddp = ["trainer=ddp", *place, "trainer.devices=1", f"+trainer.strategy.process_group_backend={backend}"]
    first = [
        train(trainer, run=whole),
        ("train.py, killed after an epoch", partial(kill, bench, killed, *short, trainer, "trainer.max_epochs=5")),
        train(*ddp),
        train(trainer, "trainer.precision=bf16-mixed"),
    ]
    if device == "cuda":
        first.append(train("trainer=fsdp", "trainer.devices=1"))
    exported = str(bench.folder / "model.pt2")
    then = [
        train(trainer, "model.compile=true"),
        ("resume.py, of the killed run", partial(resume_run, bench, killed)),
        ("evaluate.py", partial(process, bench, "evaluate.py", str(whole), "--json")),
        ("predict.py, 300 PNG", partial(predict_images, bench, str(whole), str(images), predictions)),
        ("export.py", partial(process, bench, "export.py", str(whole))),
        (
            "load_run on the CPU: evaluate, predict, export",
            partial(process, bench, "-c", ON_THE_CPU, str(whole), str(images), exported, has_gpu=False),
        ),
    ]
    # One process per four cores.
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 4)) as pool:
        failed = [name for checks in (first, then) for name in pool.map(attempt, checks) if name]
    if device == "cpu":
        print("skipped: trainer=fsdp and NCCL, which need a GPU; DDP ran with gloo")
    return len(failed)


def attempt(named: tuple[str, Callable[[], None]]) -> str | None:
    """Run a named check, print its line, and return its name if it fails."""
    name, action = named
    start, error = time.monotonic(), ""
    try:
        action()
    except Exception as raised:  # a failure must not stop the remaining checks
        error = "\n".join(f"    {line}" for line in (str(raised) or repr(raised)).splitlines()[-15:])
    line = f"{'FAILED' if error else 'ok':<6} {time.monotonic() - start:5.1f} s  {name}"
    print(f"{line}\n{error}" if error else line, flush=True)
    return name if error else None


def process(bench: Bench, *arguments: str, has_gpu: bool = True) -> None:
    """Run a Python process in the project's folder.

    Args:
        bench: names the project.
        *arguments: arguments of the Python interpreter.
        has_gpu: whether the process can see the GPU.

    Raises:
        RuntimeError: If the process fails, with its stderr.
    """
    environment = os.environ | ({} if has_gpu else {"CUDA_VISIBLE_DEVICES": ""})
    command = [sys.executable, *arguments]
    ended = subprocess.run(command, cwd=bench.project, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    if ended.returncode:
        raise RuntimeError(f"{ended.stderr}\nexit status {ended.returncode}")


def train_run(bench: Bench, run: Path, *overrides: str) -> None:
    """Train a run and check its accuracy."""
    process(bench, "train.py", *overrides, f"hydra.run.dir={run}")
    check_accuracy(run)


def resume_run(bench: Bench, run: Path) -> None:
    """Resume a run and check its accuracy."""
    process(bench, "resume.py", str(run), "trainer.max_epochs=5")
    check_accuracy(run)


def check_accuracy(run: Path) -> None:
    """Raise an AssertionError if the test accuracy of a run is at most 0.9."""
    accuracy = json.loads((run / "results.json").read_text())["metrics"]["test/acc"]
    assert accuracy > 0.9, f"test/acc is {accuracy}"


def kill(bench: Bench, run: Path, *overrides: str) -> None:
    """Kill a training process as soon as its first checkpoint exists."""
    errors = bench.folder / "killed.txt"
    with errors.open("w") as file:
        command = [sys.executable, "train.py", *overrides, f"hydra.run.dir={run}"]
        training = subprocess.Popen(command, cwd=bench.project, stdout=subprocess.DEVNULL, stderr=file)
        end = time.monotonic() + TIMEOUT
        while training.poll() is None and time.monotonic() < end and not (run / "checkpoints/last.ckpt").exists():
            time.sleep(0.02)
        status = training.poll()
        training.kill()
        training.wait()
    assert (run / "checkpoints/last.ckpt").exists(), errors.read_text()
    assert status is None, "training ended before it could be killed"


def write_images(bench: Bench) -> Path:
    """Write 300 test images of MNIST as PNG files with their labels in the names, and return their folder."""
    folder = bench.folder / "images"
    folder.mkdir()
    for number, (image, label) in zip(range(300), MNIST(bench.data, train=False), strict=False):
        image.save(folder / f"{number:03}_{label}.png")
    return folder


def predict_images(bench: Bench, run: str, images: str, output: Path) -> None:
    process(bench, "predict.py", run, images, "--output", str(output))
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    right = sum(Path(row["input"]).stem.endswith(f"_{row['label']}") for row in rows)
    assert len(rows) == 300, f"{len(rows)} rows instead of 300"
    assert right > 250, f"only {right} of {len(rows)} predictions are correct"
