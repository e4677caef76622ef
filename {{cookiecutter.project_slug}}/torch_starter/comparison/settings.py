"""Find the settings in which runs differ, group runs with the same settings, and order them by a metric."""

import math
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..mistakes import UserError, nearest
from ..results import final_metrics
from .runs import MEASURES, FinishedRun, parse

# Keys that results are averaged over.
AVERAGED = ("seed", "data.fold")
# Keys that are not settings: where a run and its data are, and how it is logged.
NO_SETTINGS = ("ckpt_path", "run_dir", "data.root", "trainer.default_root_dir", "logger", "metrics")
# Shown in place of a value that a run does not have.
NO_VALUE = "-"

Group = list[FinishedRun]


def differing_keys(runs: Sequence[FinishedRun]) -> list[str]:
    """Return the groups and keys in which runs differ, except those that results are averaged over.

    The keys that were typed for any of the runs come first; then, if a config file was changed between runs, as many
    other keys as are needed to distinguish them.
    """
    typed = dict.fromkeys(key for run in runs for key in run.typed)
    keys = [key for key in typed if is_setting(key) and len({value_of(run, key) for run in runs}) > 1]
    groups = group_by(runs, keys)
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        if key in typed or not is_setting(key):
            continue
        # A run from before this key existed has no value for it.
        if any(len({run.settings[key] for run in group if key in run.settings}) > 1 for group in groups):
            keys.append(key)
            groups = group_by(runs, keys)
    return keys


def is_setting(key: str) -> bool:
    """Return whether runs are compared by a key, which is false for logging, locations, seeds and folds."""
    is_watched = key.startswith(("hydra.", "hydra/", "logger.", "metrics.")) or key.endswith("_figures")
    return key not in (*AVERAGED, *NO_SETTINGS) and not is_watched


def value_of(run: FinishedRun, key: str) -> str:
    """Return the value of a key as text, or ``NO_VALUE``."""
    return run.settings.get(key, NO_VALUE)


def group_by(runs: Iterable[FinishedRun], keys: Sequence[str]) -> list[Group]:
    """Group runs with equal values of ``keys``, in the order of the runs."""
    groups: dict[tuple[str, ...], Group] = {}
    for run in runs:
        groups.setdefault(tuple(value_of(run, key) for key in keys), []).append(run)
    return list(groups.values())


def select(runs: Sequence[FinishedRun], conditions: Sequence[str]) -> list[FinishedRun]:
    """Return the runs that match all conditions ``KEY=VALUE``.

    Raises:
        UserError: If a condition is not of this form, no run has its key or value, or no run matches all of them.
    """
    selected = list(runs)
    for condition in conditions:
        if "=" not in condition:
            raise UserError(f"--where is {condition}; it must be a key and a value, for example --where optimizer=adam")
        key, value = parse(condition)
        values = {run.settings[key] for run in runs if key in run.settings}
        if not values:
            keys = {name for run in runs for name in run.settings}
            raise UserError(f"--where {condition}: no run has the key {key}." + nearest(key, keys))
        if value not in values:
            raise UserError(f"--where {condition}: no run has this value." + nearest(value, values))
        selected = [run for run in selected if run.settings.get(key) == value]
    if not selected:
        raise UserError(f"No run matches all of {' '.join(conditions)}. Remove a condition.")
    return selected


def is_number(text: str) -> bool:
    """Return whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def measured(group: Group, name: str) -> list[float]:
    """Return the values of a metric, ``epochs`` or ``seconds`` of the runs that have it."""
    values = [getattr(run, name) if name in MEASURES else run.metrics.get(name) for run in group]
    return [value for value in values if value is not None]


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation, with n - 1."""
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def monitors(runs: Iterable[FinishedRun]) -> dict[str, str]:
    """Return the metrics that checkpoints are chosen by, mapped to their modes."""
    return dict(run.monitored for run in runs if run.monitored)


def check_sort(runs: Sequence[FinishedRun], name: str | None) -> None:
    """Raise UserError if no run has the metric ``name``."""
    if name and not any(measured([run], name) for run in runs):
        names = {*MEASURES, *(metric for run in runs for metric in run.metrics)}
        raise UserError(f"--sort {name}: no run has this metric." + nearest(name, names))


def best_first(groups: Iterable[Group], sort: str | None = None, is_reversed: bool = False) -> list[Group]:
    """Return groups of runs ordered by the mean of a metric; groups without it come last.

    Args:
        groups: Groups of runs, none empty.
        sort: Name of a metric, ``epochs`` or ``seconds``. Larger is better if any of the runs monitors the metric in
            mode ``max``; ``test/acc`` and ``train/acc`` have the mode of ``val/acc``. Otherwise smaller is better.
            The default is the monitored metric, in its mode.
        is_reversed: Whether to reverse the order.
    """
    groups = list(groups)
    modes = monitors(run for group in groups for run in group)
    names = list(modes)

    def rank(group: Group) -> tuple[bool, int, bool, float]:
        name = sort or next(iter(monitors(group)), "")
        values = measured(group, name)
        mean = statistics.fmean(values) if values else math.nan
        mode = modes.get(name) or modes.get(name.replace("test/", "val/").replace("train/", "val/"))
        sign = -1 if (mode == "max") != is_reversed else 1
        if not name:  # a run with NaN in its metrics comes after the others
            is_nan = any(math.isnan(value) for run in group for value in run.metrics.values())
            return True, 0, is_nan, 0.0
        return not values, 0 if sort else names.index(name), math.isnan(mean), 0.0 if math.isnan(mean) else sign * mean

    return sorted(groups, key=rank)


def shown_metrics(runs: Iterable[FinishedRun], sort: str | None = None) -> list[str]:
    """Return the metrics of a table: ``sort``, those that checkpoints are chosen by, and the test metrics."""
    runs = list(runs)
    tests = sorted({name for run in runs for name in final_metrics({"metrics": run.metrics})})
    chosen = [sort] if sort and sort not in MEASURES else []
    return list(dict.fromkeys([*chosen, *monitors(runs), *tests]))


def count_repeated(groups: Iterable[Group]) -> int:
    """Return the number of runs with the same settings, seed and fold as another run."""
    return sum(len(group) - len({tuple(value_of(run, key) for key in AVERAGED) for run in group}) for group in groups)


def folder_of_all(runs: Iterable[FinishedRun]) -> Path:
    """Return the deepest folder that contains all runs."""
    return Path(os.path.commonpath([run.folder.absolute().parent for run in runs]))
