"""In what runs differ, which of them differ in nothing but chance, and which are best."""

import math
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..mistakes import UserError, nearest
from ..results import final_metrics
from .runs import MEASURES, FinishedRun, parse

# What results are averaged over.
AVERAGED = ("seed", "data.fold")
# Where a run is, where its data are, and how it is watched: no settings.
NO_SETTINGS = ("ckpt_path", "run_dir", "data.root", "trainer.default_root_dir", "logger", "metrics")
# In place of a value that a run does not have.
NO_VALUE = "-"

Group = list[FinishedRun]


def differing_keys(runs: Sequence[FinishedRun]) -> list[str]:
    """The groups and keys in which runs differ, without what results are averaged over.

    First those that were typed for any of the runs; then, where a config file was changed in between, as many of the
    others as are needed to tell apart what differs.
    """
    typed = dict.fromkeys(key for run in runs for key in run.typed)
    keys = [key for key in typed if is_setting(key) and len({value_of(run, key) for run in runs}) > 1]
    groups = group_by(runs, keys)
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        if key in typed or not is_setting(key):
            continue
        # A run from before there was such a key says nothing about it.
        if any(len({run.settings[key] for run in group if key in run.settings}) > 1 for group in groups):
            keys.append(key)
            groups = group_by(runs, keys)
    return keys


def is_setting(key: str) -> bool:
    is_watched = key.startswith(("hydra.", "hydra/", "logger.", "metrics.")) or key.endswith("_figures")
    return key not in (*AVERAGED, *NO_SETTINGS) and not is_watched


def value_of(run: FinishedRun, key: str) -> str:
    return run.settings.get(key, NO_VALUE)


def group_by(runs: Iterable[FinishedRun], keys: Sequence[str]) -> list[Group]:
    """Runs of equal values, in the order in which they come."""
    groups: dict[tuple[str, ...], Group] = {}
    for run in runs:
        groups.setdefault(tuple(value_of(run, key) for key in keys), []).append(run)
    return list(groups.values())


def select(runs: Sequence[FinishedRun], conditions: Sequence[str]) -> list[FinishedRun]:
    """The runs for which each of some ``KEY=VALUE`` holds.

    Raises:
        Mistake: if no run has such a key, or such a value of it.
    """
    selected = list(runs)
    for condition in conditions:
        if "=" not in condition:
            raise UserError(f"--where {condition}: write a key and its value, as in --where optimizer=adam")
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
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def measured(group: Group, name: str) -> list[float]:
    """The values of a metric, or of ``epochs`` or ``seconds``, in those runs that have it."""
    values = [getattr(run, name) if name in MEASURES else run.metrics.get(name) for run in group]
    return [value for value in values if value is not None]


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation, with n - 1."""
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def monitors(runs: Iterable[FinishedRun]) -> dict[str, str]:
    """The metrics that checkpoints are chosen by, each with its mode."""
    return dict(run.monitored for run in runs if run.monitored)


def check_sort(runs: Sequence[FinishedRun], name: str | None) -> None:
    """Raises Mistake if no run has the metric ``name``."""
    if name and not any(measured([run], name) for run in runs):
        names = {*MEASURES, *(metric for run in runs for metric in run.metrics)}
        raise UserError(f"--sort {name}: no run has this metric." + nearest(name, names))


def best_first(groups: Iterable[Group], sort: str | None = None, is_reversed: bool = False) -> list[Group]:
    """Orders groups of runs by the mean of a metric; those without it come last.

    Args:
        groups: of runs, none empty.
        sort: name of a metric, or ``epochs`` or ``seconds``. Larger is better if it is monitored in mode ``max`` by
            any of the runs, or if that holds for ``val/acc`` and it is ``test/acc``; otherwise smaller is. By default
            the metric that is monitored, in its mode.
        is_reversed: whether the order is reversed.
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
        if not name:  # a run whose test has failed comes after one whose test has not
            is_nan = any(math.isnan(value) for run in group for value in run.metrics.values())
            return True, 0, is_nan, 0.0
        return not values, 0 if sort else names.index(name), math.isnan(mean), 0.0 if math.isnan(mean) else sign * mean

    return sorted(groups, key=rank)


def shown_metrics(runs: Iterable[FinishedRun], sort: str | None = None) -> list[str]:
    """The names of the metrics in a table: that of ``--sort``, those that checkpoints are chosen by, and the test's."""
    runs = list(runs)
    tests = sorted({name for run in runs for name in final_metrics({"metrics": run.metrics})})
    chosen = [sort] if sort and sort not in MEASURES else []
    return list(dict.fromkeys([*chosen, *monitors(runs), *tests]))


def count_repeated(groups: Iterable[Group]) -> int:
    """How many runs have both the settings and the seed and fold of another."""
    return sum(len(group) - len({tuple(value_of(run, key) for key in AVERAGED) for run in group}) for group in groups)


def folder_of_all(runs: Iterable[FinishedRun]) -> Path:
    """The deepest folder that all of the runs are in."""
    return Path(os.path.commonpath([run.folder.absolute().parent for run in runs]))
