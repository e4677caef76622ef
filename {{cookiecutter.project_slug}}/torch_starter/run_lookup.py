"""Which run is meant: by its folder, or the latest one beneath `outputs`."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .files import shown
from .mistakes import Mistake, close_to
from .trust import refuse_links

OUTPUTS = Path("outputs")


def find_folder(run: str | Path, is_usable: Callable[[Path], bool], outputs: Path = OUTPUTS) -> Path:
    """The absolute path of a run folder, or of the latest run beneath ``outputs``.

    Raises:
        Mistake: see ``find``.
    """
    if run != "latest" and not is_run(Path(run)):
        raise Mistake(_no_run(str(run)))
    return find([str(run)], is_usable, outputs)[0]


def find(words: Sequence[str], is_usable: Callable[[Path], bool], outputs: Path = OUTPUTS) -> tuple[Path, list[str]]:
    """The run folder that ``words`` begin with, or the latest one; and the rest of the words.

    The latest run is the one beneath ``outputs`` that was started or resumed last, of those that can be used.

    Args:
        words: of the command line.
        is_usable: whether a run can be used for what is asked: ``has_checkpoint`` or ``is_resumable``.

    Raises:
        Mistake: if there is no such run, or something in it leads out of it.
    """
    if words and is_run(Path(words[0])):
        return _checked(Path(words[0])), list(words[1:])
    rest = list(words[1:] if words and words[0] == "latest" else words)
    runs = latest_first(outputs)
    if not runs:
        raise Mistake(f"There is no run in {outputs.resolve()}. Make one: python train.py")
    for run in runs:
        if is_usable(run):
            return _checked(run), rest
    raise Mistake(f"No run in {outputs.resolve()} has a checkpoint; the latest is {runs[0]}. Make one: python train.py")


def is_run(folder: Path) -> bool:
    return (folder / ".hydra/config.yaml").exists()


def find_runs(folder: Path) -> Iterator[Path]:
    """The run folders beneath a folder."""
    for path, folders, _ in os.walk(folder):
        if ".hydra" in folders and is_run(Path(path)):
            yield Path(path)
            # No run is in them, and of thousands of runs they are most of what there is to walk through.
            folders[:] = [name for name in folders if name not in (".hydra", "checkpoints", "figures")]


def latest_first(outputs: Path = OUTPUTS) -> list[Path]:
    """The runs beneath ``outputs``, by when they were started or resumed."""
    logs = [run / "train.log" for run in find_runs(outputs) if (run / "train.log").exists()]
    return [path.parent for path in sorted(logs, key=lambda path: path.stat().st_mtime_ns, reverse=True)]


def has_checkpoint(run: Path) -> bool:
    return any((run / "checkpoints").glob("*.ckpt"))


def is_resumable(run: Path) -> bool:
    """Whether there is something to resume: not in a run that ended without a checkpoint, such as a fast_dev_run."""
    return has_checkpoint(run) or not (run / "results.json").exists()


def _checked(folder: Path) -> Path:
    """Returns the absolute path of a run folder that nothing leads out of, see ``refuse_links``."""
    refuse_links(folder)
    return folder.resolve()


def find_with_overrides(words: Sequence[str], is_usable: Callable[[Path], bool]) -> tuple[Path, list[str]]:
    """As ``find``, where nothing but overrides may follow.

    Raises:
        Mistake: if a word is neither a run folder in the first place nor ``key=value``.
    """
    for word in words:
        if "=" not in word and not word.startswith("~") and word != "latest" and not is_run(Path(word)):
            raise Mistake(_no_run(word))
    run, overrides = find(words, is_usable)
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            raise Mistake(f"{word} is a second run, after {shown(run)}. Name one.")
    return run, overrides


def refuse_mistyped(word: str, is_input: bool) -> None:
    """Refuses what stands where a run may stand, and is neither a run nor an input.

    Args:
        word: the first one of a command line that may begin with a run and goes on with inputs.
        is_input: whether it is an input for sure, such as a number.

    Raises:
        Mistake: if it is a folder of runs, or nothing that there is; it names the nearest run.
    """
    path = Path(word)
    if _run_around(path):
        raise Mistake(_no_run(word))
    if word == "latest" or is_run(path) or is_input or path.is_file():
        return
    if path.is_dir():
        is_mistyped = (path / "checkpoints").is_dir() or any(is_run(f) for p in ("*", "*/*") for f in path.glob(p))
    else:  # beside runs, or without an ending: a run is seldom called x.jpg
        is_beside_runs = path.parent != Path() and any(map(is_run, path.parent.glob("*")))
        is_mistyped = is_beside_runs or not re.search(r"\.[A-Za-z]\w*$", path.name)
    if is_mistyped:
        raise Mistake(_no_run(word))


def _run_around(path: Path) -> Path | None:
    """The run whose folder of checkpoints, or a file in it, is ``path``."""
    folders = (folder for folder in (path, *path.parents) if folder.name == "checkpoints")
    return next((folder.parent for folder in folders if is_run(folder.parent)), None)


def _no_run(word: str) -> str:
    """That a folder is no run, and which one may be meant."""
    path, latest = Path(word), latest_first()
    if run := _run_around(path):
        name = path.stem if path.suffix == ".ckpt" else "best"
        return f"{word} is in a run folder. Name that: {run} --checkpoint={name}"
    beside = [run for folder in (path, path.parent) for run in folder.glob("*") if is_run(run)]
    near = close_to(word, {"latest", *map(str, (*beside, *latest))})
    return (
        f"{word} is no run folder: there is no {path / '.hydra/config.yaml'}."
        + (f" Did you mean {near[0]}?" if near else "")
        + (f"\nLatest: {latest[0]}" if latest else "")
    )
