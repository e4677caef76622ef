"""Predicts named inputs with a loaded run, in order, while worker processes read further inputs."""

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .mistakes import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from .loaded_run import Run

Row = dict[str, Any]
Write = Callable[[list[Row]], None]

# For data modules without batch_size.
BATCH_SIZE = 32


def find_inputs(run: "Run", words: Sequence[str], is_inverted: bool = False) -> list[str]:
    """Return the names of the inputs that command-line arguments refer to.

    Args:
        run: A run, see ``load_run``.
        words: Command-line arguments.
        is_inverted: Whether the samples are to be inverted.

    Raises:
        UserError: If the data module cannot read inputs, or cannot invert them.
    """
    if not hasattr(run.data, "read_input"):
        raise UserError(
            f"{type(run.data).__name__} must define find_inputs and read_input; see torch_starter/protocols.py."
        )
    if is_inverted and not hasattr(run.data, "invert"):
        raise UserError(f"{type(run.data).__name__} cannot invert inputs. Remove --invert.")
    return list(run.data.find_inputs(words))


def predict(
    run: "Run",
    names: Sequence[str],
    write: Write,
    num_workers: int | None = None,
    is_inverted: bool = False,
    has_bar: bool = False,
    top: int | None = None,
    has_probabilities: bool = False,
) -> list[str]:
    """Predict inputs in batches of ``data.batch_size``.

    The last digit of a result may depend on the batch size.

    Args:
        run: A run, see ``load_run``.
        names: Names of the inputs, see ``find_inputs``.
        write: Receives the rows of each batch, in order.
        num_workers: Number of worker processes that read inputs if there is more than one batch; None uses
            ``data.num_workers``.
        is_inverted: Whether to invert samples that are dark on bright, where training had bright on dark.
        has_bar: Whether to show a progress bar on standard error, if that is a terminal.
        top: Number of most probable classes per row; None: one.
        has_probabilities: Whether each row has the probability of every class.

    Returns:
        One line for each input that cannot be read.

    Raises:
        UserError: If ``top`` or ``has_probabilities`` is given, but the model returns no probabilities.
    """
    data, unreadable, readable = run.data, [], deque()
    read_input = _Inverted(data) if is_inverted else data.read_input
    if len(names) <= _batch_size(run):
        num_workers = 0
    elif num_workers is None:
        num_workers = getattr(data, "num_workers", 0)
    else:
        num_workers = max(0, num_workers)
    batches = _read(_Inputs(names, read_input), _batch_size(run), num_workers, readable, unreadable, has_bar)
    with contextlib.closing(batches):
        _predict_batches(run, batches, readable, write, top, has_probabilities)
    return unreadable


def predict_tensor(
    run: "Run", samples: "Tensor", write: Write, top: int | None = None, has_probabilities: bool = False
) -> None:
    """Predict samples ``(N, …)`` in the format of the data module. Rows name them by index; see ``predict``."""
    batches = iter(samples.split(_batch_size(run)))  # Lightning would take a tuple for several loaders
    _predict_batches(run, batches, deque(range(len(samples))), write, top, has_probabilities)


def _batch_size(run: "Run") -> int:
    return getattr(run.data, "batch_size", None) or BATCH_SIZE


def _predict_batches(
    run: "Run", batches: "Iterable[Tensor]", names: deque[Any], write: Write, top: int | None, has_probabilities: bool
) -> None:
    """Predict batches and write their rows.

    ``names`` is filled before or while the batches are produced. Indices have no columns from ``describe_input``.
    """
    from lightning.pytorch.callbacks import LambdaCallback

    describe = getattr(run.data, "describe_input", None)

    def on_predict_batch_end(trainer: Any, model: Any, output: "dict[str, Tensor]", *_: Any) -> None:
        rows = []
        for prediction in _rows(output, getattr(run.data, "class_names", None), top, has_probabilities):
            name = names.popleft()
            row = dict(describe(name)) if describe and isinstance(name, str) else {"input": str(name)}
            # A table may already have a column `label`.
            row |= {f"predicted_{key}" if key in row else key: value for key, value in prediction.items()}
            rows.append(row)
        write(rows)

    callback = LambdaCallback(on_predict_batch_end=on_predict_batch_end)
    run.trainer.callbacks.append(callback)
    try:
        run.trainer.predict(run.module, batches, return_predictions=False, ckpt_path=run.checkpoint, weights_only=True)
    finally:
        run.trainer.callbacks.remove(callback)


