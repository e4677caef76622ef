"""Show a model that maps a number to a number: a slider, its curve and the training points."""

import itertools
from typing import Any

import gradio
import torch

from . import display
from .predictor import Predictor

POINTS = 200  # on the curve
BATCHES = 20  # of training points to draw


def add_line(page: gradio.Blocks, predictor: Predictor) -> None:
    """Add the components to a page. Call it in the context of the page."""
    data = predictor.run.data
    data.setup("fit")
    batches = itertools.islice(data.train_dataloader(), BATCHES)
    x, y = (torch.cat(column).flatten() for column in zip(*batches, strict=True))
    low, high = float(x.min()), float(x.max())
    grid = torch.linspace(low, high, POINTS, dtype=torch.float32)[:, None]
    name, line = next(iter(predictor.predict(grid).items()))

    def show(value: float | None) -> tuple[str, str]:
        if value is None:
            return display.message("Type a number."), ""
        prediction = float(predictor.predict(predictor.read([str(value)])[None])[name])
        axes = display.empty_chart("x", name)
        axes.plot(x, y, "o", color=display.TEXT, markersize=4, alpha=0.6, label="training points")
        axes.plot(grid[:, 0], line.float(), color=display.COLOR, label="model")
        axes.plot([value], [prediction], "o", color=display.ACCENT, markersize=10, label="prediction")
        return display.headline(f"{name} = {display.number(prediction)}"), display.chart(axes)

    slider = display.slider(low, high, (low + high) / 2, "x")
    prediction_html, chart_html = gradio.HTML(), gradio.HTML()
    options: Any = {"show_progress": "hidden", "trigger_mode": "always_last", "queue": False}
    gradio.on(
        [page.load, slider.change], show, slider, [prediction_html, chart_html], api_visibility="private", **options
    )
