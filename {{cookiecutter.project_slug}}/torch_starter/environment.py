"""What each start of a run depends on: command, commit, versions and device, in environment.json."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import read_json, write_json
from .project import ROOT

if TYPE_CHECKING:
    from lightning import LightningModule, Trainer


def record(run_dir: str, trainer: "Trainer") -> None:
    """Adds to environment.json, when the training or the test begins, what this start of the run depends on."""
    from lightning.pytorch.callbacks import LambdaCallback

    is_recorded = False

    def write(trainer: "Trainer", model: "LightningModule") -> None:
        nonlocal is_recorded
        if not is_recorded and trainer.is_global_zero:
            path = Path(run_dir, "environment.json")
            write_json(path, [*(read_json(path) or []), _environment(trainer)])
        is_recorded = True

    trainer.callbacks.append(LambdaCallback(on_train_start=write, on_test_start=write))


def commit_of(run_dir: str) -> str | None:
    """The commit of the last start of a run; ``-dirty`` behind it if something was not committed, as Git writes it."""
    starts = read_json(Path(run_dir, "environment.json"))
    git = starts[-1]["git"] if starts else None
    return git["commit"] + ("-dirty" if git["dirty"] else "") if git else None


def _environment(trainer: "Trainer") -> dict[str, Any]:
    import torch

    device = trainer.strategy.root_device
    return {
        "command": shlex.join(["python", *sys.argv]),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git": _git(),
        "python": platform.python_version(),
        "packages": dict(sorted(_packages())),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": trainer.num_devices * trainer.num_nodes,
        "cpu_cores": os.cpu_count(),
        "platform": platform.platform(),
        "host": platform.node(),
    }


def _packages() -> Iterator[tuple[str, str]]:
    """Names and versions of all that is installed."""
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata  # read from its file each time that it is asked for
        yield metadata["Name"], metadata["Version"]


def _git() -> dict[str, Any] | None:
    """Commit of the project, and what is not committed; None if it is in no repository, or git is not there."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace").stdout

    try:
        git("ls-files", "--error-unmatch", "train.py")  # or it only lies within the repository of something else
        commit, status = git("rev-parse", "HEAD").strip(), git("status", "--porcelain")
        return {"commit": commit, "dirty": bool(status), "status": status, "diff": git("diff", "HEAD")}
    except (OSError, subprocess.CalledProcessError):
        return None
