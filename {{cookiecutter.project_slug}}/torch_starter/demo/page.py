"""Build the web page of a run: a heading, and the components for its kind of data."""

import contextlib
from html import escape
from typing import Any

import gradio

from ..callbacks.progress import data_name, network_name
from ..files import display_path
from ..loaded_run import Run
from ..mistakes import UserError
from ..results import final_metrics
from .images import add_images
from .line import add_line
from .predictor import Predictor
from .table import add_table

HOURLY = (3600, 3600)  # seconds between deletions of uploads, and their minimum age in seconds


def make_page(run: Run) -> gradio.Blocks:
    """Return the page of a run, for a data module with ``image_shape``, with ``columns``, or with scalar samples.

    Raises:
        UserError: If the data module has none of these, or cannot read inputs.
    """
    predictor = Predictor(run)
    if getattr(run.data, "image_shape", None):
        add: Any = add_images
    elif getattr(run.data, "columns", None):
        add = add_table
    elif _is_number(predictor):
        add = add_line
    else:
        raise UserError(
            f"demo.py has no page for {type(run.data).__name__}: it has neither image_shape nor columns, and its "
            "read_input does not read a single number. See torch_starter/protocols.py, or build a page with load_run."
        )
    data = str(getattr(run.data, "target", None) or data_name(run.data))
    metrics = []
    with contextlib.suppress(ValueError, AttributeError):  # results.json is damaged
        values = final_metrics({"metrics": run.metrics})
        metrics = [f"{name} {value:.4f}" for name, value in values.items() if isinstance(value, float)]
    about = " · ".join([str(display_path(run.folder)), run.checkpoint.name, *metrics])
    title = f"{network_name(run.model)}, {data}"
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=HOURLY) as page:
        gradio.HTML(f"<h1>{escape(title)}</h1><p>{escape(about)}</p>")
        add(page, predictor)
    return page


def _is_number(predictor: Predictor) -> bool:
    """Return whether a sample is a single number."""
    try:
        return predictor.read(["0"]).shape == (1,)
    except (OSError, ValueError):
        return False
