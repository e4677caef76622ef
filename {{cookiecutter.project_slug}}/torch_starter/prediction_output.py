"""Where predictions go: rows in a CSV or JSON file, or on the terminal."""

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
    """Whether float reads a word of the command line."""
    try:
        return not math.isnan(float(word))
    except ValueError:
        return False


def hide_numbers(words: Sequence[str]) -> list[str]:
    """The words of a command line, in which a negative number begins with a blank.

    For argparse -1e-3 is an option, and what begins with a blank is none.
    """
    return [f" {word}" if word.startswith("-") and is_number(word) else word for word in words]


def refuse_output(path: Path) -> None:
    """Raises Mistake if the predictions could not be written there, before they are made."""
    if path.suffix not in (".csv", ".json"):
        raise UserError(f"--output {path}: the name must end in .csv or .json.")
    create_parent_folder(path)
    if is_run(path.parent) and path.name in ("results.json", "environment.json", "split.csv"):
        raise UserError(f"--output {path} is a file of the run. Choose another: {path.with_name('predictions.csv')}")
    if path.is_dir():
        raise UserError(f"--output {path} is a folder. Name a file in it: {path / 'predictions.csv'}")


@contextlib.contextmanager
def to_file(path: Path) -> Iterator[Callable[[list[Row]], None]]:
    """Writes rows of equal keys as CSV or JSON, by the name of the file, as they come.

    They go to PATH.part, which takes the name of ``path`` at the end: the named file is whole, or as it was.
    """
    part = path.with_name(f"{path.name}.part")
    count = 0

    def write(rows: list[Row]) -> None:
        nonlocal count
        if path.suffix == ".json":
            for row in rows:
                file.write((",\n" if count else "[\n") + textwrap.indent(to_json(row), "  "))
                count += 1  # at once: an interruption says how many there are
        else:
            writer = csv.DictWriter(file, rows[0] if rows else ["input"], lineterminator="\n")
            if not count:
                writer.writeheader()
            for row in rows:
                writer.writerow(row)
                count += 1
        file.flush()

    # As file names are: not each of them is text.
    with part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        try:
            yield write
        except BaseException:
            print(f"stopped; {count} predictions are in {part}", file=sys.stderr)
            raise
        if path.suffix == ".json":
            file.write("\n]\n" if count else "[]\n")
        elif not count:
            write([])
    os.replace(part, path)
    print(f"{count} predictions in {path}")


@contextlib.contextmanager
def to_terminal(names: Sequence[str], classes: Sequence[str]) -> Iterator[Callable[[list[Row]], None]]:
    """Prints rows of equal keys in columns, as they come."""
    # A single long name is not worth blanks in all other rows.
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
    """A text without what would move the cursor of a terminal, or cannot be encoded."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
