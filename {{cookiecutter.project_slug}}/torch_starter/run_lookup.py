"""Finds run folders by path, or the latest run in `outputs`."""

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path

from .files import display_path, write_bytes
from .mistakes import UserError, close_to
from .trust import refuse_links

OUTPUTS = Path("outputs")
# File in OUTPUTS with the path of a run in each line, added when the run is resumed or ends. See latest_first.
JOURNAL = ".runs"
# Numbers of latest journal entries and of unlisted runs to inspect before all runs are inspected.
RECENT, UNKNOWN = 500, 100


def find_folder(run: str | Path, is_usable: Callable[[Path], bool], outputs: Path = OUTPUTS) -> Path:
    """Return the absolute path of a run folder, or of the latest run in ``outputs``.

    Args:
        run: Path of a run folder, or ``"latest"``.
        is_usable: See ``find``.
        outputs: Folder of all runs.

    Raises:
        UserError: See ``find``.
    """
    if run != "latest" and not is_run(Path(run)):
        raise UserError(_no_run(str(run)))
    return find([str(run)], is_usable, outputs)[0]


def find(words: Sequence[str], is_usable: Callable[[Path], bool], outputs: Path = OUTPUTS) -> tuple[Path, list[str]]:
    """Find the run folder at the start of ``words``, or the latest run.

    The latest run is the usable run in ``outputs`` that was started or resumed last.

    Args:
        words: Command-line arguments.
        is_usable: Returns whether the command can use a run: ``has_checkpoint`` or ``is_resumable``.
        outputs: Folder of all runs.

    Returns:
        The absolute path of the run folder, and the remaining words.

    Raises:
        UserError: If there is no such run, or a link in it points outside.
    """
    if words and is_run(Path(words[0])):
        return _checked(Path(words[0])), list(words[1:])
    rest = list(words[1:] if words and words[0] == "latest" else words)
    runs = latest_first(outputs)
    latest = next(runs, None)
    if not latest:
        raise UserError(f"There is no run in {outputs.resolve()}. Start one: python train.py")
    for run in itertools.chain([latest], runs):
        if is_usable(run):
            return _checked(run), rest
    raise UserError(
        f"No run in {outputs.resolve()} has a checkpoint; the latest is {latest}. Start one: python train.py"
    )


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run folder."""
    return (folder / ".hydra/config.yaml").exists()


def find_runs(folder: Path) -> Iterator[Path]:
    """Yield the run folders in a folder, at any depth."""
    return (folder / run for run in _walk(folder, set()))


def latest_first(outputs: Path = OUTPUTS) -> Iterator[Path]:
    """Yield the runs in ``outputs``, ordered by when they were started or resumed, latest first.

    Inspecting 10,000 folders is slow, and a folder does not show that a file in it is new. A journal therefore records
    each run when it is resumed or ends, and only the latest entries are inspected at first. The journal is only a hint:
    unlisted runs are found by listing folders, missing runs are skipped, and the files themselves decide which run is
    the latest. If too many runs are unlisted, all runs are inspected and the journal is rewritten. The only case that
    is missed is a run, not among the latest entries, whose files were replaced by hand.
    """
    runs = (outputs / run for run in _by_log(outputs))
    return (run for run in runs if is_run(run) and (run / "train.log").exists())


def _by_log(outputs: Path) -> Iterator[str]:
    """Yield the paths of the runs relative to ``outputs``, latest first."""

    def logged(run: str) -> int:
        try:
            return os.stat(f"{outputs}/{run}/train.log").st_mtime_ns
        except OSError:
            return 0

    lines = _read_journal(outputs)
    noted = dict.fromkeys(reversed(lines))
    runs, first = _walk(outputs, noted.keys()), set()
    unknown = runs.difference(noted)
    if len(unknown) <= UNKNOWN:
        first = unknown.union(itertools.islice(filter(runs.__contains__, noted), RECENT))
        yield from sorted(first, key=logged, reverse=True)
        if len(first) == len(runs):
            return
    in_order = sorted(_walk(outputs, set()), key=logged, reverse=True)
    if len(unknown) > UNKNOWN:
        _write_journal(outputs, in_order[::-1], since=len(lines))
    yield from (run for run in in_order if run not in first)


def _walk(top: Path, known: Set[str]) -> set[str]:
    """Return the paths of run folders relative to ``top``. ``known`` folders are searched only for known folders."""
    around = {path.rpartition("/")[0] for path in known}
    while outer := {path.rpartition("/")[0] for path in around} - around:
        around |= outer
    closed = known - around
    found, folders = set(), {""}
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(top / folder) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:  # missing or not readable
            continue
        if ".hydra" in names and is_run(top / folder):
            found.add(folder)
            # They contain no runs, and are most of the folders in thousands of runs.
            names = [name for name in names if name not in (".hydra", "checkpoints", "figures")]
        paths = {f"{folder}/{name}" for name in names} if folder else set(names)
        found |= paths & known
        folders |= paths - closed
    return found


def record_in_journal(run: Path) -> None:
    """Record in the journal that a run, given as an absolute path, is resumed or ends, if it is in ``OUTPUTS``."""
    outputs = OUTPUTS.resolve()
    if run.is_relative_to(outputs):
        with contextlib.suppress(OSError), (outputs / JOURNAL).open("ab") as file:
            file.write(os.fsencode(f"{run.relative_to(outputs).as_posix()}\n"))  # a single write is atomic


def _read_journal(outputs: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return os.fsdecode((outputs / JOURNAL).read_bytes()).split("\n")[:-1]
    return []


def _write_journal(outputs: Path, runs: Sequence[str], since: int) -> None:
    """Rewrite the journal, and keep lines that were added after the first ``since`` lines."""
    with contextlib.suppress(OSError):  # without it, all runs are inspected each time
        text = "\n".join([*runs, *_read_journal(outputs)[since:], ""])
        write_bytes(outputs / JOURNAL, os.fsencode(text))


def has_checkpoint(run: Path) -> bool:
    """Return whether a run has a checkpoint."""
    return any((run / "checkpoints").glob("*.ckpt"))


def is_resumable(run: Path) -> bool:
    """Return whether a run can be resumed. A run that ended without a checkpoint, such as a fast_dev_run, cannot."""
    return has_checkpoint(run) or not (run / "results.json").exists()


def _checked(folder: Path) -> Path:
    """Return the absolute path of a run folder after ``refuse_links``."""
    refuse_links(folder)
    return folder.resolve()


def find_with_overrides(words: Sequence[str], is_usable: Callable[[Path], bool]) -> tuple[Path, list[str]]:
    """Find a run as ``find`` does, and allow only overrides after it.

    Args:
        words: Command-line arguments.
        is_usable: See ``find``.

    Returns:
        The absolute path of the run folder, and the overrides.

    Raises:
        UserError: If a word is neither a run folder in the first position nor ``key=value``.
    """
    for word in words:
        if "=" not in word and not word.startswith("~") and word != "latest" and not is_run(Path(word)):
            raise UserError(_no_run(word))
    run, overrides = find(words, is_usable)
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            raise UserError(f"{word} is a second run, after {display_path(run)}. Pass only one run.")
    return run, overrides


def refuse_mistyped(word: str, is_input: bool) -> None:
    """Raise UserError if a word in the position of a run is neither a run nor an input.

    Args:
        word: First argument of a command line that may start with a run, followed by inputs.
        is_input: Whether the word is certainly an input, such as a number.

    Raises:
        UserError: If the word is a folder of runs, or does not exist; the message names the nearest run.
    """
    path = Path(word)
    if _run_around(path):
        raise UserError(_no_run(word))
    if word == "latest" or is_run(path) or is_input or path.is_file():
        return
    if path.is_dir():
        is_mistyped = (path / "checkpoints").is_dir() or any(is_run(f) for p in ("*", "*/*") for f in path.glob(p))
    else:  # next to runs, or without a suffix: run folders are rarely named like x.jpg
        is_beside_runs = path.parent != Path() and any(map(is_run, path.parent.glob("*")))
        is_mistyped = is_beside_runs or not re.search(r"\.[A-Za-z]\w*$", path.name)
    if is_mistyped:
        raise UserError(_no_run(word))


def _run_around(path: Path) -> Path | None:
    """Return the run whose checkpoint folder is or contains ``path``."""
    folders = (folder for folder in (path, *path.parents) if folder.name == "checkpoints")
    return next((folder.parent for folder in folders if is_run(folder.parent)), None)


def _no_run(word: str) -> str:
    """Return the message that a word is not a run folder, with the most similar run."""
    path, latest = Path(word), list(latest_first())
    if run := _run_around(path):
        name = path.stem if path.suffix == ".ckpt" else "best"
        return f"{word} is inside a run folder. Pass that: {run} --checkpoint={name}"
    beside = [run for folder in (path, path.parent) for run in folder.glob("*") if is_run(run)]
    near = close_to(word, {"latest", *map(str, (*beside, *latest))})
    return (
        f"{word} is not a run folder: {path / '.hydra/config.yaml'} does not exist."
        + (f" Did you mean {near[0]}?" if near else "")
        + (f"\nLatest: {latest[0]}" if latest else "")
    )
