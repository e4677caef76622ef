"""Format the table of runs for a terminal of any width, and write it to files."""

import csv
import io
import json
import os
import statistics
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..files import create_parent_folder, display_path, to_json, write_text
from ..mistakes import UserError, printable
from .runs import MEASURES, FinishedRun, Found
from .settings import (
    AVERAGED,
    NO_VALUE,
    Group,
    best_first,
    count_repeated,
    deviation,
    is_number,
    measured,
    shown_metrics,
    value_of,
)

if TYPE_CHECKING:
    from rich.table import Table

# Single runs are listed below the table of their settings up to this number.
MAX_LISTED_RUNS = 20
# Kinds of columns whose text may be folded, and the width they are folded to.
FOLDED_KINDS, FOLDED_WIDTH = ("name", "text"), 30


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        header: Name of the column.
        cells: The text of each row.
        kind: ``name`` or ``text``, which may be folded; ``setting``, which may be joined with other settings;
            ``number``, which may be hidden.
    """

    header: str
    cells: list[str]
    kind: str


def setting_columns(groups: Sequence[Group], keys: Sequence[str]) -> list[Column]:
    """Return a column for each key. Numbers have four digits if that distinguishes them."""
    columns = []
    for key in keys:
        values = [value_of(group[0], key) for group in groups]
        short = [f"{float(value):.4g}" if is_number(value) and "." in value else value for value in values]
        columns.append(Column(key, short if len(set(short)) == len(set(values)) else values, "setting"))
    return columns


def metric_columns(groups: Sequence[Group], names: Iterable[str]) -> list[Column]:
    """Return a column for each metric: the value of a single run, or the mean ± sample standard deviation over runs."""
    return [Column(name, [_mean(measured(group, name), "{:.4f}") for group in groups], "number") for name in names]


def count_columns(groups: Sequence[Group]) -> list[Column]:
    """Return a column with the number of runs in each group, or none if each has a single run."""
    counts = [str(len(group)) for group in groups]
    return [Column("n", counts, "number")] if {*counts} - {"1"} else []


def measure_columns(groups: Sequence[Group]) -> list[Column]:
    """Return the columns of epochs, seconds and, if commits differ, the commit."""
    epochs = [[f"{value:g}" for value in measured(group, "epochs")] for group in groups]
    ranges = ["-".join(dict.fromkeys((min(e, key=float), max(e, key=float)))) if e else "" for e in epochs]
    seconds = [f"{statistics.fmean(values):.1f}" if (values := measured(group, "seconds")) else "" for group in groups]
    columns = [Column("epochs", ranges, "number"), Column("seconds", seconds, "number")]
    commits = [list(dict.fromkeys(run.commit for run in group)) for group in groups]
    if len({commit for found in commits for commit in found}) > 1:
        columns.append(Column("commit", [_commits(found) for found in commits], "number"))
    return columns


def _commits(commits: Sequence[str]) -> str:
    if len(commits) > 1:
        return f"{len(commits)} commits"
    commit, dash, dirty = commits[0].partition("-")
    return commit[:7] + dash + dirty


def _mean(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    mean = form.format(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {form.format(deviation(values))}"


def tables_of(
    groups: Sequence[Group], keys: Sequence[str], folder: Path, sort: str | None = None, is_reversed: bool = False
) -> list[list[Column]]:
    """Return a table of the settings, if any has several runs, and one of the single runs, if few or the only one.

    Args:
        groups: The runs of each setting, best first.
        keys: The keys in which the settings differ.
        folder: The folder that contains all runs. Runs are named by their paths from there.
        sort: See ``best_first``.
        is_reversed: See ``best_first``.
    """
    singles = best_first([[run] for group in groups for run in group], sort, is_reversed)
    runs = [run for (run,) in singles]
    metrics, tables = shown_metrics(runs, sort), []
    if counts := count_columns(groups):
        settings = setting_columns(groups, keys)
        tables.append([*settings, *counts, *metric_columns(groups, metrics), *measure_columns(groups)])
    if not counts or len(runs) <= MAX_LISTED_RUNS:
        columns = run_columns(runs, keys, folder)
        tables.append([*columns, *metric_columns(singles, metrics), *measure_columns(singles)])
    return tables


def run_columns(runs: Sequence[FinishedRun], keys: Sequence[str], folder: Path) -> list[Column]:
    """Return the columns of single runs: paths relative to ``folder``, the differing keys, seeds and folds."""
    paths = [os.path.relpath(run.folder, folder) for run in runs]
    averaged = [key for key in AVERAGED if len({value_of(run, key) for run in runs}) > 1]
    return [Column("run", paths, "name"), *setting_columns([[run] for run in runs], [*keys, *averaged])]


def print_table(columns: Sequence[Column]) -> None:
    """Print a table that fits into the terminal.

    If it is too wide, the settings are joined into one column of ``key=value``, if that is narrower; then columns of
    numbers are hidden, from the right, and named below the table.
    """
    import rich.console

    console = rich.get_console()
    width = console.width if console.is_terminal else max(console.width, 160)  # a file or a pipe has no width
    columns, hidden = _fit(columns, width)
    rich.console.Console(width=width).print(as_rich(columns))
    if hidden:
        print(textwrap.fill(printable(f"hidden, because the terminal is too narrow: {', '.join(hidden)}"), width))


def _fit(columns: Sequence[Column], width: int) -> tuple[list[Column], list[str]]:
    """Return the columns that fit into ``width``, and the headers of the hidden ones."""
    fitting, hidden = list(columns), []
    if _width(fitting) > width:
        fitting = min(fitting, _joined(fitting), key=_width)
    numbers = [column for column in fitting if column.kind == "number" and column.header != "n"]
    for column in numbers[:0:-1]:  # the first one stays
        if _width(fitting) > width:
            fitting.remove(column)
            hidden.insert(0, column.header)
    return fitting, hidden


def _width(columns: Sequence[Column]) -> int:
    """Return the width of a table in characters, with all text folded."""
    from rich.cells import cell_len

    headers = _headers(columns)
    widths = [(c, max(map(cell_len, (header, *c.cells)))) for c, header in zip(columns, headers, strict=True)]
    # Three characters between two columns, two before the first and after the last.
    return (
        sum(min(width, FOLDED_WIDTH) if column.kind in FOLDED_KINDS else width for column, width in widths)
        + 3 * len(columns)
        + 1
    )


def _joined(columns: Sequence[Column]) -> list[Column]:
    settings = [column for column in columns if column.kind == "setting"]
    if not settings:
        return list(columns)
    rows = zip(*(column.cells for column in settings), strict=True)
    texts = [
        " ".join(f"{c.header}={cell}" for c, cell in zip(settings, row, strict=True) if cell != NO_VALUE) or NO_VALUE
        for row in rows
    ]
    others = [column for column in columns if column.kind != "setting"]
    place = next(index for index, column in enumerate(columns) if column.kind == "setting")
    return [*others[:place], Column("setting", texts, "text"), *others[place:]]


def short_names(keys: Sequence[str]) -> list[str]:
    """Return keys without the part before the last dot, where that is unambiguous."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    return [key.rpartition(".")[2] if last[key.rpartition(".")[2]] == 1 else key for key in keys]


