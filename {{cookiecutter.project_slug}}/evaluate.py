"""Evaluate a run: `python evaluate.py [RUN] [--split test] [--checkpoint best] [--json] [key=value …]`."""

import argparse
import sys

sys.path.insert(0, __file__.removesuffix("evaluate.py"))  # even with PYTHONSAFEPATH or python -P
from torch_starter import load_run, run_lookup
from torch_starter.explanations import explain_errors
from torch_starter.files import display_path, to_json


@explain_errors
def main() -> None:
    parser = argparse.ArgumentParser(
        usage="python evaluate.py [RUN] [--split SPLIT] [--checkpoint CHECKPOINT] [--json] [key=value …]",
        description="Compute the metrics of a run on any split, with any checkpoint.",
    )
    parser.add_argument("words", nargs="*", metavar="RUN key=value", help="a run folder (default: latest); overrides")
    parser.add_argument("--split", choices=["train", "val", "test"], default="test", help="default: test")
    parser.add_argument("--checkpoint", default="best", help="name of a file in RUN/checkpoints; default: best")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_intermixed_args()

    folder, overrides = run_lookup.find_with_overrides(arguments.words, run_lookup.has_checkpoint)
    # Training images are evaluated without augmentation.
    run = load_run(folder, arguments.checkpoint, overrides, is_augmented=arguments.split != "train")
    metrics = run.evaluate(arguments.split)
    if arguments.json:
        about = {"run": str(folder), "checkpoint": arguments.checkpoint, "split": arguments.split}
        print(to_json(about | {"metrics": metrics}))
        return
    print(f"{display_path(folder)}, {arguments.checkpoint.removesuffix('.ckpt')}.ckpt")
    for name, value in metrics.items():
        print(f"{name:<15} {value:.4f}")


if __name__ == "__main__":
    main()
