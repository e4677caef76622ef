"""Run the jobs of `python train.py -m …`, and print a table of their results."""

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


# Jobs of a multirun write their outcome here; removed when the multirun ends.
JOBS = ".jobs"
# Not an attribute of the callback, because Hydra sends the callback to the processes of a launcher.
_during_multirun = contextlib.ExitStack()


class Multirun(Callback):
    """A Hydra callback that prints a table of settings and a table of runs at the end of `python train.py -m …`.

    Runs that differ only in seed and fold have the same setting. The tables are sorted, best first, by the monitored
    metric at best.ckpt. If a run fails, its error is written to error.txt in its folder, the remaining jobs still run,
    and the exit status is 1.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Lock the folder before Hydra writes to it; exit on errors, because Hydra turns exceptions into warnings."""
        folder = Path(config.hydra.sweep.dir).resolve()
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        previous = (folder / "multirun.yaml").read_bytes() if (folder / "multirun.yaml").exists() else None
        _during_multirun.callback(remove_empty, missing)
        atexit.register(_during_multirun.close)  # in case Hydra refuses an override before the first job
        try:
            refuse_links(folder)
            _during_multirun.enter_context(hold_lock(folder))
            _during_multirun.callback(_clean_up, folder, previous)
        except UserError as mistake:
            sys.exit(printable(str(mistake)))
        shutil.rmtree(folder / JOBS, ignore_errors=True)
        (folder / JOBS).mkdir(parents=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        error = get_job_error(job_return)
        message = explanation(error) if error else None
        if config.hydra.mode != RunMode.MULTIRUN:
            if message and not IS_FULL:
                sys.exit(printable(message))  # if raised, Hydra would print an extra line
            return
        run, folder = Path(config.hydra.runtime.output_dir), Path(config.hydra.sweep.dir).resolve()
        short = None
        if error:
            short = message or f"{type(error).__name__}: {error}"
            if isinstance(error, InUse):  # the folder and its log belong to another run
                print(printable(short), file=sys.stderr)
            else:
                log.error(short, exc_info=None if message else error)
                write_text(run / "error.txt", short + "\n")
            # Otherwise Hydra raises it after the last run, instead of calling on_multirun_end.
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        # Written to a file, because a launcher may run jobs in other processes.
        job = {"run": os.path.relpath(run, folder), "overrides": list(config.hydra.overrides.task), "error": short}
        write_json(folder / JOBS / f"{config.hydra.job.num}.json", job)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        jobs = [read_json(path) for path in (folder / JOBS).glob("*.json")]
        jobs.sort(key=lambda job: _natural_sort_key(job["run"]))
        _during_multirun.close()
        for job in jobs:
            job["results"] = (None if job["error"] else read_json(folder / job["run"] / "results.json")) or {}
        _print_tables(folder, jobs)
        print(f"run folders  {folder}")
        if failed := sum(bool(job["error"]) for job in jobs):
            sys.exit(f"{failed} of {len(jobs)} runs failed.")


def _clean_up(folder: Path, previous: bytes | None) -> None:
    """Remove temporary files of a multirun; if no job has ended, restore multirun.yaml.

    Args:
        folder: The folder of the multirun.
        previous: The content of multirun.yaml before the multirun; None if it did not exist.
    """
    has_run = any((folder / JOBS).glob("*"))
    shutil.rmtree(folder / JOBS, ignore_errors=True)
    if has_run:
        return
    if previous is None:
        (folder / "multirun.yaml").unlink(missing_ok=True)
    else:
        (folder / "multirun.yaml").write_bytes(previous)


def _natural_sort_key(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts job 2 before job 10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _print_tables(folder: Path, jobs: list[dict[str, Any]]) -> None:
    """Print the settings and the single runs, best first; then the failed runs with their errors.

    Args:
        folder: The folder of the multirun.
        jobs: Dicts of ``run``, ``overrides``, ``error`` (None if it succeeded) and ``results`` (from results.json).
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
