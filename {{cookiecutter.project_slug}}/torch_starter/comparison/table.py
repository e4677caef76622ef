"""The table of runs: for a terminal of any width, and as a file."""

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

# As many single runs are listed beneath the table of their settings.
FEW = 20
# Of a column, and how narrow it gets at most.
FOLDS, FOLDED = ("name", "text"), 30


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        header: its name.
        cells: a text for each row.
        kind: ``name`` and ``text``, which may be folded; ``setting``, which may be joined with the others; ``number``,
            which may be left out.
    """

    header: str
    cells: list[str]
    kind: str


def setting_columns(groups: Sequence[Group], keys: Sequence[str]) -> list[Column]:
    """A column for each key; numbers with four digits where that tells them apart."""
    columns = []
    for key in keys:
        values = [value_of(group[0], key) for group in groups]
        short = [f"{float(value):.4g}" if is_number(value) and "." in value else value for value in values]
        columns.append(Column(key, short if len(set(short)) == len(set(values)) else values, "setting"))
    return columns


def metric_columns(groups: Sequence[Group], names: Iterable[str]) -> list[Column]:
    """Returns a column per metric: the value of one run, or mean ± sample standard deviation of several runs."""
    return [Column(name, [_mean(measured(group, name), "{:.4f}") for group in groups], "number") for name in names]


def count_columns(groups: Sequence[Group]) -> list[Column]:
    """The number of runs of each group; no column where each is a single one."""
    counts = [str(len(group)) for group in groups]
    return [Column("n", counts, "number")] if {*counts} - {"1"} else []


def measure_columns(groups: Sequence[Group]) -> list[Column]:
    """Epochs, seconds and, if there are several, the commit."""
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
    """One table of the settings, if any has several runs; one of the single runs, if they are few or the only one.

    Args:
        groups: the runs of each setting, best first.
        keys: in which the settings differ.
        folder: in which all runs are; they are named by their paths from there.
        sort: see ``best_first``, likewise ``is_reversed``.
    """
    singles = best_first([[run] for group in groups for run in group], sort, is_reversed)
    runs = [run for (run,) in singles]
    metrics, tables = shown_metrics(runs, sort), []
    if counts := count_columns(groups):
        settings = setting_columns(groups, keys)
        tables.append([*settings, *counts, *metric_columns(groups, metrics), *measure_columns(groups)])
    if not counts or len(runs) <= FEW:
        columns = run_columns(runs, keys, folder)
        tables.append([*columns, *metric_columns(singles, metrics), *measure_columns(singles)])
    return tables


def run_columns(runs: Sequence[FinishedRun], keys: Sequence[str], folder: Path) -> list[Column]:
    """The paths of single runs from a folder, in what they differ, their seeds and folds."""
    paths = [os.path.relpath(run.folder, folder) for run in runs]
    averaged = [key for key in AVERAGED if len({value_of(run, key) for run in runs}) > 1]
    return [Column("run", paths, "name"), *setting_columns([[run] for run in runs], [*keys, *averaged])]


def print_table(columns: Sequence[Column]) -> None:
    """Prints a table that fits into the terminal.

    Where it is too wide, the settings become one column of ``key=value``, if that is narrower; then columns of numbers
    are left out, from the right, and named below it.
    """
    import rich.console

    console = rich.get_console()
    width = console.width if console.is_terminal else max(console.width, 160)  # a file or a pipe has no width
    columns, left_out = _fit(columns, width)
    rich.console.Console(width=width).print(as_rich(columns))
    if left_out:
        print(textwrap.fill(printable(f"hidden, because the terminal is too narrow: {', '.join(left_out)}"), width))


def _fit(columns: Sequence[Column], width: int) -> tuple[list[Column], list[str]]:
    """The columns that fit into ``width``, and the headers of those that do not."""
    fitting, left_out = list(columns), []
    if _width(fitting) > width:
        fitting = min(fitting, _joined(fitting), key=_width)
    numbers = [column for column in fitting if column.kind == "number" and column.header != "n"]
    for column in numbers[:0:-1]:  # the first one stays
        if _width(fitting) > width:
            fitting.remove(column)
            left_out.insert(0, column.header)
    return fitting, left_out


def _width(columns: Sequence[Column]) -> int:
    """In characters, once all text is folded."""
    from rich.cells import cell_len

    headers = _headers(columns)
    widths = [(c, max(map(cell_len, (header, *c.cells)))) for c, header in zip(columns, headers, strict=True)]
    # Three between two columns, two before the first and after the last.
    return sum(min(width, FOLDED) if column.kind in FOLDS else width for column, width in widths) + 3 * len(columns) + 1


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
    """Without the groups before the last dot, where that is clear."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    return [key.rpartition(".")[2] if last[key.rpartition(".")[2]] == 1 else key for key in keys]


def _headers(columns: Sequence[Column]) -> list[str]:
    """The names of columns, those of settings short."""
    short = short_names([column.header for column in columns])
    return [name if column.kind == "setting" else column.header for column, name in zip(columns, short, strict=True)]


def as_rich(columns: Sequence[Column]) -> "Table":
    """The table that rich prints."""
    import rich.box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=rich.box.SIMPLE)
    for column, header in zip(columns, _headers(columns), strict=True):
        side: Any = "right" if column.kind == "number" else "left"
        table.add_column(Text(printable(header)), no_wrap=column.kind not in FOLDS, justify=side, overflow="fold")
    for row in zip(*(column.cells for column in columns), strict=True):
        # Not as markup, which would take the brackets of a list for a style.
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def as_markdown(columns: Sequence[Column]) -> str:
    rule = ["---:" if column.kind == "number" else "---" for column in columns]
    rows = [_headers(columns), rule, *zip(*(column.cells for column in columns), strict=True)]
    lines = [" | ".join(" ".join(printable(cell).replace("|", "\\|").split()) for cell in row) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def remarks(found: Found, groups: Sequence[Group], count: int, folder: Path) -> str:
    """What stands below the tables: what is not in them, and where the runs are.

    Args:
        found: what there is.
        groups: the runs of each setting, best first.
        count: how many of them are shown.
        folder: in which those runs are.
    """
    lines = [f"and {len(groups) - count} more settings: --best {len(groups)}"] if count < len(groups) else []
    if repeated := count_repeated(groups[:count]):
        lines.append(f"runs that repeat the setting and the seed of another, and count as runs: {repeated}")
    if found.unfinished:
        lines.append(f"runs that are not finished, and left out: {found.unfinished}")
    return "\n".join([*lines, *found.damaged, f"run folders  {display_path(folder)}"])


def refuse_output(path: Path | None, endings: Sequence[str], option: str) -> None:
    """Raises Mistake if a file of such a name is not one of those that can be written, before the work."""
    if path is None:
        return
    if path.suffix not in endings:
        raise UserError(f"{option} {path}: the name must end in {' or '.join(endings)}.")
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder. Name a file in it.")
    create_parent_folder(path, option)


def write_table(path: Path, runs: Sequence[FinishedRun], tables: Sequence[Sequence[Column]]) -> None:
    """Writes a row for each run, with all its settings and metrics, as CSV or JSON; or the tables, as Markdown."""
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
    """A setting as JSON has it: a number, true, false, null, a list; or a text."""
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
