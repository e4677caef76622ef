"""The page of a table: a field for each column, the prediction, what each column adds, and a curve."""

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

POINTS = 50  # of a curve
FIELDS = 2  # side by side
WORDS = 30  # along a chart
CURVES = 6  # of the likeliest classes


def add_table(page: gradio.Blocks, predictor: Predictor) -> None:
    """Adds the components to a page, within its context."""
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
            # A slider cannot be empty. Where no training row lacks a value, a model has not learned what that means.
            missing = {
                field.label: gradio.Checkbox(label=f"{field.label} is missing")
                for column, field in zip(columns, fields, strict=True)
                if isinstance(field, gradio.Slider) and column.get("missing")
            }
        with gradio.Column(scale=2):
            answered = gradio.HTML()
            over = gradio.Dropdown(names, value=names[0], label="The prediction over one column, the others held fixed")
            drawn = gradio.HTML()
    # Not `input` alone: a slider's number can be typed, and reset.
    events = [page.load, over.change, *(field.change for field in (*fields, *missing.values()))]
    options: Any = {"show_progress": "hidden", "trigger_mode": "always_last", "queue": False}
    gradio.on(events, show, [over, *fields, *missing.values()], [answered, drawn], api_visibility="private", **options)


def encode_row(cells: Mapping[str, str], columns: Sequence[Column]) -> Tensor:
    """Float32 (columns,), of text by the name of the column; as `predict.py` reads COLUMN=VALUE."""
    return tables.encode_rows(tables.make_row(cells), columns)[0]


def _field(column: Column) -> Any:
    """A field that begins at the median, or at the word that most training rows have."""
    words = column.get("words")
    if words:
        word = max(zip(column["shares"], words, strict=True))[1]
    else:
        low, high = _range(column)
        if low < high:
            return display.slider(low, high, column["median"], column["name"], step=column.get("is_whole") and 1)
        words = [word := f"{low:.15g}"]  # all that training rows tell is whether there is a value
    choices = [*((word, word) for word in words), ("(missing)", "")]
    return gradio.Dropdown(choices, value=word, label=column["name"], min_width=200)


def _range(column: Column) -> tuple[float, float]:
    """Of the training rows. Runs of before have none: three standard deviations around the median."""
    low, high = (float(f"{column['median'] + side * column['std']:.3g}") for side in (-3, 3))
    return column.get("min", low), column.get("max", high)


def answer_row(predictor: Predictor, row: Tensor) -> str:
    """The probabilities; or the prediction, and what each column adds to that of the average row.

    A column adds the difference to what the row would be with the average in its place. Of a linear model these
    differences add up to the prediction; of another each is that of its column changed alone.

    Args:
        predictor: of ``probabilities``, or of a number.
        row: float32 (columns,), see ``tables.encode``.
    """
    columns = predictor.run.data.columns
    # A missing word counts as the average of all.
    average = torch.tensor([column.get("mean", math.nan) for column in columns], dtype=torch.float32)
    output = predictor.predict(row[None])  # alone, as `predict.py` predicts one row: a batch can change the last digit
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
            f"{display.number(of_average)} for the average row. What each column adds, relative to its average:"
        )
        + display.effect_bars(effects)
    )


def curve(predictor: Predictor, row: Tensor, place: int) -> str:
    """The prediction, or the probabilities of the likeliest classes, over a column; the others as in a row.

    Args:
        predictor: of ``probabilities``, or of a number.
        row: float32 (columns,), see ``tables.encode``.
        place: of the column in it.
    """
    column = predictor.run.data.columns[place]
    words = column.get("words")
    if words:  # the most frequent, in their order
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
    """The first column of predictions, (N,)."""
    return next(iter(output.values())).double()


def _target(predictor: Predictor) -> str:
    return getattr(predictor.run.data, "target", "prediction")
