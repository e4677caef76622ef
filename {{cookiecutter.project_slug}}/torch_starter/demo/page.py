"""Which page a run has, and what stands above it."""

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

HOURLY = (3600, 3600)  # seconds after which uploads are looked for, and deleted


def make_page(run: Run) -> gradio.Blocks:
    """The page of a run, by what its data module has: ``image_shape``, ``columns``, or samples of one number.

    Raises:
        Mistake: if it has nothing of these, or cannot read inputs.
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
            f"demo.py has no page for {type(run.data).__name__}: it has no image_shape and no columns, and its "
            "read_input does not take one number: see torch_starter/protocols.py. For your own page there is load_run."
        )
    data = str(getattr(run.data, "target", None) or data_name(run.data))
    metrics = []
    with contextlib.suppress(ValueError, AttributeError):  # of a file that is damaged
        values = final_metrics({"metrics": run.metrics})
        metrics = [f"{name} {value:.4f}" for name, value in values.items() if isinstance(value, float)]
    about = " · ".join([str(display_path(run.folder)), run.checkpoint.name, *metrics])
    title = f"{network_name(run.model)}, {data}"
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=HOURLY) as page:
        gradio.HTML(f"<h1>{escape(title)}</h1><p>{escape(about)}</p>")
        add(page, predictor)
    return page


def _is_number(predictor: Predictor) -> bool:
    """Whether a sample is one number."""
    try:
        return predictor.read(["0"]).shape == (1,)
    except (OSError, ValueError):
        return False
