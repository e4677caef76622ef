"""Decide when a run draws figures, and log them."""

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import matplotlib
import numpy
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from . import tracking
from .compat import file_writer
from .data.batches import rank_and_count
from .files import write_bytes

log = logging.getLogger(__name__)


def is_due(trainer: Trainer, times: int, drawn: int) -> bool:
    """Return whether to draw a figure in the current epoch.

    A figure is drawn at evenly spaced epochs, the last of which is the last epoch of the run. In a run of unknown
    length, it is drawn in epochs 1, 2, 4, 8, …

    Args:
        trainer: The trainer of the run.
        times: How often to draw the figure in a run, at most.
        drawn: The epoch, counted from 1, in which the figure was last drawn; 0 if it has not been drawn.
    """
    epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or -1
    return epoch >= 2 * drawn if epochs < 0 else epoch * times // epochs > drawn * times // epochs


def remove_callback(trainer: Trainer, callback: Callback) -> None:
    """Remove a callback that has nothing to do, because Lightning's calls of it take time at every step."""
    trainer.callbacks = [other for other in trainer.callbacks if other is not callback]


def gather_rows(values: Tensor) -> Tensor:
    """Return the rows of ``values`` ``(N, …)`` of all ranks, concatenated in rank order, on each rank."""
    _, count = rank_and_count()
    return values if count == 1 else torch.cat(gather_all_tensors(values.contiguous()))


def log_figure(trainer: Trainer, tag: str, figure: Figure) -> None:
    """Render a figure once, and give the PNG to ``figures/`` in the run folder and to the loggers.

    Args:
        trainer: The trainer of the run.
        tag: The name of the figure, such as ``val/confusion_matrix``; its file is then ``val_confusion_matrix.png``.
        figure: The figure to draw.
    """
    if not trainer.is_global_zero:
        return
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = numpy.asarray(canvas.buffer_rgba())[..., :3]

    content = io.BytesIO()
    # Higher compression saves little and takes three times as long.
    Image.fromarray(pixels).save(content, format="png", compress_level=1)

    path = Path(trainer.default_root_dir, "figures", tag.replace("/", "_") + ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.getvalue())
    # The steps at which Lightning logs val/loss and test/loss. A resumed run replaces figures after its checkpoint.
    step = trainer.global_step if trainer.testing else trainer.global_step - 1
    height, width, colors = pixels.shape
    image = Summary.Image(height=height, width=width, colorspace=colors, encoded_image_string=content.getvalue())
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            # add_image does the same: it reopens the file, which Lightning closes after fit.
            summary = Summary(value=[Summary.Value(tag=tag, image=image)])
            file_writer(logger.experiment).add_summary(summary, step)
        else:
            tracking.log_figure(logger, tag, path, step)


@contextlib.contextmanager
def fonts_for(texts: Iterable[str]) -> Iterator[None]:
    """Draw figures within the context in installed fonts that cover the characters of ``texts``."""
    characters = "".join(sorted({character for text in texts for character in text if character.isprintable()}))
    with matplotlib.rc_context({"font.family": _find_families(characters)}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")  # one warning per character
        yield


@functools.cache
def _find_families(characters: str) -> list[str]:
    """Return the default fonts, plus fonts for missing characters; warn once about characters that no font has."""
    families = list(matplotlib.rcParams["font.family"])
    missing = set(characters) - _supported_characters(
        font_manager.findfont(font_manager.FontProperties(family=families))
    )
    # matplotlib's Last Resort font has a box for every character.
    others = [font for font in font_manager.fontManager.ttflist if not font.name.startswith("Last Resort")]
    fonts = {font.fname: font.name for font in others} if missing else {}
    for path, name in sorted(fonts.items()):
        if missing and (found := missing & _supported_characters(path)):
            families.append(name)
            missing -= found
    if missing:
        log.warning(
            f"No installed font has {' '.join(sorted(missing)[:10])}, so figures show boxes. Install one, such as "
            f"Noto, and delete matplotlib's font cache: {Path(matplotlib.get_cachedir(), 'fontlist*.json')}"
        )
    return families


def _supported_characters(font: str) -> set[str]:
    try:
        return set(map(chr, font_manager.get_font(font).get_charmap()))
    except (OSError, RuntimeError):  # a deleted file, or a format that matplotlib cannot read
        return set()
