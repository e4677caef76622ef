"""Predict single samples with the model of a run, which stays loaded."""

import inspect
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..loaded_run import Run
from ..mistakes import UserError
from ..prediction import find_inputs

if TYPE_CHECKING:
    from torch import Tensor


class Predictor:
    """A thread-safe predictor with the results of `predict.py`, but without starting a Trainer for each sample.

    Args:
        run: The run, see ``load_run``. Its device and its precision are used.

    Attributes:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        # The data module stores the inputs that it found last; and while a 16-bit model runs, tensors that other
        # threads create without a dtype have 16 bits.
        self._lock = threading.Lock()
        self._precision = run.trainer.precision_plugin
        self._device = run.trainer.strategy.root_device
        model: Any = self._precision.convert_module(run.model).to(self._device)
        model.trainer = run.trainer  # predict_step may use it
        self._model = model
        self._index = (0,) if "batch_idx" in inspect.signature(model.predict_step).parameters else ()

    def read(self, words: Sequence[str]) -> "Tensor":
        """Return the sample for words of `predict.py`'s command line, without the batch dimension.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it does not fit the data set.
            UserError: If the data module cannot read inputs.
        """
        with self._lock:
            (name,) = find_inputs(self.run, words)
            return self.run.data.read_input(name)

    def predict(self, samples: "Tensor") -> "dict[str, Tensor]":
        """Return the columns of ``predict_step`` on the CPU for samples ``(N, …)`` as the data module serves them.

        Raises:
            UserError: If ``predict_step`` does not return a dict.
        """
        samples = self._precision.convert_input(samples.to(self._device))
        with self._lock, torch.inference_mode(), self._precision.predict_step_context():
            output = self._model.predict_step(self._model.on_after_batch_transfer(samples, 0), *self._index)
        if not isinstance(output, Mapping):
            raise UserError(f"predict_step of {type(self.run.model).__name__} must return a dict. See protocols.py.")
        return {name: values.cpu() for name, values in output.items()}

    def class_names(self, count: int) -> list[str]:
        """Return the names of ``count`` classes, by label."""
        return [str(name) for name in getattr(self.run.data, "class_names", None) or range(count)]
