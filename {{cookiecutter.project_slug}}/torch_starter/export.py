"""Export a model to a file for other programs, after comparing the outputs of both."""

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


# Largest allowed difference between the outputs, relative to the largest output.
TOLERANCE = 1e-4


def write_model(model: "nn.Module", inputs: "Tensor", path: Path, format: str) -> float:
    """Export a model that accepts batches of any size.

    Args:
        model: The model in eval mode.
        inputs: A batch of samples ``(N, …)`` to compare the outputs on.
        path: The file to write. It is left unchanged if the export fails.
        format: ``onnx``, or ``pt2`` for torch.export.

    Returns:
        The largest absolute difference between the outputs of the file and of the model.

    Raises:
        UserError: If the model cannot be exported, or the outputs differ by more than TOLERANCE.
    """
    import torch

    example = torch.cat([inputs, inputs])[:2]  # exporters treat a batch size of 1 as a constant
    write, read = (_write_onnx, _read_onnx) if format == "onnx" else (_write_pt2, _read_pt2)
    with replace_atomically(path) as unfinished:
        _export(write, model, example, unfinished)
        return _largest_difference(model, read(unfinished), inputs)


def _export(
    write: "Callable[[nn.Module, Tensor, Path], None]", model: "nn.Module", example: "Tensor", path: Path
) -> None:
    """Call ``write`` without the output of the exporters.

    Raises:
        UserError: If the model cannot be exported, for example because of an ``if`` on the values of its input.
    """
    logging.disable()
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            write(model, example, path)
    except (UserError, OSError):
        raise
    except Exception as error:  # the type depends on the cause
        reason = first_line(error.__cause__ or error)
        raise UserError(f"The model cannot be exported: {reason}\n{FULL_ERROR}=1 shows where.") from error
    finally:
        logging.disable(logging.NOTSET)


def _largest_difference(model: "nn.Module", exported: "Callable[[Tensor], Tensor]", inputs: "Tensor") -> float:
    """Return the largest difference between the outputs, for batches of one, three and all ``inputs``.

    Raises:
        UserError: If it exceeds TOLERANCE.
    """
    import torch

    largest = 0.0
    for batch in (inputs[:1], inputs[:3], inputs):
        with torch.inference_mode():
            expected = model(batch)
        difference = (exported(batch) - expected).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
            raise UserError(
                f"The outputs of the exported model differ by {difference:.2g} from the model's; no file was written."
            )
        largest = max(largest, difference)
    return largest


def _write_onnx(model: "nn.Module", example: "Tensor", path: Path) -> None:
    import torch

    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f'{error}. Install the packages that export.py needs: pip install -e ".[export]"') from error
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
        torch.export.save(program, file)  # a path would have to end in .pt2


def _read_pt2(path: Path) -> "Callable[[Tensor], Tensor]":
    import torch

    with path.open("rb") as file:
        return torch.export.load(file).module()
