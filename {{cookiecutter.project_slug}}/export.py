"""The model of a run for other programs: `python export.py [RUN] [--format onnx|pt2] [--output FILE]`.

The file takes what the data set gives, raw uint8 images or numbers, in a batch of any size.
"""

import argparse
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, __file__.removesuffix("export.py"))  # which PYTHONSAFEPATH and python -P leave out
import runs
from errors import FULL_ERROR, Mistake, explained

if TYPE_CHECKING:
    from torch import Tensor, nn

# Of the largest output: how far the other runtime may be away from it.
TOLERANCE = 1e-4


@explained
def main() -> None:
    parser = argparse.ArgumentParser(
        usage="python export.py [RUN] [--format FORMAT] [--output FILE] [--checkpoint CHECKPOINT] [key=value …]",
        description="Write the model with its preprocessing inside, and check what was written.",
    )
    parser.add_argument("words", nargs="*", metavar="RUN key=value", help="a run folder (default: latest); changes")
    parser.add_argument("--format", choices=["onnx", "pt2"], default="onnx", help="ONNX or torch.export; default: onnx")
    parser.add_argument("--output", type=Path, help="default: model.onnx or model.pt2 in the run folder")
    parser.add_argument("--checkpoint", default="best", help="a name in RUN/checkpoints; default: best")
    arguments = parser.parse_intermixed_args()
    if arguments.output:
        runs.make_folder_of(arguments.output)

    import torch

    run, overrides = runs.find_with_overrides(arguments.words, runs.has_checkpoint)
    _, data, model, _, checkpoint = runs.load(run, arguments.checkpoint, overrides)
    model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    model.eval()
    data.prepare_data()
    data.setup("test")
    inputs = next(iter(data.test_dataloader()))[0]
    example = torch.cat([inputs, inputs])[:2]  # exporters take a batch size of 1 for a constant

    path = arguments.output or run / f"model.{arguments.format}"
    unfinished = path.with_name(f".{path.stem}.unfinished.{arguments.format}")
    write, read = (write_onnx, read_onnx) if arguments.format == "onnx" else (write_pt2, read_pt2)
    try:
        export(write, model, example, unfinished)
        difference = largest_difference(model, read(unfinished), inputs)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    print(f"{runs.shown(run)}, {arguments.checkpoint}.ckpt")
    print(f"{runs.shown(path.parent) / path.name}: takes {inputs.dtype} (N, {', '.join(map(str, inputs.shape[1:]))})")
    print(f"largest difference to the model, on {len(inputs)} test samples: {difference:.2g}")


def export(
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
    except (Mistake, OSError):
        raise
    except Exception as error:  # of many types, depending on what it is
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise Mistake(f"The model cannot be exported: {reason}\n{FULL_ERROR}=1 shows where.") from error
    finally:
        logging.disable(logging.NOTSET)


def largest_difference(model: "nn.Module", exported: "Callable[[Tensor], Tensor]", inputs: "Tensor") -> float:
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
            raise Mistake(f"The exported model is {difference:.2g} away from the model: nothing was written.")
        largest = max(largest, difference)
    return largest


def write_onnx(model: "nn.Module", example: "Tensor", path: Path) -> None:
    import torch

    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise Mistake(f'{error}. Install what export.py needs: pip install -e ".[export]"') from error
    names = {"input_names": ["input"], "output_names": ["output"]}
    dynamic = (({0: torch.export.Dim("batch")}),)
    torch.onnx.export(
        model, (example,), path, dynamo=True, dynamic_shapes=dynamic, external_data=False, verbose=False, **names
    )


def read_onnx(path: Path) -> "Callable[[Tensor], Tensor]":
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {"input": batch.numpy()})[0])


def write_pt2(model: "nn.Module", example: "Tensor", path: Path) -> None:
    import torch

    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)


def read_pt2(path: Path) -> "Callable[[Tensor], Tensor]":
    import torch

    return torch.export.load(path).module()


if __name__ == "__main__":
    main()
