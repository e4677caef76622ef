"""Inputs in, predictions out: `python predict.py [RUN] INPUT… [--output predictions.csv]`."""

import argparse
import csv
import io
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import runs
from errors import Mistake, explained


@explained
def main() -> None:
    parser = argparse.ArgumentParser(
        usage="python predict.py [RUN] INPUT… [--output FILE] [--checkpoint CHECKPOINT] [--invert]",
        description="Numbers for a regression; picture files, globs, folders for a classifier.",
    )
    parser.add_argument("words", nargs="+", metavar="RUN INPUT", help="a run folder (default: latest); inputs")
    parser.add_argument("--checkpoint", choices=["best", "last"], default="best", help="default: best")
    parser.add_argument("--output", type=Path, help="a .csv or .json file to write to, instead of the terminal")
    parser.add_argument(
        "--invert", action="store_true", help="pictures: dark on bright, where training had bright on dark"
    )
    arguments = parser.parse_intermixed_args()
    if arguments.output and arguments.output.suffix not in (".csv", ".json"):
        raise Mistake(f"--output {arguments.output}: the name must end in .csv or .json.")

    import torch

    run, words = runs.find(arguments.words)
    if not words:
        raise Mistake(f"What shall {runs.shown(run)} predict? Name numbers, picture files or folders.")
    config, data, model, trainer, checkpoint = runs.load(run, arguments.checkpoint, [])
    if not hasattr(data, "read_input"):
        raise Mistake(f"{type(data).__name__} has no find_inputs and read_input: see data/linear.py for both.")
    if arguments.invert:
        data.invert = True

    inputs: list[str] = []
    unreadable: list[str] = []

    def readable() -> Iterator[torch.Tensor]:
        for name in data.find_inputs(words):
            try:
                yield data.read_input(name)
            except (OSError, ValueError) as error:
                unreadable.append(f"{name}: skipped, {error}")
            else:
                inputs.append(name)

    # As many at once as evaluate.py takes: the last digit of a result depends on it.
    samples = readable()
    batches = iter(lambda: list(itertools.islice(samples, config.data.batch_size)), [])
    outputs = trainer.predict(model, map(torch.stack, batches), ckpt_path=checkpoint, weights_only=True) or []

    rows: list[dict[str, object]] = []
    for output in outputs:
        columns = {name: values.tolist() for name, values in output.items()}
        rows += [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    rows = [{"input": name, **row} for name, row in zip(inputs, rows, strict=True)]
    if names := getattr(data, "class_names", None):
        rows = [row | {"label": names[row["label"]]} for row in rows]
    if arguments.output:
        write(arguments.output, rows)
        print(f"{len(rows)} predictions in {arguments.output}")
    elif rows:
        show(rows)
    if unreadable:
        sys.exit("\n".join(unreadable))


def write(path: Path, rows: list[dict[str, object]]) -> None:
    """Writes rows of equal keys as CSV or JSON, by the name of the file."""
    if path.suffix == ".json":
        runs.write_json(path, rows)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0] if rows else ["input"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    runs.write_text(path, text.getvalue())


def show(rows: list[dict[str, object]]) -> None:
    import rich
    import rich.box
    import rich.table
    from rich.markup import escape

    table = rich.table.Table(box=rich.box.SIMPLE)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "input" else "right", overflow="fold")
    for row in rows:
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else escape(str(value)) for value in row.values()))
    rich.print(table)


if __name__ == "__main__":
    main()
