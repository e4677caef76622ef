"""A model as a file for other programs, compared with the model before it is put in its place."""

import io
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from .files import replace_atomically
from .mistakes import FULL_ERROR, UserError, first_line

if TYPE_CHECKING:
    from torch import Tensor, nn


# Of the largest output: how far the other runtime may be away from it.
TOLERANCE = 1e-4


def write_model(model: "nn.Module", inputs: "Tensor", path: Path, format: str) -> float:
    """Writes a model that takes a batch of any size.

    Args:
        model: in eval mode.
        inputs: a batch of samples to compare it on.
        path: of the file; if the model cannot be exported, it is as it was.
        format: ``onnx`` or ``pt2``, that of torch.export.

    Returns:
        the largest difference between the outputs of the file and of the model.

    Raises:
        Mistake: if the model cannot be exported, or the outputs differ by more than TOLERANCE.
    """
    import torch

    example = torch.cat([inputs, inputs])[:2]  # exporters take a batch size of 1 for a constant
    write, read = (_write_onnx, _read_onnx) if format == "onnx" else (_write_pt2, _read_pt2)
    with replace_atomically(path) as unfinished:
        _export(write, model, example, unfinished)
        return _largest_difference(model, read(unfinished), inputs)


def _export(
    write: "Callable[[nn.Module, Tensor, Path], None]", model: "nn.Module", example: "Tensor", path: Path
) -> None:
    """Calls ``write``, without what the exporters say about themselves.

    Raises:
        Mistake: if the model does what cannot be exported, such as an ``if`` on the values of its input.
    """
    logging.disable()
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            write(model, example, path)
    except (UserError, OSError):
        raise
    except Exception as error:  # of many types, depending on what it is
        reason = first_line(error.__cause__ or error)
        raise UserError(f"The model cannot be exported: {reason}\n{FULL_ERROR}=1 shows where.") from error
    finally:
        logging.disable(logging.NOTSET)


def _largest_difference(model: "nn.Module", exported: "Callable[[Tensor], Tensor]", inputs: "Tensor") -> float:
    """Between the outputs of both, for batches of one, of some and of all ``inputs``.

    Raises:
        Mistake: if it is over TOLERANCE.
    """
    import torch

    largest = 0.0
    for batch in (inputs[:1], inputs[:3], inputs):
        with torch.inference_mode():
            expected = model(batch)
        difference = (exported(batch) - expected).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
            raise UserError(f"The exported model is {difference:.2g} away from the model: nothing was written.")
        largest = max(largest, difference)
    return largest


def _write_onnx(model: "nn.Module", example: "Tensor", path: Path) -> None:
    import torch

    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f'{error}. Install what export.py needs: pip install -e ".[export]"') from error
    names = {"input_names": ["input"], "output_names": ["output"]}
    dynamic = (({0: torch.export.Dim("batch")}),)
    torch.onnx.export(
        model, (example,), path, dynamo=True, dynamic_shapes=dynamic, external_data=False, verbose=False, **names
    )


def _read_onnx(path: Path) -> "Callable[[Tensor], Tensor]":
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {"input": batch.numpy()})[0])


def _write_pt2(model: "nn.Module", example: "Tensor", path: Path) -> None:
    import torch

    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with path.open("wb") as file:
        torch.export.save(program, file)  # a path it would want to end in .pt2


def _read_pt2(path: Path) -> "Callable[[Tensor], Tensor]":
    import torch

    with path.open("rb") as file:
        return torch.export.load(file).module()
