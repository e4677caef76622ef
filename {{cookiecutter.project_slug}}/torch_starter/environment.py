"""Record command, commit, versions and device of each start of a run in environment.json."""

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
    """Append the environment of this start of the run to environment.json when training or testing begins."""
    from lightning.pytorch.callbacks import LambdaCallback

    is_recorded = False

    def write(trainer: "Trainer", model: "LightningModule") -> None:
        nonlocal is_recorded
        if not is_recorded and trainer.is_global_zero:
            path = Path(run_dir, "environment.json")
            write_json(path, [*(read_json(path) or []), _collect_environment(trainer)])
        is_recorded = True

    trainer.callbacks.append(LambdaCallback(on_train_start=write, on_test_start=write))


def commit_of(run_dir: str) -> str | None:
    """Return the commit of the last start of a run, with ``-dirty`` for uncommitted changes; None if it is unknown."""
    starts = read_json(Path(run_dir, "environment.json"))
    git = starts[-1]["git"] if starts else None
    return git["commit"] + ("-dirty" if git["dirty"] else "") if git else None


def _collect_environment(trainer: "Trainer") -> dict[str, Any]:
    import torch

    device = trainer.strategy.root_device
    return {
        "command": shlex.join(["python", *sys.argv]),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git": _read_git_state(),
        "python": platform.python_version(),
        "packages": dict(sorted(_iterate_packages())),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": trainer.num_devices * trainer.num_nodes,
        "cpu_cores": os.cpu_count(),
        "platform": platform.platform(),
        "host": platform.node(),
    }


def _iterate_packages() -> Iterator[tuple[str, str]]:
    """Yield the name and version of each installed distribution."""
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata  # each access reads its file
        yield metadata["Name"], metadata["Version"]


def _read_git_state() -> dict[str, Any] | None:
    """Return the commit of the project and its uncommitted changes; None outside a repository or without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace").stdout

    try:
        git("ls-files", "--error-unmatch", "train.py")  # fails if the project is only inside another repository
        commit, status = git("rev-parse", "HEAD").strip(), git("status", "--porcelain")
        return {"commit": commit, "dirty": bool(status), "status": status, "diff": git("diff", "HEAD")}
    except (OSError, subprocess.CalledProcessError):
        return None
