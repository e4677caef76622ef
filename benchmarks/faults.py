"""Measure what an interrupted run loses, with real processes and MNIST, dropout and shuffling.

    python benchmarks/faults.py --project build/my_project --data FOLDER

FOLDER contains MNIST/raw. Every fault occurs at a random moment of the training, and `resume.py` resumes the run. The
final weights, optimizer state and metrics are compared bit for bit with those of an uninterrupted run. Prints a
Markdown table.
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
# One thread: OpenMP's threads busy-wait for each other, which is slow if other programs use the machine.
ENVIRONMENT = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


class Run:
    """Trains in a run folder with one process after another, and counts the faults.

    Args:
        folder: run folder.
        project: folder of the generated project.
        data: folder that contains MNIST/raw.
    """

    epoch_seconds = 0.0

    def __init__(self, folder: Path, project: Path, data: Path) -> None:
        self.folder, self.project = folder, project
        options = ["experiment=mnist", "model=mlp", "model.network.dropout=0.5", f"data.root={data}"]
        options += [f"trainer.max_epochs={EPOCHS}", "trainer.accelerator=cpu", f"hydra.run.dir={folder}"]
        self.command = ["train.py", *options]
        self.faults = self.lost = 0

    def start(self, fault: signal.Signals | None = None, epochs: int = 0, limit: int = 0) -> str:
        """Start or resume the run in a process, and return its output.

        Args:
            fault: signal to send to the process at a random moment.
            epochs: number of epochs before the signal.
            limit: largest size of a file in bytes, if positive.
        """

        def limit_file_size() -> None:
            if limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        process = subprocess.Popen(
            [sys.executable, *self.command],
            cwd=self.project,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=limit_file_size,
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
        """Update ``lost`` with the number of epochs that ended before a fault and were repeated after it.

        Args:
            before: output of the interrupted process.
            after: output of the resuming process.
        """
        ended = [int(number) for number in re.findall(rf"^epoch (\d+)/{EPOCHS}", before, re.MULTILINE)]
        again = re.search(r"resuming after epoch (\d+)", after)
        self.lost = max(self.lost, max(ended, default=0) - (int(again[1]) if again else 0))

    def state(self) -> tuple:
        """Return the final weights and optimizer state by name, and the metrics."""
        last = torch.load(self.folder / "checkpoints/last.ckpt", weights_only=True)
        metrics = json.loads((self.folder / "results.json").read_text())["metrics"]
        optimizer = last["optimizer_states"][0]["state"]
        moments = {f"{i}.{key}": value for i, entry in optimizer.items() for key, value in entry.items()}
        return last["state_dict"] | moments, metrics


def is_same(found: tuple, expected: tuple) -> bool:
    """Return whether two final states are bit-identical."""
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
            verdict = "yes" if is_same(run.state(), expected) else "NO"
            print(f"| {what} | {run.faults} | {run.lost or 'only the current epoch'} | {verdict} |", flush=True)

        print("| fault | times | epochs lost | final state bit-identical |")
        print("| --- | --- | --- | --- |")
        for what, fault, times in (
            ("`kill -9`", signal.SIGKILL, arguments.kills),
            ("Ctrl-C", signal.SIGINT, 3),
            ("SIGTERM, as sent by a scheduler", signal.SIGTERM, 3),
        ):
            run, number = Run(folder / f"{fault.name}0", project, data), 0
            printed = run.start(fault, MOMENTS.randrange(2))
            while run.faults < times:
                again = run.start(fault, MOMENTS.randrange(2))
                run.count_lost(printed, again)
                printed = again
                if (run.folder / "results.json").exists():  # it ended before the signal: start another run
                    assert is_same(run.state(), expected)
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
        report("disk full while writing `last.ckpt` (simulated by a file size limit)", run)

        run = Run(folder / "half", project, data)
        run.start(signal.SIGKILL, 2)
        path = run.folder / "checkpoints/last.ckpt"
        path.write_bytes(path.read_bytes()[: size // 2])
        assert "last.ckpt is damaged" in run.start()
        run.lost = "the epochs since `best.ckpt`, from which it resumes"
        report("`last.ckpt` truncated to half its size", run)

        run = Run(folder / "moved", project, data)
        run.start(signal.SIGKILL, 2)
        run.folder = run.folder.rename(folder / "elsewhere")
        run.command = ["resume.py", str(run.folder)]
        run.start()
        report("`kill -9`, then the folder moved before `resume.py`", run)


if __name__ == "__main__":
    main()
