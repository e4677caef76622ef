"""Which run is meant: by its folder, or the latest one beneath `outputs`."""

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
# In OUTPUTS: paths of the runs beneath it, a line each time that one is resumed or ends. See latest_first.
JOURNAL = ".runs"
# How many of the last runs in the journal are looked into, and how many others, before all are.
RECENT, UNKNOWN = 500, 100


def find_folder(run: str | Path, is_usable: Callable[[Path], bool], outputs: Path = OUTPUTS) -> Path:
    """The absolute path of a run folder, or of the latest run beneath ``outputs``.

    Raises:
        Mistake: see ``find``.
    """
    if run != "latest" and not is_run(Path(run)):
        raise UserError(_no_run(str(run)))
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
    latest = next(runs, None)
    if not latest:
        raise UserError(f"There is no run in {outputs.resolve()}. Make one: python train.py")
    for run in itertools.chain([latest], runs):
        if is_usable(run):
            return _checked(run), rest
    raise UserError(
        f"No run in {outputs.resolve()} has a checkpoint; the latest is {latest}. Make one: python train.py"
    )


def is_run(folder: Path) -> bool:
    return (folder / ".hydra/config.yaml").exists()


def find_runs(folder: Path) -> Iterator[Path]:
    """The run folders beneath a folder."""
    return (folder / run for run in _walk(folder, set()))


def latest_first(outputs: Path = OUTPUTS) -> Iterator[Path]:
    """The runs beneath ``outputs``, by when they were started or resumed.

    To look into each of 10,000 folders takes long, and a folder does not show that a file in it is new. So a run is
    noted in a journal when it is resumed or ends, and only the last ones there are looked into at first. The journal
    tells no more than where to look: runs that it does not name are found by listing folders, those that are gone are
    left out, and the files themselves say which run is the latest. If it names too few, all are looked into, and it is
    written anew. It can miss one thing: a run, not among the last ones, whose files were replaced by hand.
    """
    runs = (outputs / run for run in _by_log(outputs))
    return (run for run in runs if is_run(run) and (run / "train.log").exists())


def _by_log(outputs: Path) -> Iterator[str]:
    """The paths beneath ``outputs`` of the runs, the latest first."""

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
    """The paths beneath a folder of the run folders. Into ``known`` ones it does not look, but for known ones there."""
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
        except OSError:  # it is gone, or may not be read
            continue
        if ".hydra" in names and is_run(top / folder):
            found.add(folder)
            # No run is in them, and of thousands of runs they are most of what there is to walk through.
            names = [name for name in names if name not in (".hydra", "checkpoints", "figures")]
        paths = {f"{folder}/{name}" for name in names} if folder else set(names)
        found |= paths & known
        folders |= paths - closed
    return found


def record_in_journal(run: Path) -> None:
    """Notes in the journal that a run, an absolute path, is resumed or ends, if it is beneath ``OUTPUTS``."""
    outputs = OUTPUTS.resolve()
    if run.is_relative_to(outputs):
        with contextlib.suppress(OSError), (outputs / JOURNAL).open("ab") as file:
            file.write(os.fsencode(f"{run.relative_to(outputs).as_posix()}\n"))  # whole, for it is one write


def _read_journal(outputs: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return os.fsdecode((outputs / JOURNAL).read_bytes()).split("\n")[:-1]
    return []


def _write_journal(outputs: Path, runs: Sequence[str], since: int) -> None:
    """Writes the journal anew, with what was noted meanwhile after so many lines."""
    with contextlib.suppress(OSError):  # without it, all runs are looked into each time
        text = "\n".join([*runs, *_read_journal(outputs)[since:], ""])
        write_bytes(outputs / JOURNAL, os.fsencode(text))


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
            raise UserError(_no_run(word))
    run, overrides = find(words, is_usable)
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            raise UserError(f"{word} is a second run, after {display_path(run)}. Name one.")
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
        raise UserError(_no_run(word))
    if word == "latest" or is_run(path) or is_input or path.is_file():
        return
    if path.is_dir():
        is_mistyped = (path / "checkpoints").is_dir() or any(is_run(f) for p in ("*", "*/*") for f in path.glob(p))
    else:  # beside runs, or without an ending: a run is seldom called x.jpg
        is_beside_runs = path.parent != Path() and any(map(is_run, path.parent.glob("*")))
        is_mistyped = is_beside_runs or not re.search(r"\.[A-Za-z]\w*$", path.name)
    if is_mistyped:
        raise UserError(_no_run(word))


def _run_around(path: Path) -> Path | None:
    """The run whose folder of checkpoints, or a file in it, is ``path``."""
    folders = (folder for folder in (path, *path.parents) if folder.name == "checkpoints")
    return next((folder.parent for folder in folders if is_run(folder.parent)), None)


def _no_run(word: str) -> str:
    """That a folder is no run, and which one may be meant."""
    path, latest = Path(word), list(latest_first())
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
