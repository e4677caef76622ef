"""The model of a run, kept ready for one sample after another."""

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
    """Answers as `predict.py` does, without the start of a Trainer for each sample; from any thread.

    Args:
        run: see ``load_run``; its device and its precision are used.

    Attributes:
        run: the same.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        # The data module keeps the inputs that it found last; and while a model of 16 bits runs, tensors that other
        # threads make without a dtype have 16 bits.
        self._lock = threading.Lock()
        self._precision = run.trainer.precision_plugin
        self._device = run.trainer.strategy.root_device
        model: Any = self._precision.convert_module(run.model).to(self._device)
        model.trainer = run.trainer  # which a predict_step may ask
        self._model = model
        self._index = (0,) if "batch_idx" in inspect.signature(model.predict_step).parameters else ()

    def read(self, words: Sequence[str]) -> "Tensor":
        """The sample that the words of `predict.py`'s command line mean, without the dimension of the batch.

        Raises:
            OSError: if it cannot be read.
            ValueError: if it is of another kind.
            Mistake: if the data module cannot read inputs.
        """
        with self._lock:
            (name,) = find_inputs(self.run, words)
            return self.run.data.read_input(name)

    def predict(self, samples: "Tensor") -> "dict[str, Tensor]":
        """The columns of ``predict_step``, on the CPU, for samples (N, …) as the data module serves them.

        Raises:
            Mistake: if it gives no columns.
        """
        samples = self._precision.convert_input(samples.to(self._device))
        with self._lock, torch.inference_mode(), self._precision.predict_step_context():
            output = self._model.predict_step(self._model.on_after_batch_transfer(samples, 0), *self._index)
        if not isinstance(output, Mapping):
            raise UserError(f"predict_step of {type(self.run.model).__name__} must return a dict: see protocols.py.")
        return {name: values.cpu() for name, values in output.items()}

    def class_names(self, count: int) -> list[str]:
        """The names of ``count`` classes, by label."""
        return [str(name) for name in getattr(self.run.data, "class_names", None) or range(count)]
