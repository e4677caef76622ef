"""Read finished runs for a comparison from results.json alone, so that thousands of runs take seconds."""

import json
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..mistakes import UserError, close_to
from ..run_lookup import OUTPUTS, find_runs

# Measures of a run besides its metrics.
MEASURES = ("epochs", "seconds")


class FinishedRun(NamedTuple):
    """A run with the content of its results.json.

    Attributes:
        folder: The run folder.
        typed: The keys and groups of its overrides.
        settings: Maps each group and key, typed or not, to its value as text: ``optimizer`` to ``adam``. For runs from
            before results.json had them, only those that were typed.
        metrics: Maps each metric to its last value, the monitored one to its best, which is the value of best.ckpt.
        monitored: Name and mode, ``min`` or ``max``, of the metric that best.ckpt is chosen by, if there is one.
        epochs: Number of epochs, if known.
        seconds: Wall time since the run was started or resumed, if known.
        commit: The commit of the project, with the suffix ``-dirty`` if there were uncommitted changes; empty if
            unknown.
    """

    folder: Path
    typed: list[str]
    settings: dict[str, str]
    metrics: dict[str, float]
    monitored: tuple[str, str] | None
    epochs: int | None
    seconds: float | None
    commit: str


class Found(NamedTuple):
    """The runs found in some folders.

    Attributes:
        runs: The finished runs.
        unfinished: Number of runs without results.json.
        damaged: A line for each results.json that cannot be read, with the reason.
    """

    runs: list[FinishedRun]
    unfinished: int
    damaged: list[str]


def find_finished(folders: Sequence[str]) -> Found:
    """Return the runs in some folders and their subfolders, without following links.

    Args:
        folders: Paths of folders or runs; ``outputs`` if empty.

    Raises:
        UserError: If one is not a folder, or there is no finished run.
    """
    runs, unfinished, damaged = [], 0, []
    words = list(folders) or [str(OUTPUTS)]
    for word in words:
        if folders and not Path(word).is_dir():
            near = close_to(word, [str(path) for path in Path(word).parent.glob("*") if path.is_dir()])
            raise UserError(f"{word} is not a folder." + "".join(f" Did you mean {name}?" for name in near))
    # Each run once, even if one of the folders is in another.
    folders_of_runs = {os.path.realpath(run): run for word in words for run in find_runs(Path(word))}
    for folder in sorted(folders_of_runs.values()):
        path = folder / "results.json"
        try:
            if not stat.S_ISREG(os.lstat(path).st_mode):
                raise ValueError("it is not a regular file")
            runs.append(from_results(folder, json.loads(path.read_bytes())))
        except FileNotFoundError:
            unfinished += 1
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            damaged.append(f"{path} cannot be read and is skipped: {type(error).__name__}: {error}")
    if not runs:
        where = " and ".join(words)
        rest = f" {unfinished} not finished; resume one: python resume.py RUN." if unfinished else ""
        raise UserError("\n".join([f"There is no finished run in {where}.{rest} Train one: python train.py", *damaged]))
    return Found(runs, unfinished, damaged)


def from_results(folder: Path, results: dict[str, Any]) -> FinishedRun:
    """Return a run from its results.json, which may be of an untrusted or an old run.

    Args:
        folder: The run folder.
        results: The content of its results.json.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: If it has another form than ``results.save`` writes.
    """
    typed = dict(map(parse, results["overrides"]))
    settings = typed | {
        key: as_text(key, value)
        for key, value in (results.get("hyperparameters", {}) | results.get("choices", {})).items()
    }
    best = results.get("monitored")
    metrics = {name: _number(value) for name, value in results["metrics"].items()}
    metrics |= {best["metric"]: _number(best["value"])} if best else {}
    epochs, seconds = results.get("epochs"), results.get("seconds")
    return FinishedRun(
        folder,
        list(typed),
        settings,
        metrics,
        (str(best["metric"]), "max" if best["mode"] == "max" else "min") if best else None,
        None if epochs is None else int(epochs),
        None if seconds is None else float(seconds),
        str(results.get("commit") or ""),
    )


def parse(override: str) -> tuple[str, str]:
    """Return key and value of an override. The value is normalized by ``as_text``."""
    key, _, value = override.lstrip("+").partition("=")
    if key.startswith("~"):
        return key.lstrip("~"), "null"
    for kind in (int, float):
        try:
            return key, as_text(key, kind(value))
        except ValueError:
            pass
    return key, as_text(key, value.strip("'\""))


def as_text(key: str, value: Any) -> str:
    """Return a value as it would be typed, so that equal values have equal texts.

    A number of batches, such as 1, differs from a share of them, such as 1.0.
    """
    text = str(value)
    if isinstance(value, bool) or text in ("True", "False"):
        return text.lower()
    if value is None or text in ("None", "null"):
        return "null"
    is_count_or_share = key.endswith("_batches") or key == "trainer.val_check_interval"
    if isinstance(value, float) and not is_count_or_share:
        return text.removesuffix(".0")
    return text.replace(", ", ",") if text.startswith("[") else text


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)  # JSON has no NaN