def _rows(
    output: "dict[str, Tensor]", classes: Sequence[str] | None, top: int | None, has_probabilities: bool
) -> "Iterable[Row]":
    """Convert the output of ``predict_step`` to rows, in which ``label`` is the name of the class."""
    output = dict(output)
    probabilities = output.pop("probabilities", None)
    if probabilities is None and (top or has_probabilities):
        raise UserError("The model returns no class probabilities. Remove --probabilities and --top.")

    def name(label: int) -> Any:
        return classes[label] if classes else label

    columns = {key: values.tolist() for key, values in output.items()}
    if "label" in columns:
        columns["label"] = [name(label) for label in columns["label"]]
    if probabilities is not None and top:
        most = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
        for place in range(1, most.values.shape[1]):
            columns[f"label_{place + 1}"] = [name(label) for label in most.indices[:, place].tolist()]
            columns[f"probability_{place + 1}"] = most.values[:, place].tolist()
    if probabilities is not None and has_probabilities:
        columns |= {f"probability_of_{name(label)}": column for label, column in enumerate(probabilities.T.tolist())}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


class _Inverted:
    """Reads and inverts an input. It is a class so that it can be pickled for worker processes."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __call__(self, name: str) -> "Tensor":
        return self.data.invert(self.data.read_input(name))


class _Inputs:
    """A data set that reads samples on access, and returns an error message for a sample that cannot be read."""

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


def _collate(samples: "list[Tensor | str]") -> "tuple[Tensor | None, list[str | None]]":
    """Return the readable samples, stacked, and for each sample its error message or None."""
    from torch.utils.data import default_collate

    tensors = [sample for sample in samples if not isinstance(sample, str)]
    errors = [sample if isinstance(sample, str) else None for sample in samples]
    # In a worker, default_collate stacks into shared memory. The result of torch.stack would be moved there later,
    # where no error is raised.
    return default_collate(tensors) if tensors else None, errors


def _read(
    inputs: _Inputs,
    batch_size: int,
    num_workers: int | None,
    readable: deque[str],
    unreadable: list[str],
    has_bar: bool,
) -> "Generator[Tensor]":
    """Yield batches of readable samples, in order; the last batch may be smaller.

    Args:
        inputs: All inputs.
        batch_size: Number of samples per batch.
        num_workers: Number of worker processes; None uses ``suggested_workers``.
        readable: Receives the names of the readable samples, in order.
        unreadable: Receives an error message for each unreadable input.
        has_bar: See ``predict``.
    """
    import rich.console
    import rich.progress
    import torch
    from torch.utils.data import DataLoader

    from .data.batches import begin_worker, suggested_workers

    loader = DataLoader(
        inputs,  # pyrefly: ignore[bad-argument-type]
        batch_size,
        num_workers=suggested_workers() if num_workers is None else num_workers,
        collate_fn=_collate,
        worker_init_fn=begin_worker,
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
        task = bar.add_task("predict", total=len(inputs))
        left = iter(inputs.names)
        for samples, errors in loader:
            for error, name in zip(errors, left, strict=False):  # errors first, or zip would take a name too many
                readable.append(name) if error is None else unreadable.append(error)
            if samples is not None:
                waiting = samples if waiting is None else torch.cat([waiting, samples])
            while waiting is not None and len(waiting) >= batch_size:
                yield waiting[:batch_size]
                waiting = waiting[batch_size:]
            bar.advance(task, len(errors))
        if waiting is not None and len(waiting):
            yield waiting
