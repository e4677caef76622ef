"""Writes predictions to a CSV or JSON file, or to the terminal."""

import contextlib
import csv
import math
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .files import create_parent_folder, to_json
from .mistakes import UserError
from .run_lookup import is_run

Row = dict[str, Any]


def is_number(word: str) -> bool:
    """Return whether ``float`` accepts a command-line argument and the result is not NaN."""
    try:
        return not math.isnan(float(word))
    except ValueError:
        return False


def hide_numbers(words: Sequence[str]) -> list[str]:
    """Return command-line arguments with a space before each negative number.

    argparse takes -1e-3 for an option, unless a space precedes it.
    """
    return [f" {word}" if word.startswith("-") and is_number(word) else word for word in words]


def refuse_output(path: Path) -> None:
    """Raise UserError if predictions cannot be written to ``path``; to be called before predicting."""
    if path.suffix not in (".csv", ".json"):
        raise UserError(f"--output is {path}; it must end in .csv or .json.")
    create_parent_folder(path)
    if is_run(path.parent) and path.name in ("results.json", "environment.json", "split.csv"):
        raise UserError(f"--output {path} is a file of the run. Pass another: {path.with_name('predictions.csv')}")
    if path.is_dir():
        raise UserError(f"--output {path} is a folder. Pass a file in it: {path / 'predictions.csv'}")


@contextlib.contextmanager
def to_file(path: Path) -> Iterator[Callable[[list[Row]], None]]:
    """Open a CSV or JSON file, depending on its suffix, to which rows are written as they arrive.

    Rows are written to PATH.part, which is renamed to ``path`` at the end: ``path`` is complete or unchanged.

    Yields:
        A function that writes rows with equal keys.
    """
    part = path.with_name(f"{path.name}.part")
    count = 0

    def write(rows: list[Row]) -> None:
        nonlocal count
        if path.suffix == ".json":
            for row in rows:
                file.write((",\n" if count else "[\n") + textwrap.indent(to_json(row), "  "))
                count += 1  # row by row: the message about an interruption states the count
        else:
            writer = csv.DictWriter(file, rows[0] if rows else ["input"], lineterminator="\n")
            if not count:
                writer.writeheader()
            for row in rows:
                writer.writerow(row)
                count += 1
        file.flush()

    # File names need not be valid text.
    with part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        try:
            yield write
        except BaseException:
            print(f"interrupted; {count} predictions are in {part}", file=sys.stderr)
            raise
        if path.suffix == ".json":
            file.write("\n]\n" if count else "[]\n")
        elif not count:
            write([])
    os.replace(part, path)
    print(f"{count} predictions in {path}")


@contextlib.contextmanager
def to_terminal(names: Sequence[str], classes: Sequence[str]) -> Iterator[Callable[[list[Row]], None]]:
    """Print rows in columns as they arrive.

    Args:
        names: Names of all inputs, for the width of their column.
        classes: Names of all classes, for the width of their column.

    Yields:
        A function that prints rows with equal keys.
    """
    # A single long name should not widen all rows.
    longest = min(60, max((len(_printable(name)) for name in names), default=0))
    widths = {"input": max(longest, len("input")), "label": max((len(_printable(name)) for name in classes), default=5)}
    has_header = False

    def write(rows: list[Row]) -> None:
        nonlocal has_header
        for row in ([] if has_header else [{name: name for name in rows[0]}]) + rows:
            cells = [f"{value:.4f}" if isinstance(value, float) else _printable(str(value)) for value in row.values()]
            first, *others = (
                f"{cell:<{widths.get(name, 11)}}" if name in widths else f"{cell:>11}"
                for name, cell in zip(row, cells, strict=True)
            )
            print("  ".join([first, *others]).rstrip(), flush=True)
        has_header = True

    yield write


def _printable(text: str) -> str:
    """Escape characters that would move the cursor of a terminal or cannot be encoded."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
