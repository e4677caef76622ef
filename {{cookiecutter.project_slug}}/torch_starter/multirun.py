"""The runs of `python train.py -m …`: each in its folder, and a table at the end."""

import atexit
import contextlib
import logging
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from .comparison.runs import from_results
from .comparison.settings import best_first, differing_keys, group_by
from .comparison.table import Column, print_table, run_columns, tables_of
from .compat import get_job_error
from .explanations import explanation
from .files import read_json, write_json, write_text
from .mistakes import IS_FULL, UserError, printable
from .run_folder import InUse, hold_lock, remove_empty
from .trust import refuse_links

log = logging.getLogger(__name__)


# Where the jobs of a multirun leave how they ended, until it ends.
JOBS = ".jobs"
# Not in the callback, which Hydra sends to the processes of a launcher.
_during_multirun = contextlib.ExitStack()


class Multirun(Callback):
    """Ends `python train.py -m …` with a table of its settings and one of its runs, best first. Hydra calls it.

    A setting is what all runs share that differ in seed and fold alone. The order is that of the metric by which
    best.ckpt is chosen, at that checkpoint. A run that fails leaves its error in its folder, in error.txt, and does not
    keep the others from running; the exit status is then 1.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before Hydra writes: it would turn an exception of a callback into a warning."""
        folder = Path(config.hydra.sweep.dir).resolve()
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        there = (folder / "multirun.yaml").read_bytes() if (folder / "multirun.yaml").exists() else None
        _during_multirun.callback(remove_empty, missing)
        atexit.register(_during_multirun.close)  # where Hydra refuses an override before the first job
        try:
            refuse_links(folder)
            _during_multirun.enter_context(hold_lock(folder))
            _during_multirun.callback(_take_back, folder, there)
        except UserError as mistake:
            sys.exit(printable(str(mistake)))
        shutil.rmtree(folder / JOBS, ignore_errors=True)
        (folder / JOBS).mkdir(parents=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        error = get_job_error(job_return)
        message = explanation(error) if error else None
        if config.hydra.mode != RunMode.MULTIRUN:
            if message and not IS_FULL:
                sys.exit(printable(message))  # Hydra would print a line of its own before it
            return
        run, folder = Path(config.hydra.runtime.output_dir), Path(config.hydra.sweep.dir).resolve()
        short = None
        if error:
            short = message or f"{type(error).__name__}: {error}"
            if isinstance(error, InUse):  # the folder and its log are another run's
                print(printable(short), file=sys.stderr)
            else:
                log.error(short, exc_info=None if message else error)
                write_text(run / "error.txt", short + "\n")
            # Hydra would raise it after the last run, instead of calling on_multirun_end.
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        # In a file, for a launcher may run jobs in other processes.
        job = {"run": os.path.relpath(run, folder), "overrides": list(config.hydra.overrides.task), "error": short}
        write_json(folder / JOBS / f"{config.hydra.job.num}.json", job)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        jobs = [read_json(path) for path in (folder / JOBS).glob("*.json")]
        jobs.sort(key=lambda job: _natural(job["run"]))
        _during_multirun.close()
        for job in jobs:
            job["results"] = (None if job["error"] else read_json(folder / job["run"] / "results.json")) or {}
        _print_tables(folder, jobs)
        print(f"run folders  {folder}")
        if failed := sum(bool(job["error"]) for job in jobs):
            sys.exit(f"{failed} of {len(jobs)} runs failed.")


def _take_back(folder: Path, there: bytes | None) -> None:
    """Removes what only a multirun under way needs; where no job has ended, also what Hydra wrote before the first.

    Args:
        folder: of the multirun.
        there: what multirun.yaml was before; None if it was not there.
    """
    has_run = any((folder / JOBS).glob("*"))
    shutil.rmtree(folder / JOBS, ignore_errors=True)
    if has_run:
        return
    if there is None:
        (folder / "multirun.yaml").unlink(missing_ok=True)
    else:
        (folder / "multirun.yaml").write_bytes(there)


def _natural(name: str) -> list[tuple[int, str]]:
    """By which job 2 comes before job 10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _print_tables(folder: Path, jobs: list[dict[str, Any]]) -> None:
    """Prints the settings and the single runs, best first; then those that failed, with the reason.

    Args:
        folder: of the multirun.
        jobs: each with ``run``, ``overrides``, ``error`` (None if it has none) and ``results``, those of results.json.
    """
    runs = {
        job["run"]: from_results(folder / job["run"], job["results"] or {"metrics": {}, "overrides": job["overrides"]})
        for job in jobs
    }
    keys = differing_keys([*runs.values()])
    ended = [runs[job["run"]] for job in jobs if not job["error"]]
    tables = tables_of(best_first(group_by(ended, keys)), keys, folder) if ended else []
    if failed := {job["run"]: job["error"] for job in jobs if job["error"]}:
        tables.append(
            [*run_columns([runs[run] for run in failed], keys, folder), Column("failed", [*failed.values()], "text")]
        )
    for columns in tables:
        print_table(columns)
