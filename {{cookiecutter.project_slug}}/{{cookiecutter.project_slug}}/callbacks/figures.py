"""When the pictures of a run are drawn, and where they go."""

import os
from pathlib import Path

import numpy
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image


def is_due(trainer: Trainer, times: int) -> bool:
    """Whether something is drawn after the current epoch: ``times`` in a run, evenly, and always after the last one.

    In a run of unknown length, after epochs 1, 2, 4, 8, …
    """
    epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or -1
    if epochs < 0:
        return epoch & (epoch - 1) == 0
    return epoch * times // epochs > (epoch - 1) * times // epochs


def show(trainer: Trainer, tag: str, figure: Figure) -> None:
    """Draws a figure once, for ``figures/`` in the run folder and for TensorBoard.

    Args:
        trainer: of the run.
        tag: such as ``val/confusion_matrix``; the file is then ``val_confusion_matrix.png``.
        figure: what to draw.
    """
    if not trainer.is_global_zero:
        return
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = numpy.asarray(canvas.buffer_rgba())[..., :3]

    path = Path(trainer.default_root_dir, "figures", tag.replace("/", "_") + ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    Image.fromarray(pixels).save(unfinished, format="png")
    os.replace(unfinished, path)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, pixels, trainer.global_step, dataformats="HWC")
