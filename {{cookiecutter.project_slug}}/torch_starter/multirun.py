"""The runs of `python train.py -m …`: each in its folder, and a table at the end."""

import atexit
import contextlib
import logging
import math
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

from .compat import error_of
from .explanations import explanation
from .files import read_json, write_json, write_text
from .mistakes import IS_FULL, Mistake, printable
from .results import final_metrics
from .run_folder import InUse, locked, remove_empty
from .trust import refuse_links

log = logging.getLogger(__name__)


# Where the jobs of a multirun leave how they ended, until it ends.
JOBS = ".jobs"
# Not in the callback, which Hydra sends to the processes of a launcher.
_during_multirun = contextlib.ExitStack()


class Multirun(Callback):
    """Ends `python train.py -m …` with a table of its runs, best first. Hydra calls it.

    The order is that of the metric by which best.ckpt is chosen, at that checkpoint. A run that fails leaves its error
    in its folder, in error.txt, and does not keep the others from running; the exit status is then 1.
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
            _during_multirun.enter_context(locked(folder))
            _during_multirun.callback(_take_back, folder, there)
        except Mistake as mistake:
            sys.exit(printable(str(mistake)))
        shutil.rmtree(folder / JOBS, ignore_errors=True)
        (folder / JOBS).mkdir(parents=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        error = error_of(job_return)
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
        _print_table(jobs)
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


def _print_table(jobs: list[dict[str, Any]]) -> None:
    """Prints runs with the metric that they were chosen by and the test metrics, best first.

    Args:
        jobs: each with ``run``, ``overrides``, ``error`` (None if it has none) and ``results``, those of results.json.
    """
    import rich
    import rich.box
    import rich.markup
    import rich.table

    def metrics(job: dict[str, Any]) -> dict[str, float]:
        best = job["results"].get("monitored")
        values = final_metrics(job["results"])
        values |= {best["metric"]: best["value"]} if best else {}
        return {name: math.nan if value is None else value for name, value in values.items()}  # JSON has no NaN

    best = [job["results"].get("monitored") or {} for job in jobs]
    monitors = list(dict.fromkeys(found["metric"] for found in best if found))
    names = [*monitors, *sorted({name for job in jobs for name in metrics(job)} - {*monitors})]

    def rank(job: dict[str, Any]) -> tuple[Any, ...]:
        found = job["results"].get("monitored")
        if found is None:
            return bool(job["error"]), True, any(map(math.isnan, metrics(job).values()))
        value = math.nan if found["value"] is None else found["value"]
        sign = 1 if found["mode"] == "min" else -1
        return bool(job["error"]), False, monitors.index(found["metric"]), math.isnan(value), sign * value

    shared = set.intersection(*(set(job["overrides"]) for job in jobs)) if jobs else set()
    has_errors = any(job["error"] for job in jobs)
    table = rich.table.Table("run", "overrides", *map(printable, names), box=rich.box.SIMPLE)
    if has_errors:
        table.add_column("failed")
    for job in sorted(jobs, key=rank):
        differing = [override for override in job["overrides"] if override not in shared]
        values = [f"{value:.4f}" if (value := metrics(job).get(name)) is not None else "" for name in names]
        cells = [job["run"], " ".join(differing), *values, *([job["error"] or ""] if has_errors else [])]
        # Rich would take the brackets of `logger=[csv]` for a style.
        table.add_row(*(rich.markup.escape(printable(cell)) for cell in cells))
    rich.print(table)
