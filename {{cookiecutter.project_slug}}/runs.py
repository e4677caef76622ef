"""A run folder: what a run leaves in it, and where.

outputs/EXPERIMENT/DATE_TIME/
├── .hydra/                  the composed config and the overrides
├── checkpoints/best.ckpt    best by the monitored validation metric
├── checkpoints/last.ckpt    after the last epoch that ended
├── events.out.tfevents.*    TensorBoard
├── results.json             final metrics by name, best checkpoint, epochs, wall time
└── train.log
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

if TYPE_CHECKING:
    from lightning import Trainer


def claim(run_dir: str, ckpt_path: str | None) -> None:
    """Makes sure that a new run does not overwrite another.

    Args:
        run_dir: the run folder.
        ckpt_path: a checkpoint that the run shall go on from, in whatever folder it is.

    Raises:
        FileExistsError: if the folder holds checkpoints and the run does not go on from one.
    """
    if ckpt_path is None and any(Path(run_dir, "checkpoints").glob("*.ckpt")):
        raise FileExistsError(f"{run_dir} holds the checkpoints of a run: choose another hydra.run.dir.")


def save_results(run_dir: str, trainer: "Trainer", metrics: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Writes results.json, and returns what is in it.

    Args:
        run_dir: the run folder.
        trainer: after fit and test.
        metrics: numbers or tensors of one element, by name.
        seconds: wall time of the run.
    """
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    results = {
        "metrics": {name: float(value) for name, value in sorted(metrics.items())},
        # Relative to the run folder, which may be moved.
        "best_checkpoint": Path(os.path.relpath(best, run_dir)).as_posix() if best else None,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "seconds": round(seconds, 1),
    }
    write_json(Path(run_dir, "results.json"), results)
    return results


def report(run_dir: str, results: dict[str, Any]) -> str:
    """The lines that end a run: its test metrics, its folder, and what to type next."""
    folder, here = Path(run_dir).resolve(), Path.cwd()
    shown = folder.relative_to(here) if folder.is_relative_to(here) else folder
    # The folder that all runs are in, unless the run is elsewhere or right here.
    log_dir = shown if shown.is_absolute() or not shown.parts else shown.parts[0]
    tests = {name: f"{value:.4f}" for name, value in results["metrics"].items() if name.startswith("test/")}
    lines = {
        **tests,
        "epochs": results["epochs"],
        "seconds": results["seconds"],
        "run folder": shown,
        "look at it": f"tensorboard --logdir {log_dir}",
        "vary it": "python train.py --help",
    }
    return "\n".join(f"{name:<15} {value}" for name, value in lines.items())


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is there whole or, if the process is killed before, not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


class MultirunTable(Callback):
    """Ends `python train.py -m …` with its runs and their test metrics, best first. Hydra calls it."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        import rich
        import rich.box
        import rich.markup
        import rich.table

        runs = {}
        for path in Path(config.hydra.sweep.dir).glob("*/results.json"):
            metrics = json.loads(path.read_text(encoding="utf-8"))["metrics"]
            overrides = yaml.safe_load((path.parent / ".hydra/overrides.yaml").read_text(encoding="utf-8"))
            runs[path.parent] = set(overrides), {name: metrics[name] for name in metrics if name.startswith("test/")}
        if not runs:
            return
        shared = set.intersection(*(overrides for overrides, _ in runs.values()))
        names = sorted({name for _, metrics in runs.values() for name in metrics})
        # Accuracy comes before loss in the alphabet, and more of it is better.
        sign = 1 if "loss" in names[0] else -1
        best_first = sorted(runs, key=lambda run: sign * runs[run][1].get(names[0], sign * float("inf")))

        table = rich.table.Table("run", "overrides", *names, box=rich.box.SIMPLE)
        for run in best_first:
            overrides, metrics = runs[run]
            values = [f"{metrics[name]:.4f}" if name in metrics else "" for name in names]
            # Rich would take the brackets of `logger=[csv]` for a style.
            table.add_row(run.name, rich.markup.escape(" ".join(sorted(overrides - shared))), *values)
        rich.print(table)
        print(f"run folders  {config.hydra.sweep.dir}")
