from .classifier_figures import ClassifierFigures
from .curves import Curves
from .fine_tuning import FineTuning
from .global_batch import GlobalBatch
from .last_checkpoint import LastCheckpoint
from .progress import Progress
from .regression_figures import RegressionFigures
from .resumable import AtomicCheckpointIO, Resumable
from .run_description import RunDescription

__all__ = [
    "AtomicCheckpointIO",
    "ClassifierFigures",
    "Curves",
    "FineTuning",
    "GlobalBatch",
    "LastCheckpoint",
    "Progress",
    "RegressionFigures",
    "Resumable",
    "RunDescription",
]