def _headers(columns: Sequence[Column]) -> list[str]:
    """Return the headers of columns, shortened for settings."""
    short = short_names([column.header for column in columns])
    return [name if column.kind == "setting" else column.header for column, name in zip(columns, short, strict=True)]


def as_rich(columns: Sequence[Column]) -> "Table":
    """Return the table for rich to print."""
    import rich.box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=rich.box.SIMPLE)
    for column, header in zip(columns, _headers(columns), strict=True):
        side: Any = "right" if column.kind == "number" else "left"
        table.add_column(
            Text(printable(header)), no_wrap=column.kind not in FOLDED_KINDS, justify=side, overflow="fold"
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        # Not as markup, which would read the brackets of a list as a style.
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def as_markdown(columns: Sequence[Column]) -> str:
    """Return a table in Markdown."""
    rule = ["---:" if column.kind == "number" else "---" for column in columns]
    rows = [_headers(columns), rule, *zip(*(column.cells for column in columns), strict=True)]
    lines = [" | ".join(" ".join(printable(cell).replace("|", "\\|").split()) for cell in row) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def remarks(found: Found, groups: Sequence[Group], count: int, folder: Path) -> str:
    """Return the remarks below the tables: what is not in them, and where the runs are.

    Args:
        found: All runs that were found.
        groups: The runs of each setting, best first.
        count: Number of groups that are shown.
        folder: The folder that contains the shown runs.
    """
    lines = [f"and {len(groups) - count} more settings: --best {len(groups)}"] if count < len(groups) else []
    if repeated := count_repeated(groups[:count]):
        lines.append(f"runs with the same setting and seed as another, counted separately: {repeated}")
    if found.unfinished:
        lines.append(f"unfinished runs, skipped: {found.unfinished}")
    return "\n".join([*lines, *found.damaged, f"run folders  {display_path(folder)}"])


def refuse_output(path: Path | None, endings: Sequence[str], option: str) -> None:
    """Raise UserError if a file cannot be written, before the work is done.

    Args:
        path: The file, if any.
        endings: The supported endings of its name.
        option: The command-line option that names the file.
    """
    if path is None:
        return
    if path.suffix not in endings:
        raise UserError(f"{option} is {path}; its name must end in {' or '.join(endings)}.")
    if path.is_dir():
        raise UserError(f"{option} is {path}, which is a folder. Pass a file in it.")
    create_parent_folder(path, option)


def write_table(path: Path, runs: Sequence[FinishedRun], tables: Sequence[Sequence[Column]]) -> None:
    """Write a file: a row for each run with all settings and metrics as CSV or JSON, or the tables as Markdown.

    Args:
        path: The file to write; its ending selects the format.
        runs: The runs of a CSV or JSON file.
        tables: The tables of a Markdown file.
    """
    if path.suffix == ".md":
        write_text(path, "\n".join(map(as_markdown, tables)))
        return
    rows = [_row(run) for run in runs]
    if path.suffix == ".json":
        for row in rows:
            row["settings"] = {key: _value(text) for key, text in row["settings"].items()}
        write_text(path, to_json(rows) + "\n")
        return
    rows = [row.pop("settings") | row.pop("metrics") | row for row in rows]
    file = io.StringIO()
    names = dict.fromkeys(["run", *(key for row in rows for key in row)])
    writer = csv.DictWriter(file, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, file.getvalue())


def _value(text: str) -> Any:
    """Return a setting as a JSON value: a number, true, false, null or a list, otherwise text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _row(run: FinishedRun) -> dict[str, Any]:
    metric, mode = run.monitored or (None, None)
    return {
        "run": str(run.folder),
        "settings": run.settings,
        "monitored": metric,
        "mode": mode,
        "metrics": run.metrics,
        **{name: getattr(run, name) for name in (*MEASURES, "commit")},
    }
