"""Batches of a data set, made here or by worker processes that all its splits share."""

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from .. import protocols
from ..compat import stop_workers


class TensorBatches:
    """Tensors with one row per sample: a batch costs one index operation, not one call per sample.

    Args:
        tensors: of equal length.
        augment: from a row of the first tensor, the epoch and the index (or the number of the draw, see
            ``BatchLoader``), to what training sees of it. If it has ``augment_batch``, see ``BatchAugmentation``, that
            is called for all rows at once.
    """

    def __init__(self, *tensors: Tensor, augment: "Callable[[Tensor, int, int], Tensor] | None" = None) -> None:
        self.tensors = tensors
        self.augment = augment

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def to(self, device: torch.device) -> "TensorBatches":
        """The same data set on another device, where it makes its batches."""
        return TensorBatches(*(tensor.to(device) for tensor in self.tensors), augment=self.augment)

    @property
    def is_slow(self) -> bool:
        """Whether rows are augmented one by one: on the CPU, where worker processes are worth it."""
        return self.augment is not None and not hasattr(self.augment, "augment_batch")

    def __len__(self) -> int:
        return len(self.tensors[0])

    def batch(self, epoch: int, indices: Any) -> tuple[Tensor, ...]:
        draws = torch.as_tensor(indices, device=self.device)
        indices = draws % len(self)
        # On the CPU several times faster than tensor[indices].
        first, *others = (tensor.index_select(0, indices) for tensor in self.tensors)
        if augment_batch := getattr(self.augment, "augment_batch", None):
            first = augment_batch(first, epoch, draws)
        elif self.augment:
            pairs = zip(first, draws.tolist(), strict=True)
            first = torch.stack([self.augment(row, epoch, draw) for row, draw in pairs])
        return first, *others


