"""Inputs in, predictions out: `python predict.py [RUN] INPUT… [--output predictions.csv]`."""

import argparse
import contextlib
import csv
import json
import math
import os
import signal
import sys
import textwrap
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, __file__.removesuffix("predict.py"))  # which PYTHONSAFEPATH and python -P leave out
import runs
from errors import Mistake, explained

if TYPE_CHECKING:
    from torch import Tensor

Row = dict[str, Any]

# Where the data module has none.
BATCH_SIZE = 32


@explained
def main() -> None:
    parser = argparse.ArgumentParser(
        usage="python predict.py [RUN] INPUT… [--output FILE] [--checkpoint CHECKPOINT] [--invert] [--num-workers N]",
        description="Numbers for a regression; image files, globs, folders for a classifier.",
    )
    parser.add_argument("words", nargs="+", metavar="RUN INPUT", help="a run folder (default: latest); inputs")
    parser.add_argument("--checkpoint", default="best", help="a name in RUN/checkpoints; default: best")
    parser.add_argument("--output", type=Path, help="a .csv or .json file to write to, instead of the terminal")
    parser.add_argument(
        "--invert", action="store_true", help="images: dark on bright, where training had bright on dark"
    )
    parser.add_argument("--num-workers", type=int, help="processes that read inputs; default: as the run has it")
    # For argparse -1e-3 is an option, and what begins with a blank is none.
    given = [f" {word}" if word.startswith("-") and is_number(word) else word for word in sys.argv[1:]]
    arguments = parser.parse_intermixed_args(given)
    words = [word.removeprefix(" ") for word in arguments.words]
    if arguments.output:
        refuse_output(arguments.output)

    runs.refuse_mistyped(words[0], is_input=is_number(words[0]) or any(letter in words[0] for letter in "*?["))
    run, words = runs.find(words, runs.has_checkpoint)
    print(f"{runs.shown(run)}, {arguments.checkpoint}.ckpt", file=sys.stderr)
    if not words:
        raise Mistake(f"What shall {runs.shown(run)} predict? Name numbers, picture files or folders.")
    _, data, model, trainer, checkpoint = runs.load(run, arguments.checkpoint, [])
    if not hasattr(data, "read_input"):
        raise Mistake(f"{type(data).__name__} has no find_inputs and read_input: see data/linear.py for both.")
    if arguments.invert:
        data.invert = True
    if arguments.num_workers is not None:
        data.num_workers = max(0, arguments.num_workers)

    from lightning.pytorch.callbacks import LambdaCallback

    names = list(data.find_inputs(words))
    classes = getattr(data, "class_names", None)
    readable: deque[str] = deque()  # names of the samples that are on their way through the model
    unreadable: list[str] = []

    def on_predict_batch_end(trainer: Any, model: Any, output: "dict[str, Tensor]", *_: Any) -> None:
        columns = {name: values.tolist() for name, values in output.items()}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        rows = [{"input": readable.popleft(), **row} for row in rows]
        write([row | {"label": classes[row["label"]]} for row in rows] if classes else rows)

    trainer.callbacks.append(LambdaCallback(on_predict_batch_end=on_predict_batch_end))
    with to_file(arguments.output) if arguments.output else to_terminal(names, classes or []) as write:
        # Between rows on the same terminal a bar would only flicker.
        has_bar = bool(arguments.output) or not sys.stdout.isatty()
        batch_size = getattr(data, "batch_size", None) or BATCH_SIZE
        with contextlib.closing(read(names, data, batch_size, readable, unreadable, has_bar)) as batches:
            trainer.predict(model, batches, ckpt_path=checkpoint, weights_only=True, return_predictions=False)
    if unreadable:
        sys.exit("\n".join(unreadable))


def is_number(word: str) -> bool:
    """Whether float reads a word of the command line."""
    try:
        return not math.isnan(float(word))
    except ValueError:
        return False


# Reading


class Inputs:
    """Samples by number, read when they are asked for; or, as text, why one cannot be read."""

    def __init__(self, names: Sequence[str], read_input: "Callable[[str], Tensor]") -> None:
        self.names = names
        self.read_input = read_input

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> "Tensor | str":
        try:
            return self.read_input(self.names[number])
        except (OSError, ValueError) as error:
            return f"{self.names[number]}: skipped, {error}"


def collate(samples: "list[Tensor | str]") -> "tuple[Tensor | None, list[str | None]]":
    """The samples that can be read, stacked; and for each sample what keeps it from that, or None."""
    from torch.utils.data import default_collate

    tensors = [sample for sample in samples if not isinstance(sample, str)]
    errors = [sample if isinstance(sample, str) else None for sample in samples]
    # In a worker it stacks into shared memory; what torch.stack made would get there where no error is raised.
    return default_collate(tensors) if tensors else None, errors


