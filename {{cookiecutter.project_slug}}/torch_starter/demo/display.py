"""Create HTML with bars, images and charts. Text is escaped, because names come from files."""

import base64
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from html import escape

import gradio
import matplotlib
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

MOST_BARS = 12
# For the whole process, because several threads draw. Text stays text, because the browser has more fonts; it is not
# parsed as math, because the name of a column may contain "$".
matplotlib.rcParams |= {"svg.fonttype": "none", "text.parse_math": False}
warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
# Readable on white and on black: https://www.w3.org/TR/WCAG22/#contrast-minimum
TEXT = "#808080"
COLOR, ACCENT = "#3A8BD0", "#D55E00"


def number(value: float, digits: int = 6, has_sign: bool = False) -> str:
    """Return a number with up to ``digits`` significant digits, without an exponent.

    Args:
        value: The number.
        digits: Number of significant digits.
        has_sign: Whether positive numbers have a sign.
    """
    return numpy.format_float_positional(value, precision=digits, fractional=False, trim="-", sign=has_sign)


def headline(text: str) -> str:
    """Return a paragraph in large type."""
    return f'<p class="headline">{escape(text)}</p>'


def message(text: str) -> str:
    """Return a paragraph in a muted color."""
    return f'<p class="message">{escape(text)}</p>'


def probability_bars(names: Sequence[str], probabilities: Sequence[float]) -> str:
    """Return a bar for each class, or for the most probable ones of many.

    Up to ``MOST_BARS`` bars are in the order of the labels, so that they keep their places.

    Args:
        names: The names of the classes, by label.
        probabilities: The probabilities of the classes, 0 to 1.
    """
    labels = sorted(range(len(names)), key=lambda label: -probabilities[label])
    likeliest = labels[0]
    if len(labels) <= MOST_BARS:
        labels.sort()
    rows = [
        _bar(names[label], 0, 100 * probabilities[label], f"{probabilities[label]:.1%}", label == likeliest)
        for label in labels[:MOST_BARS]
    ]
    return f'<div class="bars">{"".join(rows)}</div>'


def effect_bars(effects: Mapping[str, float]) -> str:
    """Return a bar to the left or right for each effect, the largest first.

    Args:
        effects: Maps names to effects, all in the same unit.
    """
    names = sorted(effects, key=lambda name: -abs(effects[name]))
    scale = 50 / (max((abs(effect) for effect in effects.values()), default=0) or 1)
    rows = [
        _bar(
            name,
            50 + scale * min(0, effects[name]),
            scale * abs(effects[name]),
            number(effects[name], 4, has_sign=True),
        )
        for name in names[:MOST_BARS]
    ]
    more = message(f"and {len(names) - MOST_BARS} smaller effects") if len(names) > MOST_BARS else ""
    return f'<div class="bars">{"".join(rows)}</div>{more}'


def _bar(name: str, start: float, length: float, value: str, is_largest: bool = False) -> str:
    """Return a row with one bar; ``start`` and ``length`` are in percent."""
    bar = f'<div class="bar" style="margin-left: {start:.2f}%; width: {length:.2f}%"></div>'
    cells = f"<span>{escape(name)}</span><div>{bar}</div><span>{value}</span>"
    return f'<div class="row{" largest" * is_largest}">{cells}</div>'


def captioned_image(image: Tensor, caption: str) -> str:
    """Return an image with a caption.

    Args:
        image: uint8 ``(C, H, W)`` with 1 or 3 channels.
        caption: The text below the image.
    """
    file = io.BytesIO()
    to_pil_image(image).save(file, "png")
    address = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    small = ' class="small"' if max(image.shape) <= 64 else ""
    return f'<figure><img{small} src="{address}" alt=""><figcaption>{escape(caption)}</figcaption></figure>'


def gallery(images: Sequence[Tensor], captions: Sequence[str]) -> str:
    """Return clickable images."""
    figures = [captioned_image(image, caption) for image, caption in zip(images, captions, strict=True)]
    return f'<div class="gallery">{"".join(f"<button type=button>{figure}</button>" for figure in figures)}</div>'


def sketchpad(is_ink_white: bool, aspect: float) -> str:
    """Return the canvas and buttons for sketchpad.js.

    Args:
        is_ink_white: Whether the ink is white on black, at first.
        aspect: Height of the canvas divided by its width.
    """
    ink, other = ("white", "Black on white") if is_ink_white else ("black", "White on black")
    return f"""
<div class="sketchpad">
  <div>
    <canvas width="280" height="{round(280 * aspect)}" data-ink="{ink}" aria-label="a square to draw on"></canvas>
    <div>
      <button type="button" class="clear">Clear</button><button type="button" class="invert">{other}</button>
      <button type="button" class="explain">What mattered?</button>
    </div>
  </div>
  <div class="answer" aria-live="polite">{message("Draw in the square.")}</div>
</div>"""


def slider(low: float, high: float, value: float, label: str, step: float | None = None) -> gradio.Slider:
    """Return a slider over the range of the training data.

    Args:
        low: The minimum of the training data.
        high: The maximum of the training data, greater than ``low``.
        value: The initial value.
        label: The label of the slider.
        step: The step. By default, the range has at least 200 steps.
    """
    step = step or 10.0 ** math.floor(math.log10((high - low) / 200))
    # Round outward, to numbers with few digits.
    low, high = (float(f"{rounded * step:.12g}") for rounded in (math.floor(low / step), math.ceil(high / step)))
    slider = gradio.Slider(low, high, value=value, step=step, label=label, min_width=200)
    # The browser clamps a typed number when it leaves the field; Gradio would already fail during typing.
    slider.preprocess = lambda number: number  # pyrefly: ignore[bad-assignment]
    return slider


def empty_chart(xlabel: str, ylabel: str) -> Axes:
    """Return the axes of a new figure, in a color that is readable on bright and dark pages."""
    axes = Figure(figsize=(4.2, 2.9), layout="constrained").add_subplot()
    axes.set_xlabel(xlabel, color=TEXT)
    axes.set_ylabel(ylabel, color=TEXT)
    axes.tick_params(colors=TEXT)
    for spine in axes.spines.values():
        spine.set_color(TEXT)
    return axes


def chart(axes: Axes) -> str:
    """Return the figure of the axes as a transparent SVG with text that the browser renders."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(labelcolor=TEXT, framealpha=0)
    file = io.StringIO()
    axes.figure.savefig(file, format="svg", transparent=True)
    image = file.getvalue()
    return f'<div class="chart">{image[image.index("<svg") :]}</div>'
