"""Open the study of a search: its folder, its journal, and a check that it belongs to the requested search.

outputs/sweeps/STUDY/
├── study.json        the search space and the metric
├── study.log         Optuna's journal: every trial, its parameters, and its metric after each epoch
├── 0/, 1/, …         the run folder of each trial
├── history.png       the metric of each trial, and the best one so far
└── importance.png    the importance of each key
"""

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ..files import write_json
from ..mistakes import UserError
from ..trust import refuse_links

if TYPE_CHECKING:
    from optuna import Study


# Version of study.json. A study with a higher one is from a newer version of this file.
FORMAT = 1


def study_folder(name: str) -> Path:
    """Return the folder of a study.

    Raises:
        UserError: If ``name`` is not a valid folder name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise UserError(
            f"{name} is not a valid study name; use letters, digits, _, - and dots, for example --study first"
        )
    return Path("outputs/sweeps", name)


def open_study(folder: Path, space: dict[str, Any], overrides: list[str], config: DictConfig) -> "Study":
    """Create the study of a folder, or resume it.

    Args:
        folder: The folder of the study.
        space: The search space, see ``read_space``.
        overrides: The overrides that all trials have.
        config: The config of one trial.

    Raises:
        UserError: If Optuna is not installed, or the folder has another study or one that cannot be read.
    """
    try:
        import optuna
        from filelock import FileLock
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise UserError(f'{error}. Install what sweep.py needs: pip install -e ".[sweep]"') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)

    best = config.callbacks.best_checkpoint
    search = {"metric": best.monitor, "mode": best.mode, "overrides": overrides, "space": space}
    path, journal = folder / "study.json", folder / "study.log"
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder)
    # The operating system releases this lock if the process dies, even by kill -9.
    with FileLock(folder / ".lock"):
        if path.exists():
            refuse_another(path, search, optuna.__version__)
        if not journal.exists() and any(folder.glob("[0-9]*")):
            raise UserError(f"{folder} has trials but no study.log. Delete it, or choose another study: --study NAME")
        write_json(path, {"format": FORMAT, "optuna": optuna.__version__, **search})
        lock = FileLock(folder / ".study.log.lock")
        try:
            with lock:
                drop_unfinished_line(journal)
            return optuna.create_study(
                # The locks of filelock have the methods that Optuna calls.
                # pyrefly: ignore[bad-argument-type]
                storage=JournalStorage(JournalFileBackend(str(journal), lock_obj=lock)),
                study_name="sweep",
                direction="minimize" if best.mode == "min" else "maximize",
                pruner=optuna.pruners.MedianPruner(5, n_warmup_steps=max(config.trainer.max_epochs or 0, 0) // 5),
                load_if_exists=True,
            )
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise UserError(
                f"{journal} cannot be read. It is damaged, or from a newer Optuna than {optuna.__version__} "
                f"({type(error).__name__}: {error}).\nStart another study: --study NAME"
            ) from error


def refuse_another(path: Path, search: dict[str, Any], version: str) -> None:
    """Raise UserError if a study is of another search.

    Args:
        path: The study.json of the study.
        search: The metric, mode, overrides and space of this search.
        version: The installed version of Optuna.

    Raises:
        UserError: If it is of another search, with what differs, or it cannot be read.
    """
    remedy = "\nStart another study: --study NAME"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        newer = saved["format"] > FORMAT
        newer_optuna = int(saved["optuna"].partition(".")[0]) > int(version.partition(".")[0])
        differences = list(differences_of({key: saved.get(key) for key in search}, search)) if not newer else []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}{remedy}") from error
    if newer:
        raise UserError(f"{path} has format {saved['format']}, from a newer sweep.py; this one reads {FORMAT}.{remedy}")
    if newer_optuna:
        raise UserError(f"{path} is from Optuna {saved['optuna']}, but {version} is installed. Update it.{remedy}")
    if differences:
        raise UserError(f"{path.parent} is the study of another search:\n" + "\n".join(differences) + remedy)


def differences_of(saved: Any, now: Any, key: str = "") -> Iterator[str]:
    """Yield a line for each key whose saved value differs."""
    if isinstance(saved, dict) and isinstance(now, dict) and "low" not in saved.keys() | now.keys():
        for name in saved | now:
            yield from differences_of(saved.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif saved != now:
        yield f"  {key.removeprefix('space.')}: {json.dumps(saved)} in the study, {json.dumps(now)} now"


def drop_unfinished_line(journal: Path) -> None:
    """Remove an unfinished last line, left by a killed process or a full disk; Optuna would append to it."""
    content = journal.read_bytes() if journal.exists() else b""
    if content and not content.endswith(b"\n"):
        with journal.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
