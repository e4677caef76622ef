"""Write files atomically, and format paths for messages."""

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
    """Yield a temporary path to write to, which then replaces ``path``.

    ``path`` stays unchanged if the process is killed or an exception is raised.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a binary file atomically."""
    with replace_atomically(path) as unfinished:
        unfinished.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with replace_atomically(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; NaN and infinity become null."""
    write_text(path, to_json(value) + "\n")


def to_json(value: Any) -> str:
    """Return ``value`` as JSON; NaN and infinity, which JSON does not have, become null."""
    return json.dumps(_replace_non_finite(value), indent=2, allow_nan=False)


def _replace_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replace_non_finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_non_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None if the file does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def display_path(folder: str | Path) -> Path:
    """Return the path of a folder for messages: relative if it is inside the current folder, otherwise absolute."""
    folder = Path(folder).resolve()
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def create_parent_folder(path: Path, option: str = "--output") -> None:
    """Create the folder of an output file and check that it is writable, before any work is done.

    Args:
        path: The output file.
        option: The option that sets it, for the message.

    Raises:
        UserError: If the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent, suffix=path.name):
            pass
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written: {error.strerror}. Choose another path.") from None
