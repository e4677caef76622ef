"""Start, monitor, save, resume, sweep and evaluate runs. README.md lists the modules."""

from .job import train_run
from .loaded_run import Run, load_run

__all__ = ["Run", "load_run", "train_run"]
