"""What is lost when a run is stopped: real processes, the real MNIST, everything that draws random numbers switched on.

    python benchmarks/faults.py --project build/my_project --data FOLDER

FOLDER has MNIST/raw. Every fault comes at a random moment of the training; `resume.py` goes on, and the final
weights, optimizer state and metrics are compared, bit by bit, with those of a run that nothing stopped. Prints a table
in Markdown.
"""

import argparse
import itertools
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

EPOCHS = 5
MOMENTS = random.Random(0)
# One thread, for OpenMP's threads wait for each other actively, and something else may run on this machine.
ENVIRONMENT = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


class Run:
    """A run folder, and the processes that worked on it."""

    epoch_seconds = 0.0

    def __init__(self, folder: Path, project: Path, data: Path) -> None:
        self.folder, self.project = folder, project
        options = ["experiment=mnist", "model=mlp", "model.network.dropout=0.5", f"data.root={data}"]
        options += [f"trainer.max_epochs={EPOCHS}", "trainer.accelerator=cpu", f"hydra.run.dir={folder}"]
        self.command = ["train.py", *options]
        self.faults = self.lost = 0

    def start(self, fault: signal.Signals | None = None, epochs: int = 0, limit: int = 0) -> str:
        """Starts or resumes; sends ``fault`` at a random moment after so many epochs; returns what was printed."""

        def before() -> None:
            if limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        process = subprocess.Popen(
            [sys.executable, *self.command],
            cwd=self.project,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=before,
        )
        lines, marks = [], []
        for line in process.stdout:
            lines.append(line)
            if " parameters | " in line or line.startswith("epoch "):
                marks.append(time.monotonic())
                if fault and len(marks) == epochs + 1:
                    time.sleep(MOMENTS.uniform(0, self.epoch_seconds))
                    process.send_signal(fault)
        if not fault:
            Run.epoch_seconds = (
                min(after - before for before, after in itertools.pairwise(marks[1:])) if marks[2:] else 1
            )
        self.faults += process.wait() in (-signal.SIGKILL, 128 + signal.SIGINT, 128 + signal.SIGTERM)
        self.command = ["resume.py", str(self.folder)]
        return "".join(lines)

    def count_lost(self, before: str, after: str) -> None:
        """Epochs that had ended before a fault and were trained once more after it."""
        ended = [int(number) for number in re.findall(rf"^epoch (\d+)/{EPOCHS}", before, re.MULTILINE)]
        again = re.search(r"resuming after epoch (\d+)", after)
        self.lost = max(self.lost, max(ended, default=0) - (int(again[1]) if again else 0))

    def state(self) -> tuple:
        last = torch.load(self.folder / "checkpoints/last.ckpt", weights_only=True)
        metrics = json.loads((self.folder / "results.json").read_text())["metrics"]
        optimizer = last["optimizer_states"][0]["state"]
        moments = {f"{i}.{key}": value for i, entry in optimizer.items() for key, value in entry.items()}
        return last["state_dict"] | moments, metrics


def same(found: tuple, expected: tuple) -> bool:
    return found[1] == expected[1] and all(found[0][key].equal(value) for key, value in expected[0].items())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--project", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10)
    arguments = parser.parse_args()
    project, data = arguments.project.resolve(), arguments.data.resolve()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = Run(folder / "uninterrupted", project, data)
        reference.start()
        expected = reference.state()
        size = (reference.folder / "checkpoints/last.ckpt").stat().st_size

        def report(what: str, run: Run) -> None:
            verdict = "yes" if same(run.state(), expected) else "NO"
            print(
                f"| {what} | {run.faults} | {run.lost or 'nothing but the epoch under way'} | {verdict} |", flush=True
            )

        print("| what was done to the run | how often | what was lost | final state equal to the bit |")
        print("| --- | --- | --- | --- |")
        for what, fault, times in (
            ("`kill -9`", signal.SIGKILL, arguments.kills),
            ("Ctrl-C", signal.SIGINT, 3),
            ("SIGTERM, as a scheduler sends it", signal.SIGTERM, 3),
        ):
            run, number = Run(folder / f"{fault.name}0", project, data), 0
            printed = run.start(fault, MOMENTS.randrange(2))
            while run.faults < times:
                again = run.start(fault, MOMENTS.randrange(2))
                run.count_lost(printed, again)
                printed = again
                if (run.folder / "results.json").exists():  # it ended before the signal came: another one
                    assert same(run.state(), expected)
                    number += 1
                    other = Run(folder / f"{fault.name}{number}", project, data)
                    other.faults, other.lost, run = run.faults, run.lost, other
                    printed = run.start(fault, MOMENTS.randrange(2))
            run.count_lost(printed, run.start())
            report(what, run)

        run = Run(folder / "full", project, data)
        printed = run.start(signal.SIGKILL, 2)
        run.faults = 0
        for _ in range(3):
            again = run.start(limit=MOMENTS.randrange(size // 4, size))
            assert "could not be written" in again, again
            run.faults += 1
            run.count_lost(printed, again)
        run.count_lost(printed, run.start())
        report("the disk is full in the middle of `last.ckpt` (a limit on the size of files)", run)

        run = Run(folder / "half", project, data)
        run.start(signal.SIGKILL, 2)
        path = run.folder / "checkpoints/last.ckpt"
        path.write_bytes(path.read_bytes()[: size // 2])
        assert "last.ckpt is damaged" in run.start()
        run.lost = "the epochs since `best.ckpt`, which it falls back to"
        report("`last.ckpt` is cut to its half", run)

        run = Run(folder / "moved", project, data)
        run.start(signal.SIGKILL, 2)
        run.folder = run.folder.rename(folder / "elsewhere")
        run.command = ["resume.py", str(run.folder)]
        run.start()
        report("`kill -9`, and the folder was moved before `resume.py`", run)


if __name__ == "__main__":
    main()
