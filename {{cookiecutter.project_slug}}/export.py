"""Export the model of a run for other programs: `python export.py [RUN] [--format onnx|pt2] [--output FILE]`.

The exported model takes batches of any size with raw samples of the data set: uint8 images or numbers.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, __file__.removesuffix("export.py"))  # even with PYTHONSAFEPATH or python -P
from torch_starter import load_run, run_lookup
from torch_starter.explanations import explain_errors
from torch_starter.export import write_model
from torch_starter.files import create_parent_folder, display_path


@explain_errors
def main() -> None:
    parser = argparse.ArgumentParser(
        usage="python export.py [RUN] [--format FORMAT] [--output FILE] [--checkpoint CHECKPOINT] [key=value …]",
        description="Export the model, including its preprocessing, and compare the exported file with the model.",
    )
    parser.add_argument("words", nargs="*", metavar="RUN key=value", help="a run folder (default: latest); overrides")
    parser.add_argument("--format", choices=["onnx", "pt2"], default="onnx", help="ONNX or torch.export; default: onnx")
    parser.add_argument("--output", type=Path, help="default: model.onnx or model.pt2 in the run folder")
    parser.add_argument("--checkpoint", default="best", help="name of a file in RUN/checkpoints; default: best")
    arguments = parser.parse_intermixed_args()
    if arguments.output:
        create_parent_folder(arguments.output)

    folder, overrides = run_lookup.find_with_overrides(arguments.words, run_lookup.has_checkpoint)
    run = load_run(folder, arguments.checkpoint, overrides)
    run.data.prepare_data()
    run.data.setup("test")
    inputs = next(iter(run.data.test_dataloader()))[0]
    path = arguments.output or folder / f"model.{arguments.format}"
    difference = write_model(run.model, inputs, path, arguments.format)
    print(f"{display_path(folder)}, {arguments.checkpoint}.ckpt")
    print(f"{display_path(path.parent) / path.name}: takes {inputs.dtype} (N, {', '.join(map(str, inputs.shape[1:]))})")
    for number, line in enumerate(getattr(run.data, "describe_tensor", list)()):
        print(f"  {number:<4} {line}")
    print(f"largest difference from the model, on {len(inputs)} test samples: {difference:.2g}")


if __name__ == "__main__":
    main()
