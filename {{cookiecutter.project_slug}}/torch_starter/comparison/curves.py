"""Plot the curves of runs in one figure, with a line for each setting: `compare.py --plot`."""

import csv
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import replace_atomically
from ..mistakes import UserError, printable
from ..trust import refuse_links
from .runs import FinishedRun
from .settings import NO_VALUE, Group, deviation, monitors, value_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Number of lines in a figure; more would be hard to distinguish.
MAX_LINES = 8
# Distinguishable without color. The colors are from https://jfly.uni-koeln.de/color/ and also differ in brightness.
STYLES = ["-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 3)), (0, (3, 1, 1, 3))]
COLORS = ["#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f"]


def plotted_metric(runs: Sequence[FinishedRun], sort: str | None) -> str:
    """Return the metric to plot: ``sort`` if it has curves, otherwise the monitored metric.

    Raises:
        UserError: If neither exists.
    """
    names = [sort] if sort and sort.startswith(("train/", "val/")) else list(monitors(runs))
    if not names:
        raise UserError("--plot needs a metric, but no run monitors one. Pass one: --sort train/loss")
    return names[0]


def plot(path: Path, groups: Sequence[Group], keys: Sequence[str], metric: str) -> None:
    """Plot a metric over the epochs: the mean of each setting, with its standard deviation over the runs as a band.

    Args:
        path: The PNG file to write.
        groups: The runs of each setting, best first.
        keys: The keys in which the settings differ.
        metric: Name of the metric, such as ``val/loss``.

    Raises:
        UserError: If no run has a curve of the metric.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    drawn, missing = [], []
    for group in groups:
        curves = {run.folder: read_curve(run.folder, metric) for run in group}
        missing += [folder for folder, curve in curves.items() if not curve]
        if present := [curve for curve in curves.values() if curve]:
            drawn.append((group[0], present))
        if len(drawn) == MAX_LINES:
            break
    for folder in missing:
        print(printable(f"{folder} has no curve of {metric} and is not plotted"))
    if not drawn:
        raise UserError(f"--plot: no run has a curve of {metric}, neither in TensorBoard files nor in a metrics.csv.")
    keys = [key for key in keys if len({value_of(run, key) for run, _ in drawn}) > 1]
    for (run, present), color, style in zip(drawn, COLORS, STYLES, strict=False):
        # Only the epochs that all runs of the setting have: otherwise the mean would jump where a run ends.
        epochs = sorted(set.intersection(*map(set, present)))
        values = [[curve[epoch] for curve in present] for epoch in epochs]
        means = [statistics.fmean(row) for row in values]
        label = _label(run, keys) + (f" ({len(present)} runs)" if len(present) > 1 else "")
        axes.plot(epochs, means, linestyle=style, color=color, label=label, linewidth=1.8)
        if len(present) > 1:
            stds = list(map(deviation, values))
            low = [mean - std for mean, std in zip(means, stds, strict=True)]
            high = [mean + std for mean, std in zip(means, stds, strict=True)]
            axes.fill_between(epochs, low, high, color=color, alpha=0.15, linewidth=0)
    if len(drawn) < len(groups):
        print(f"{path} shows {len(drawn)} of {len(groups)} settings, the best ones with a curve")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(printable(metric))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    _add_legend(figure)
    with replace_atomically(path) as unfinished:
        figure.savefig(unfinished, format="png")


def _label(run: FinishedRun, keys: Sequence[str]) -> str:
    values = {key: value_of(run, key) for key in keys}
    return printable(" ".join(f"{key}={value}" for key, value in values.items() if value != NO_VALUE)) or "all runs"


def _add_legend(figure: "Figure") -> None:
    """Add a legend above the curves, where it hides none of them."""
    labels = [str(line.get_label()) for line in figure.axes[0].lines]
    columns = 2 if len(labels) > 2 and max(map(len, labels)) < 45 else 1
    legend = figure.legend(loc="outside upper left", ncols=columns, frameon=False, fontsize=8, handlelength=4)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a value with dollar signs is not a formula


def read_curve(run: Path, metric: str) -> dict[int, float]:
    """Return the value of a metric after each epoch, counted from 1.

    Reads TensorBoard's event files or, if they lack the metric, the metrics.csv of the CSV logger. The result is empty
    if there is no curve, or a link in the folder leads out of it.
    """
    try:
        refuse_links(run)
    except UserError:
        return {}
    rows = list(_events(run, metric))
    rows = rows or [row for path in sorted(run.rglob("metrics.csv")) for row in _csv(path, metric)]
    return {epoch + 1: value for epoch, value in rows}  # a resumed run replaces what came after its checkpoint


def _events(run: Path, metric: str) -> Iterator[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), {"scalars": 0, "images": 1, "tensors": 1, "histograms": 1}).Reload()
    tags: Any = events.Tags()["scalars"]
    if {"epoch", metric} <= set(tags):
        epochs = {event.step: int(event.value) for event in events.Scalars("epoch")}
        for event in events.Scalars(metric):
            if event.step in epochs:
                yield epochs[event.step], event.value


def _csv(path: Path, metric: str) -> Iterator[tuple[int, float]]:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row.get(metric) and row.get("epoch"):
                yield int(float(row["epoch"])), float(row[metric])
