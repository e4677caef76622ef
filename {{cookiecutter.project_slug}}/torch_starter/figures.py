"""When the pictures of a run are drawn, and where they go."""

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
    """Whether something is drawn in the current epoch: ``times`` in a run, evenly, the last time in its last epoch.

    In a run of unknown length in epochs 1, 2, 4, 8, …

    Args:
        trainer: of the run.
        times: at most.
        drawn: the epoch in which it was drawn last, from 1; 0 if it was not.
    """
    epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or -1
    return epoch >= 2 * drawn if epochs < 0 else epoch * times // epochs > drawn * times // epochs


def remove_callback(trainer: Trainer, callback: Callback) -> None:
    """Takes out a callback that has nothing to do, for Lightning's calls of it take time at every step."""
    trainer.callbacks = [other for other in trainer.callbacks if other is not callback]


def gather_rows(values: Tensor) -> Tensor:
    """The rows of ``values`` of each process of the run, one after another, in all of them."""
    _, count = rank_and_count()
    return values if count == 1 else torch.cat(gather_all_tensors(values.contiguous()))


def log_figure(trainer: Trainer, tag: str, figure: Figure) -> None:
    """Draws a figure once, as one PNG, for ``figures/`` in the run folder and for the loggers.

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

    content = io.BytesIO()
    # The little that more compression saves takes three times as long.
    Image.fromarray(pixels).save(content, format="png", compress_level=1)

    path = Path(trainer.default_root_dir, "figures", tag.replace("/", "_") + ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.getvalue())
    # The steps at which Lightning has val/loss and test/loss: a resumed run replaces what came after its checkpoint.
    step = trainer.global_step if trainer.testing else trainer.global_step - 1
    height, width, colors = pixels.shape
    image = Summary.Image(height=height, width=width, colorspace=colors, encoded_image_string=content.getvalue())
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            # What add_image calls, too: it opens the file again that Lightning closed after fit.
            summary = Summary(value=[Summary.Value(tag=tag, image=image)])
            file_writer(logger.experiment).add_summary(summary, step)
        else:
            tracking.log_figure(logger, tag, path, step)


@contextlib.contextmanager
def fonts_for(texts: Iterable[str]) -> Iterator[None]:
    """Within, figures are drawn in fonts that have all letters of ``texts``, as far as this machine has such fonts."""
    letters = "".join(sorted({letter for text in texts for letter in text if letter.isprintable()}))
    with matplotlib.rc_context({"font.family": _families(letters)}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")  # which would be said for each letter
        yield


@functools.cache
def _families(letters: str) -> list[str]:
    """The usual fonts and, for letters that these lack, others; what none has is said once."""
    families = list(matplotlib.rcParams["font.family"])
    missing = set(letters) - _letters_of(font_manager.findfont(font_manager.FontProperties(family=families)))
    # matplotlib's Last Resort has a box for each letter there is.
    others = [font for font in font_manager.fontManager.ttflist if not font.name.startswith("Last Resort")]
    fonts = {font.fname: font.name for font in others} if missing else {}
    for path, name in sorted(fonts.items()):
        if missing and (found := missing & _letters_of(path)):
            families.append(name)
            missing -= found
    if missing:
        log.warning(
            f"No font of this machine has {' '.join(sorted(missing)[:10])}: figures show boxes. Install one that has, "
            f"such as Noto, and delete matplotlib's list of fonts: {Path(matplotlib.get_cachedir(), 'fontlist*.json')}"
        )
    return families


def _letters_of(font: str) -> set[str]:
    try:
        return set(map(chr, font_manager.get_font(font).get_charmap()))
    except (OSError, RuntimeError):  # a file that is gone, or of a kind that matplotlib cannot read
        return set()
