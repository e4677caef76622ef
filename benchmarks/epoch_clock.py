"""A callback for speed.py to add to a run: the seconds of each training epoch, validation not counted."""

import json
import time
from pathlib import Path

from lightning import Callback


class EpochClock(Callback):
    """Writes the seconds of each epoch to a JSON file.

    Args:
        path: of the file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.start = time.perf_counter()

    def on_validation_start(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            self.seconds.append(time.perf_counter() - self.start)

    def on_train_end(self, trainer, pl_module) -> None:
        self.path.write_text(json.dumps(self.seconds))
