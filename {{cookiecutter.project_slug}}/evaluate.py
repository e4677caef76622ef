"""The metrics of a run: `python evaluate.py [RUN] [--split test] [--checkpoint best] [--json] [key=value …]`."""

import argparse
import sys

sys.path.insert(0, __file__.removesuffix("evaluate.py"))  # which PYTHONSAFEPATH and python -P leave out
import runs
from errors import Mistake, explained


@explained
def main() -> None:
    parser = argparse.ArgumentParser(
        usage="python evaluate.py [RUN] [--split SPLIT] [--checkpoint CHECKPOINT] [--json] [key=value …]",
        description="The metrics of a run, on any split, at any checkpoint.",
    )
    parser.add_argument("words", nargs="*", metavar="RUN key=value", help="a run folder (default: latest); changes")
    parser.add_argument("--split", choices=["train", "val", "test"], default="test", help="default: test")
    parser.add_argument("--checkpoint", default="best", help="a name in RUN/checkpoints; default: best")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_intermixed_args()

    run, overrides = runs.find_with_overrides(arguments.words, runs.has_checkpoint)
    _, data, model, trainer, checkpoint = runs.load(run, arguments.checkpoint, overrides)
    if arguments.split == "test":
        found = trainer.test(model, data, ckpt_path=checkpoint, weights_only=True, verbose=False)
    elif arguments.split == "val":
        found = trainer.validate(model, data, ckpt_path=checkpoint, weights_only=True, verbose=False)
    else:
        data.augmentation = None  # as they are, not as training sees them
        # Lightning validates on whatever it is given, and calls it so.
        data.prepare_data()
        data.setup("fit")
        loader = data.train_dataloader()
        trainer.limit_val_batches = trainer.limit_train_batches
        found = trainer.validate(model, loader, ckpt_path=checkpoint, weights_only=True, verbose=False)
        found = [{name.replace("val/", "train/", 1): value for name, value in metrics.items()} for metrics in found]
    if not found:
        raise Mistake(f"Nothing was measured: {arguments.split} has no batch, or trainer.limit_…_batches is 0.")
    (metrics,) = found

    if arguments.json:
        about = {"run": str(run), "checkpoint": arguments.checkpoint, "split": arguments.split}
        print(runs.to_json(about | {"metrics": metrics}))
        return
    print(f"{runs.shown(run)}, {arguments.checkpoint.removesuffix('.ckpt')}.ckpt")
    for name, value in metrics.items():
        print(f"{name:<15} {value:.4f}")


if __name__ == "__main__":
    main()
