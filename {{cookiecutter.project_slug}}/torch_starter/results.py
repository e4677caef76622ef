"""What a run ends with: results.json, and the lines of its report."""

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
    """Writes results.json, and returns what is in it.

    Args:
        run_dir: the run folder.
        trainer: after fit and test.
        metrics: numbers or tensors of one element, by name.
        seconds: wall time since the run was started or resumed.
    """
    checkpoint: Any = trainer.checkpoint_callback
    best = getattr(checkpoint, "best_model_path", "")
    score = getattr(checkpoint, "best_model_score", None)
    results = {
        "metrics": {name: float(value) for name, value in sorted(metrics.items())},
        # What best.ckpt was chosen by, and is the best of.
        "monitored": None
        if score is None
        else {"metric": checkpoint.monitor, "mode": checkpoint.mode, "value": float(score)},
        # Relative to the run folder, which may be moved.
        "best_checkpoint": Path(os.path.relpath(best, run_dir)).as_posix() if best else None,
        # Without one that was cut short.
        "epochs": trainer.current_epoch - (trainer.current_epoch > 0 and not trainer.is_last_batch),
        "steps": trainer.global_step,
        "seconds": round(seconds, 1),
        "overrides": read_overrides(Path(run_dir)),
        # What a comparison of many runs would otherwise read from several files of each.
        "choices": read_choices(Path(run_dir)),
        "hyperparameters": read_hyperparameters(Path(run_dir)),
        "commit": environment.commit_of(run_dir),
    }
    write_json(Path(run_dir, "results.json"), results)
    Path(run_dir, "error.txt").unlink(missing_ok=True)  # of an earlier start
    return results


def final_metrics(results: dict[str, Any]) -> dict[str, float]:
    """The test metrics in results.json, without the entries of one that has several, such as test/confusion/cat/dog."""
    metrics = results.get("metrics", {})
    return {name: value for name, value in metrics.items() if re.fullmatch(r"test/[^/]+", name)}


def report(run_dir: str, results: dict[str, Any]) -> str:
    """The lines that end a run: its test metrics, its folder, and what to type next."""
    folder = display_path(run_dir)
    # The folder that all runs are in, unless the run is elsewhere or right here.
    log_dir = folder if folder.is_absolute() or not folder.parts else folder.parts[0]
    tests = {name: f"{value:.4f}" for name, value in final_metrics(results).items()}
    lines = {
        **tests,
        "epochs": results["epochs"],
        "seconds": results["seconds"],
        "run folder": folder,
        **({"figures": folder / "figures"} if Path(run_dir, "figures").exists() else {}),
        "look at it": f"tensorboard --logdir {log_dir}",
        **(
            {"predict": f"python predict.py {'latest' if folder.parts[:1] == ('outputs',) else folder} INPUT…"}
            if has_checkpoint(Path(run_dir))
            else {"checkpoints": "none: no epoch has ended"}
        ),
        "vary it": "python train.py --help",
    }
    return "\n".join(f"{name:<15} {value}" for name, value in lines.items())
