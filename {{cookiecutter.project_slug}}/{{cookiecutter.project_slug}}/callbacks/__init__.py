from .classifier_figures import ClassifierFigures
from .curves import Curves
from .progress import Progress
from .regression_figures import RegressionFigures
from .resumable import AtomicCheckpointIO, Resumable
from .run_description import RunDescription

__all__ = [
    "AtomicCheckpointIO",
    "ClassifierFigures",
    "Curves",
    "Progress",
    "RegressionFigures",
    "Resumable",
    "RunDescription",
]
