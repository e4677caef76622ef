"""Writes results.json and formats the final report of a run."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import environment
from .files import display_path, write_json
from .run_lookup import has_checkpoint
from .saved_config import read_choices, read_hyperparameters, read_overrides

if TYPE_CHECKING:
    from lightning import Trainer


def save(run_dir: str, trainer: "Trainer", metrics: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Write results.json and return its contents.

    Args:
        run_dir: Run folder.
        trainer: Trainer, after fit and test.
        metrics: Numbers or one-element tensors, by name.
        seconds: Wall time in seconds since the run was started or resumed.
    """
    checkpoint: Any = trainer.checkpoint_callback
    best = getattr(checkpoint, "best_model_path", "")
    score = getattr(checkpoint, "best_model_score", None)
    results = {
        "metrics": {name: float(value) for name, value in sorted(metrics.items())},
        # The metric that selected best.ckpt.
        "monitored": None
        if score is None
        else {"metric": checkpoint.monitor, "mode": checkpoint.mode, "value": float(score)},
        # Relative, because the run folder may be moved.
        "best_checkpoint": Path(os.path.relpath(best, run_dir)).as_posix() if best else None,
        # Without an incomplete epoch.
        "epochs": trainer.current_epoch - (trainer.current_epoch > 0 and not trainer.is_last_batch),
        "steps": trainer.global_step,
        "seconds": round(seconds, 1),
        "overrides": read_overrides(Path(run_dir)),
        # Stored here so that comparing many runs reads one file per run.
        "choices": read_choices(Path(run_dir)),
        "hyperparameters": read_hyperparameters(Path(run_dir)),
        "commit": environment.commit_of(run_dir),
    }
    write_json(Path(run_dir, "results.json"), results)
    Path(run_dir, "error.txt").unlink(missing_ok=True)  # of an earlier start
    return results


def final_metrics(results: dict[str, Any]) -> dict[str, float]:
    """Return the test metrics in results.json, without entries of multi-valued metrics such as test/confusion/cat/dog.

    Args:
        results: Contents of results.json.
    """
    metrics = results.get("metrics", {})
    return {name: value for name, value in metrics.items() if re.fullmatch(r"test/[^/]+", name)}


def report(run_dir: str, results: dict[str, Any]) -> str:
    """Return the final report of a run: test metrics, run folder, and commands to try next.

    Args:
        run_dir: Run folder.
        results: Contents of results.json.
    """
    folder = display_path(run_dir)
    # The folder of all runs, unless the run is elsewhere or in the current folder.
    log_dir = folder if folder.is_absolute() or not folder.parts else folder.parts[0]
    tests = {name: f"{value:.4f}" for name, value in final_metrics(results).items()}
    lines = {
        **tests,
        "epochs": results["epochs"],
        "seconds": results["seconds"],
        "run folder": folder,
        **({"figures": folder / "figures"} if Path(run_dir, "figures").exists() else {}),
        "view": f"tensorboard --logdir {log_dir}",
        **(
            {"predict": f"python predict.py {'latest' if folder.parts[:1] == ('outputs',) else folder} INPUT…"}
            if has_checkpoint(Path(run_dir))
            else {"checkpoints": "none was saved"}
        ),
        "options": "python train.py --help",
    }
    return "\n".join(f"{name:<15} {value}" for name, value in lines.items())
