"""Files that are whole or as they were, and paths as people type them."""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .mistakes import UserError


@contextlib.contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yields a path to write to, and afterwards puts what was written in the place of ``path``.

    If the process is killed meanwhile, or an exception is raised, ``path`` is as it was.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    with replace_atomically(path) as unfinished:
        unfinished.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    with replace_atomically(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, to_json(value) + "\n")


def to_json(value: Any) -> str:
    """JSON, which has no NaN and no infinity: they become null."""
    return json.dumps(_with_null(value), indent=2, allow_nan=False)


def _with_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_null(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_with_null(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """What is in a JSON file; None if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def display_path(folder: str | Path) -> Path:
    """A folder as somebody would type it: relative where it is beneath the current one."""
    folder = Path(folder).resolve()
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def create_parent_folder(path: Path, option: str = "--output") -> None:
    """Makes sure, before the work, that the file of an ``--output`` can be written.

    Raises:
        Mistake: if it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent, suffix=path.name):
            pass
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written: {error.strerror}. Choose another.") from None
