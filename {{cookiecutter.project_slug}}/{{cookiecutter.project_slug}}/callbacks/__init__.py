from .progress import Progress
from .resumable import AtomicCheckpointIO, Resumable

__all__ = ["AtomicCheckpointIO", "Progress", "Resumable"]
