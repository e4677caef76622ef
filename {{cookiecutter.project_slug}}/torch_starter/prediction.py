"""Predictions of a loaded run for inputs by name, in order, while further inputs are read."""

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

# Where the data module has none.
BATCH_SIZE = 32


def find_inputs(run: "Run", words: Sequence[str], is_inverted: bool = False) -> list[str]:
    """The names of the inputs that the words of a command line mean.

    Raises:
        Mistake: if the data module cannot read inputs, or invert them.
    """
    if not hasattr(run.data, "read_input"):
        raise UserError(
            f"{type(run.data).__name__} has no find_inputs and read_input: see torch_starter/protocols.py for both."
        )
    if is_inverted and not hasattr(run.data, "invert"):
        raise UserError(f"{type(run.data).__name__} has nothing to invert. Remove --invert.")
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
    """Predicts inputs in batches of ``data.batch_size``.

    The last digit of a result depends on how many samples are in a batch.

    Args:
        run: see ``load_run``.
        names: of the inputs, see ``find_inputs``.
        write: is given the rows of each batch, in order.
        num_workers: processes that read inputs, if there are more than a batch; None: ``data.num_workers``.
        is_inverted: whether samples are inverted: dark on bright, where training had bright on dark.
        has_bar: whether standard error, if it is a terminal, shows the progress.
        top: how many of the likeliest classes a row has; None: the first.
        has_probabilities: whether a row has the probability of each class.

    Returns:
        a line for each input that cannot be read.

    Raises:
        Mistake: if ``top`` or ``has_probabilities`` is asked of a model that gives no probabilities.
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
    """Predicts samples (N, …), as the data module serves them, by their numbers."""
    batches = iter(samples.split(_batch_size(run)))  # Lightning would take a tuple for several loaders
    _predict_batches(run, batches, deque(range(len(samples))), write, top, has_probabilities)


def _batch_size(run: "Run") -> int:
    return getattr(run.data, "batch_size", None) or BATCH_SIZE


def _predict_batches(
    run: "Run", batches: "Iterable[Tensor]", names: deque[Any], write: Write, top: int | None, has_probabilities: bool
) -> None:
    """Args: names: are filled before, or while, their samples are served; numbers have no cells of their own."""
    from lightning.pytorch.callbacks import LambdaCallback

    describe = getattr(run.data, "describe_input", None)

    def on_predict_batch_end(trainer: Any, model: Any, output: "dict[str, Tensor]", *_: Any) -> None:
        rows = []
        for prediction in _rows(output, getattr(run.data, "class_names", None), top, has_probabilities):
            name = names.popleft()
            row = dict(describe(name)) if describe and isinstance(name, str) else {"input": str(name)}
            # A table may have a column `label` of its own.
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
    """What ``predict_step`` returns, by row; ``label`` is the name of the class."""
    output = dict(output)
    probabilities = output.pop("probabilities", None)
    if probabilities is None and (top or has_probabilities):
        raise UserError("The model gives no probabilities of classes. Remove --probabilities and --top.")

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
    """``data.read_input``, inverted by ``data.invert``; a class, so that it can be sent to worker processes."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __call__(self, name: str) -> "Tensor":
        return self.data.invert(self.data.read_input(name))


class _Inputs:
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


def _collate(samples: "list[Tensor | str]") -> "tuple[Tensor | None, list[str | None]]":
    """The samples that can be read, stacked; and for each sample what keeps it from that, or None."""
    from torch.utils.data import default_collate

    tensors = [sample for sample in samples if not isinstance(sample, str)]
    errors = [sample if isinstance(sample, str) else None for sample in samples]
    # In a worker it stacks into shared memory; what torch.stack made would get there where no error is raised.
    return default_collate(tensors) if tensors else None, errors


def _read(
    inputs: _Inputs,
    batch_size: int,
    num_workers: int | None,
    readable: deque[str],
    unreadable: list[str],
    has_bar: bool,
) -> "Generator[Tensor]":
    """Batches of ``batch_size`` samples that can be read, in order; the last has what is left.

    Args:
        inputs: all of them.
        batch_size: samples per batch.
        num_workers: processes that read; None: ``suggested_workers``.
        readable: gets the names of the samples, in order.
        unreadable: gets a line for each of the others.
        has_bar: see ``predict``.
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
