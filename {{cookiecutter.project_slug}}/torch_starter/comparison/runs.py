"""Finished runs, as a comparison needs them: read from results.json alone, of thousands of runs in seconds."""

import json
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..mistakes import UserError, close_to
from ..run_lookup import OUTPUTS, find_runs

# Of a run, beside its metrics.
MEASURES = ("epochs", "seconds")


class FinishedRun(NamedTuple):
    """A run, and what results.json has of it.

    Attributes:
        folder: of the run.
        typed: the keys and groups of its overrides.
        settings: the value of each group and key, typed or not, as text: ``optimizer`` is ``adam``. Of a run from
            before results.json had them, those that were typed.
        metrics: by name, the last value of each; of the monitored one the best, which is that of best.ckpt.
        monitored: name and mode, ``min`` or ``max``, of the metric that best.ckpt is chosen by; None without it.
        epochs: number of epochs; None if it is not known.
        seconds: wall time since the run was started or resumed; None likewise.
        commit: of the project, with ``-dirty`` behind it if something was not committed; empty if it is not known.
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
    """What lies in some folders.

    Attributes:
        runs: the finished ones.
        unfinished: how many have no results.json.
        damaged: why a results.json could not be read, a line for each.
    """

    runs: list[FinishedRun]
    unfinished: int
    damaged: list[str]


def find_finished(folders: Sequence[str]) -> Found:
    """The runs beneath some folders, or in them; no link is followed.

    Raises:
        Mistake: if one is no folder, or none has a finished run in it.
    """
    runs, unfinished, damaged = [], 0, []
    words = list(folders) or [str(OUTPUTS)]
    for word in words:
        if folders and not Path(word).is_dir():
            near = close_to(word, [str(path) for path in Path(word).parent.glob("*") if path.is_dir()])
            raise UserError(f"{word} is no folder." + "".join(f" Did you mean {name}?" for name in near))
    # Each once, also where one of the folders is in another.
    folders_of_runs = {os.path.realpath(run): run for word in words for run in find_runs(Path(word))}
    for folder in sorted(folders_of_runs.values()):
        path = folder / "results.json"
        try:
            if not stat.S_ISREG(os.lstat(path).st_mode):
                raise ValueError("it is no file")
            runs.append(from_results(folder, json.loads(path.read_bytes())))
        except FileNotFoundError:
            unfinished += 1
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            damaged.append(f"{path} cannot be read and is left out: {type(error).__name__}: {error}")
    if not runs:
        where = " and ".join(words)
        rest = f" Not finished: {unfinished}; go on with one by python resume.py RUN." if unfinished else ""
        raise UserError("\n".join([f"There is no finished run in {where}.{rest} Make one: python train.py", *damaged]))
    return Found(runs, unfinished, damaged)


def from_results(folder: Path, results: dict[str, Any]) -> FinishedRun:
    """A run by what is in its results.json, which may be of an untrusted or an old run.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: if it is not as ``results.save`` writes it.
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
    """Key and value of an override; a value as ``as_text`` has it, whatever form was typed."""
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
    """A value of a key as one types it; equal values are equal texts.

    A number of batches, such as 1, is another value than a share of them, such as 1.0.
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