class BatchLoader:
    """The batches of a data set: in its order or, given ``shuffle_seed``, in an order of their own each epoch.

    That order depends on the seed and the number of the epoch alone, not on what ran before: a resumed
    run sees the batches that it would have seen. It is a class of its own, and no DataLoader, because a DataLoader
    neither tells its workers the epoch nor shares them with another.

    Of several processes each serves its share of every batch, so that together they serve what one would: no sample
    twice, none left out.

    Given ``weights`` as well, an epoch draws as many samples as there are, with replacement. So that augmentation can
    treat the repetitions of a sample differently, the data set is not asked for the index of a sample but for the
    number of its draw, ``index + place * len(dataset)``, where ``place`` counts the samples of the epoch from 0.

    Args:
        dataset: what to serve.
        batch_size: samples per batch, of all processes together. The last batch has what is left; if that is too little
            for each process to have one, in training two, it joins the batch before.
        shuffle_seed: see above.
        workers: processes that have ``dataset``; without them batches are made here.
        weights: how often each sample is drawn, relative to the others, at least 0, floating point (N,); at most 2**24
            samples. Without ``shuffle_seed`` they have no effect.

    Raises:
        MisconfigurationException: if ``batch_size`` is not a positive whole number, there are more processes than
            samples, or not as many weights as samples.
    """

    def __init__(
        self,
        dataset: protocols.Dataset,
        batch_size: int,
        shuffle_seed: int | None = None,
        workers: "Workers | None" = None,
        weights: Tensor | None = None,
    ) -> None:
        if type(batch_size) is not int or batch_size < 1:
            raise MisconfigurationException(f"data.batch_size is {batch_size}; it must be a whole number from 1.")
        if weights is not None and len(weights) != len(dataset):
            raise MisconfigurationException(
                f"A BatchLoader has {len(weights)} weights for {len(dataset)} samples. Give it one for each sample."
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle_seed = shuffle_seed
        self.workers = workers
        self.weights = weights
        self.epoch = 0
        self.place = {"epoch": 0, "batch": 0}
        self.start = self.place
        # Where Lightning looks for set_epoch.
        self.batch_sampler = SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """The epoch, from 0, and how many of its batches were served."""
        return dict(self.place)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Lets the next iteration go on where another loader was, if it is of the same epoch."""
        self.start = state_dict

    def __len__(self) -> int:
        return len(self.batch_sizes())

    def batch_sizes(self) -> list[int]:
        """Samples in each batch, of all processes together."""
        count, processes = len(self.dataset), rank_and_count()[1]
        whole, rest = divmod(count, self.batch_size)
        sizes = [self.batch_size] * whole + [rest] * (rest > 0)
        # Batch normalisation cannot be trained on one sample.
        least = processes if self.shuffle_seed is None else 2 * processes
        if len(sizes) > 1 and sizes[-1] < min(least, self.batch_size):
            sizes[-2:] = [sum(sizes[-2:])]
        if count == 0:
            raise MisconfigurationException("A split of the data has no samples: give it at least one.")
        if sizes[-1] < processes:
            raise MisconfigurationException(
                f"{sizes[-1]} samples cannot be shared by {processes} processes. Take fewer: trainer.devices=…"
            )
        return sizes

    def __iter__(self) -> Iterator[Any]:
        rank, count = rank_and_count()
        first = self.start["batch"] if self.start["epoch"] == self.epoch else 0
        self.start, self.place = {"epoch": 0, "batch": 0}, {"epoch": self.epoch, "batch": first}
        order = _sent(self._order(), getattr(self.dataset, "device", None))
        rest = order.split(self.batch_sizes())[first:]
        ours = [batch.tensor_split(count)[rank] for batch in rest]
        if self.workers:
            batches = self.workers.batches(self.dataset, self.epoch, ours)
        else:
            batches = (self.dataset.batch(self.epoch, indices) for indices in ours)
        for batch in batches:
            self.place["batch"] += 1
            yield batch

    def _order(self) -> Tensor:
        """What the data set is asked for in this epoch, by all processes together: int64 (N,)."""
        places = torch.arange(len(self.dataset))
        if self.shuffle_seed is None:
            return places
        generator = Generator().manual_seed(self.shuffle_seed + self.epoch)
        if self.weights is None:
            return torch.randperm(len(places), generator=generator)
        indices = torch.multinomial(self.weights, len(places), replacement=True, generator=generator)
        return indices + places * len(places)


def _sent(order: Tensor, device: torch.device | None) -> Tensor:
    """The order of an epoch on the device of the data set, which is asked for parts of it."""
    if device is None or device.type == "cpu":
        return order
    if device.type == "cuda":
        order = order.pin_memory()  # otherwise the program waits for the GPU
    return order.to(device, non_blocking=True)


def rank_and_count() -> tuple[int, int]:
    """Number of this process, from 0, and how many train together."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def shuffle_seed(data: LightningDataModule) -> int | None:
    """The seed of a data module, for its training batches; None if its trainer wants the same batches in each epoch.

    (With ``trainer.overfit_batches`` Lightning stops the shuffling of a DataLoader, but not of another loader.)
    """
    return None if data.trainer is not None and data.trainer.overfit_batches else data.seed


def balanced_weights(labels: Tensor) -> Tensor:
    """Weights for a BatchLoader that draws each class as often as any other, in expectation.

    Args:
        labels: of the samples, int64 (N,), from 0.

    Returns:
        float64 (N,): 1 / number of samples of the class.
    """
    return labels.bincount().double().reciprocal()[labels]


class Workers:
    """Processes that make the batches of several data sets in turn, and stay until they are stopped.

    With a DataLoader for each split there would be as many processes again for each, of which only some work.

    Args:
        datasets: what they can be asked for.
        count: of processes, at least 1.
    """

    def __init__(self, datasets: Sequence[protocols.Dataset], count: int) -> None:
        self.datasets = _Several(datasets)
        self.count = count
        self.requests: list[Any] = []
        self.loader = self._loader(self.requests)
        self.owner: object = None  # of the batches that are under way
        self.passing: DataLoader[Any] | None = None  # of other batches in the meantime, by processes of its own

    def batches(self, dataset: protocols.Dataset, epoch: int, batches: Sequence[Tensor]) -> Iterator[Any]:
        """The batches of ``dataset`` at these indices, in order; some are made ahead of their time."""
        number = self.datasets.numbers[id(dataset)]
        requests = [(number, epoch, indices.numpy()) for indices in batches]
        if self.owner:
            # Validation in the middle of an epoch: what is made ahead for the epoch must not be lost.
            self.passing = self._loader(requests)
            yield from self.passing
            self._stop_passing()
            return
        me = self.owner = object()
        self.requests[:] = requests
        try:
            for made, batch in enumerate(self.loader, start=1):
                if made == len(requests):
                    self.owner = None  # here, because Lightning does not ask once more after the last
                yield batch
        finally:
            if self.owner is me:
                self.owner = None

    def stop(self) -> None:
        """Ends the processes, now and not when Python happens to collect this. When needed they start again."""
        stop_workers(self.loader)
        self._stop_passing()
        self.owner = None

    def _stop_passing(self) -> None:
        if self.passing:
            stop_workers(self.passing)
            self.passing = None

    def _loader(self, requests: list[Any]) -> DataLoader[Any]:
        return DataLoader(
            self.datasets,
            batch_sampler=requests,
            num_workers=self.count,
            collate_fn=to_shared_memory,
            worker_init_fn=begin_worker,
            persistent_workers=True,  # until they are stopped
            pin_memory=torch.cuda.is_available(),
            # Of its own: a DataLoader draws from it at moments that differ between a resumed run and another.
            generator=Generator(),
        )


class _Several(Dataset[Any]):
    """Data sets by number, as a DataLoader wants one: what it is asked for is not a list of indices but a request."""

    def __init__(self, datasets: Sequence[protocols.Dataset]) -> None:
        self.datasets = list(datasets)
        self.numbers = {id(dataset): number for number, dataset in enumerate(datasets)}

    def __getitems__(self, request: tuple[int, int, Any]) -> tuple[Tensor, ...]:
        number, epoch, indices = request
        return self.datasets[number].batch(epoch, indices)


def to_shared_memory(batch: Any) -> tuple[Tensor, ...]:
    """A batch of tensors in shared memory, as it travels to another process.

    Left to torch's queue, its tensors are moved there by a thread, which prints that the memory is full and goes on:
    the training process would wait for ever. What is raised here reaches it.

    Raises:
        RuntimeError: if shared memory is full.
    """
    for tensor in batch:
        tensor.share_memory_()
    return batch


def begin_worker(worker: int) -> None:
    """What each worker process does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the training process ends the workers
    gc.freeze()  # what was there before: to look at an object is to write to it, and so to copy its page


def suggested_workers() -> int:
    """How many worker processes suit the cores that this process has: up to 8.

    Up to 4 where a process takes seconds to start and imports everything anew (Windows, macOS).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return min(cores, 8 if multiprocessing.get_all_start_methods()[0] == "fork" else 4)


def make_workers(datasets: Sequence[protocols.Dataset], num_workers: int | None) -> Workers | None:
    """Worker processes for some data sets.

    Args:
        datasets: what they can be asked for.
        num_workers: how many, in each process that trains; 0 for none; None for ``suggested_workers``.

    Raises:
        MisconfigurationException: if ``num_workers`` is negative.
    """
    if num_workers is None:
        num_workers = suggested_workers()
    if not isinstance(num_workers, int) or num_workers < 0:
        raise MisconfigurationException(f"data.num_workers is {num_workers}; it can be null, 0, 1, 2, …")
    return Workers(datasets, num_workers) if num_workers else None