def ignore_ctrl_c(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the first process ends the workers


def read(
    names: list[str], data: Any, batch_size: int, readable: deque[str], unreadable: list[str], has_bar: bool
) -> "Generator[Tensor]":
    """Batches of ``batch_size`` samples that can be read, in order, as evaluate.py takes them.

    The last digit of a result depends on how many are in a batch. More inputs than that are read by worker processes,
    as many as ``data.num_workers`` says.

    Args:
        names: of the inputs.
        data: the data module.
        batch_size: samples per batch; the last batch has what is left.
        readable: gets the names of the samples, in order.
        unreadable: gets a line for each of the others.
        has_bar: whether standard error, if it is a terminal, shows how far it is.
    """
    import rich.console
    import rich.progress
    import torch
    from lightning.fabric.utilities.data import suggested_max_num_workers
    from torch.utils.data import DataLoader

    num_workers = getattr(data, "num_workers", 0) if len(names) > batch_size else 0
    loader = DataLoader(
        Inputs(names, data.read_input),  # pyrefly: ignore[bad-argument-type]
        batch_size,
        num_workers=min(8, suggested_max_num_workers(1)) if num_workers is None else num_workers,
        collate_fn=collate,
        worker_init_fn=ignore_ctrl_c,
    )
    console = rich.console.Console(stderr=True)
    waiting = None
    with rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
        console=console,
        disable=not (has_bar and console.is_terminal),
        transient=True,
        redirect_stdout=False,
    ) as bar:
        task = bar.add_task("predict", total=len(names))
        left = iter(names)
        for samples, errors in loader:
            for error, name in zip(errors, left, strict=False):  # errors first: it is the one that ends
                readable.append(name) if error is None else unreadable.append(error)
            if samples is not None:
                waiting = samples if waiting is None else torch.cat([waiting, samples])
            while waiting is not None and len(waiting) >= batch_size:
                yield waiting[:batch_size]
                waiting = waiting[batch_size:]
            bar.advance(task, len(errors))
        if waiting is not None and len(waiting):
            yield waiting


# Writing


def refuse_output(path: Path) -> None:
    """Raises Mistake if the predictions could not be written there, before they are made."""
    if path.suffix not in (".csv", ".json"):
        raise Mistake(f"--output {path}: the name must end in .csv or .json.")
    runs.make_folder_of(path)
    if runs.is_run(path.parent) and path.name in ("results.json", "environment.json", "split.csv"):
        raise Mistake(f"--output {path} is a file of the run. Choose another: {path.with_name('predictions.csv')}")
    if path.is_dir():
        raise Mistake(f"--output {path} is a folder. Name a file in it: {path / 'predictions.csv'}")


@contextlib.contextmanager
def to_file(path: Path) -> Iterator[Callable[[list[Row]], None]]:
    """Writes rows of equal keys as CSV or JSON, by the name of the file, as they come.

    They go to PATH.part, which takes the name of ``path`` at the end: the named file is whole, or as it was.
    """
    part = path.with_name(f"{path.name}.part")
    count = 0

    def write(rows: list[Row]) -> None:
        nonlocal count
        if path.suffix == ".json":
            for row in rows:
                values = {
                    name: None if isinstance(value, float) and not math.isfinite(value) else value
                    for name, value in row.items()
                }
                file.write((",\n" if count else "[\n") + textwrap.indent(json.dumps(values, indent=2), "  "))
                count += 1  # at once: an interruption says how many there are
        else:
            writer = csv.DictWriter(file, rows[0] if rows else ["input"], lineterminator="\n")
            if not count:
                writer.writeheader()
            for row in rows:
                writer.writerow(row)
                count += 1
        file.flush()

    # As file names are: not each of them is text.
    with part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        try:
            yield write
        except BaseException:
            print(f"stopped; {count} predictions are in {part}", file=sys.stderr)
            raise
        if path.suffix == ".json":
            file.write("\n]\n" if count else "[]\n")
        elif not count:
            write([])
    os.replace(part, path)
    print(f"{count} predictions in {path}")


@contextlib.contextmanager
def to_terminal(names: Sequence[str], classes: Sequence[str]) -> Iterator[Callable[[list[Row]], None]]:
    """Prints rows of equal keys in columns, as they come."""
    # A single long name is not worth blanks in all other rows.
    longest = min(60, max((len(printable(name)) for name in names), default=0))
    widths = {"input": max(longest, len("input")), "label": max((len(printable(name)) for name in classes), default=5)}
    has_header = False

    def write(rows: list[Row]) -> None:
        nonlocal has_header
        for row in ([] if has_header else [{name: name for name in rows[0]}]) + rows:
            cells = [f"{value:.4f}" if isinstance(value, float) else printable(str(value)) for value in row.values()]
            first, *others = (
                f"{cell:<{widths.get(name, 11)}}" if name in widths else f"{cell:>11}"
                for name, cell in zip(row, cells, strict=True)
            )
            print("  ".join([first, *others]).rstrip(), flush=True)
        has_header = True

    yield write


def printable(text: str) -> str:
    """A text without what would move the cursor of a terminal, or cannot be encoded."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


if __name__ == "__main__":
    main()
