"""Show a model for tables: a field for each column, the prediction, the effect of each column, and a curve."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gradio
import torch
from torch import Tensor

from ..data import tables
from ..data.tables import Column
from . import display
from .predictor import Predictor

POINTS = 50  # on a curve
FIELDS = 2  # side by side
WORDS = 30  # along the axis of a chart
CURVES = 6  # of the most probable classes


def add_table(page: gradio.Blocks, predictor: Predictor) -> None:
    """Add the components to a page. Call it in the context of the page."""
    columns: list[Column] = predictor.run.data.columns
    names = [column["name"] for column in columns]

    def show(over: str, *values: Any) -> tuple[str, str]:
        are_missing = dict(zip(missing, values[len(names) :], strict=True))
        cells = {
            name: "" if value is None or are_missing.get(name) else str(value)
            for name, value in zip(names, values, strict=False)
        }
        row = encode_row(cells, columns)
        return answer_row(predictor, row), curve(predictor, row, names.index(over))

    with gradio.Row():
        with gradio.Column(scale=3):
            fields = []
            for start in range(0, len(columns), FIELDS):
                with gradio.Row():
                    fields += [_field(column) for column in columns[start : start + FIELDS]]
            # A slider cannot be empty. A model has learned about missing values only if training rows have some.
            missing = {
                field.label: gradio.Checkbox(label=f"{field.label} is missing")
                for column, field in zip(columns, fields, strict=True)
                if isinstance(field, gradio.Slider) and column.get("missing")
            }
        with gradio.Column(scale=2):
            prediction_html = gradio.HTML()
            over = gradio.Dropdown(
                names, value=names[0], label="Prediction over one column, with the others held fixed"
            )
            chart_html = gradio.HTML()
    # Not only `input`: the number of a slider can also be typed and reset.
    events = [page.load, over.change, *(field.change for field in (*fields, *missing.values()))]
    options: Any = {"show_progress": "hidden", "trigger_mode": "always_last", "queue": False}
    gradio.on(
        events,
        show,
        [over, *fields, *missing.values()],
        [prediction_html, chart_html],
        api_visibility="private",
        **options,
    )


def encode_row(cells: Mapping[str, str], columns: Sequence[Column]) -> Tensor:
    """Return a row, float32 ``(columns,)``, encoded as `predict.py` reads COLUMN=VALUE.

    Args:
        cells: Maps the names of columns to text.
        columns: The columns of the data module.
    """
    return tables.encode_rows(tables.make_row(cells), columns)[0]


def _field(column: Column) -> Any:
    """Return a field that starts at the median, or at the most frequent word of the training rows."""
    words = column.get("words")
    if words:
        word = max(zip(column["shares"], words, strict=True))[1]
    else:
        low, high = _range(column)
        if low < high:
            return display.slider(low, high, column["median"], column["name"], step=column.get("is_whole") and 1)
        words = [word := f"{low:.15g}"]  # training rows have a single value, or none
    choices = [*((word, word) for word in words), ("(missing)", "")]
    return gradio.Dropdown(choices, value=word, label=column["name"], min_width=200)


def _range(column: Column) -> tuple[float, float]:
    """Return the range of the training rows, or three standard deviations around the median for old runs without it."""
    low, high = (float(f"{column['median'] + side * column['std']:.3g}") for side in (-3, 3))
    return column.get("min", low), column.get("max", high)


def answer_row(predictor: Predictor, row: Tensor) -> str:
    """Return HTML with the probabilities, or with the predicted number and the effect of each column.

    The effect of a column is the change of the prediction if its value replaces the average. For a linear model, the
    effects and the prediction of the average row add up to the prediction; for other models, each effect is that of
    changing a single column.

    Args:
        predictor: A predictor of ``probabilities`` or of a number.
        row: float32 ``(columns,)``, see ``tables.encode_rows``.
    """
    columns = predictor.run.data.columns
    # A missing word counts as the average of all words.
    average = torch.tensor([column.get("mean", math.nan) for column in columns], dtype=torch.float32)
    output = predictor.predict(row[None])  # a single row, as in `predict.py`: a batch can change the last digit
    if "probabilities" in output:
        probabilities = output["probabilities"][0].tolist()
        return display.probability_bars(predictor.class_names(len(probabilities)), probabilities)
    prediction = float(_numbers(output))
    replaced = row.repeat(len(row), 1)
    replaced.diagonal().copy_(average)
    of_average, *others = _numbers(predictor.predict(torch.stack([average, *replaced]))).tolist()
    effects = {column["name"]: prediction - other for column, other in zip(columns, others, strict=True)}
    target = _target(predictor)
    return (
        display.headline(f"{target} = {display.number(prediction)}")
        + display.message(
            f"{display.number(of_average)} for the average row. Effect of each column, relative to its average:"
        )
        + display.effect_bars(effects)
    )


def curve(predictor: Predictor, row: Tensor, place: int) -> str:
    """Return a chart of the prediction, or of the most probable classes, over a column; others stay as in the row.

    Args:
        predictor: A predictor of ``probabilities`` or of a number.
        row: float32 ``(columns,)``, see ``tables.encode_rows``.
        place: Index of the column in the row.
    """
    column = predictor.run.data.columns[place]
    words = column.get("words")
    if words:  # the most frequent ones, in their order
        most = sorted(range(len(words)), key=lambda word: -column["shares"][word])[:WORDS]
        values = torch.tensor(sorted(most), dtype=torch.float32)
    else:
        values = torch.linspace(*_range(column), POINTS, dtype=torch.float32)
    rows = row.repeat(len(values), 1)
    rows[:, place] = values
    output = predictor.predict(rows)
    ylabel = "probability" if "probabilities" in output else _target(predictor)
    axes = display.empty_chart(column["name"], ylabel)
    marks = {"marker": "o", "linestyle": "" if words else "-", "markersize": 6 if words else 0}
    x = torch.arange(len(values)) if words else values
    if "probabilities" in output:
        probabilities = output["probabilities"].float()
        likeliest = probabilities.max(dim=0).values.argsort(descending=True)[:CURVES].sort().values
        names = predictor.class_names(probabilities.shape[1])
        for label in likeliest.tolist():
            axes.plot(x, probabilities[:, label], label=names[label], **marks)
    else:
        axes.plot(x, _numbers(output), color=display.COLOR, **marks)
    here = (values == row[place]).nonzero().flatten().tolist() if words else [float(row[place])]
    for position in here:
        axes.axvline(position, color=display.TEXT, linestyle=":")
    if words:
        labels = [word if len(word) <= 20 else f"{word[:19]}…" for word in (words[int(value)] for value in values)]
        axes.set_xticks(range(len(values)), labels, rotation=90 if max(map(len, labels)) > 3 else 0)
        axes.margins(0.1)
    return display.chart(axes)


def _numbers(output: dict[str, Tensor]) -> Tensor:
    """Return the first column of predictions, ``(N,)``, as float64."""
    return next(iter(output.values())).double()


def _target(predictor: Predictor) -> str:
    return getattr(predictor.run.data, "target", "prediction")
