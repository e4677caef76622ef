"""Batches of a data set, made in the main process or by worker processes that all splits share."""

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
    """A data set of tensors with one row per sample; a batch costs one index operation, not one call per sample.

    Args:
        *tensors: Tensors of equal length.
        augment: Maps a row of the first tensor, the epoch, and the index of the sample (or the number of its draw, see
            ``BatchLoader``) to the row that training sees. If it has an ``augment_batch`` method, see
            ``BatchAugmentation``, that method is called for all rows at once.
    """

    def __init__(self, *tensors: Tensor, augment: "Callable[[Tensor, int, int], Tensor] | None" = None) -> None:
        self.tensors = tensors
        self.augment = augment

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.tensors[0].device

    @property
    def nbytes(self) -> int:
        """The size of the tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def to(self, device: torch.device) -> "TensorBatches":
        """Return the same data set on another device; it makes its batches there."""
        return TensorBatches(*(tensor.to(device) for tensor in self.tensors), augment=self.augment)

    @property
    def is_slow(self) -> bool:
        """Whether rows are augmented one by one on the CPU, so that worker processes pay off."""
        return self.augment is not None and not hasattr(self.augment, "augment_batch")

    def __len__(self) -> int:
        return len(self.tensors[0])

    def batch(self, epoch: int, indices: Any) -> tuple[Tensor, ...]:
        """Return the rows at ``indices`` of each tensor, augmented for ``epoch``.

        Args:
            epoch: The epoch, from 0.
            indices: The samples or, with weights, the numbers of their draws (see ``BatchLoader``), int64 (N,).
        """
        draws = torch.as_tensor(indices, device=self.device)
        indices = draws % len(self)
        # On the CPU, index_select is several times faster than tensor[indices].
        first, *others = (tensor.index_select(0, indices) for tensor in self.tensors)
        if augment_batch := getattr(self.augment, "augment_batch", None):
            first = augment_batch(first, epoch, draws)
        elif self.augment:
            pairs = zip(first, draws.tolist(), strict=True)
            first = torch.stack([self.augment(row, epoch, draw) for row, draw in pairs])
        return first, *others


class BatchLoader:
    """Iterates over the batches of a data set, in order or, with ``shuffle_seed``, shuffled in each epoch.

    The order depends only on the seed and the epoch, so a resumed run sees the same batches as an uninterrupted one.
    This class does not extend DataLoader because a DataLoader neither passes the epoch to its workers nor shares them
    with another loader.

    In distributed training, each rank serves its share of every batch. Together, the ranks serve each sample exactly
    once.

    With ``weights``, an epoch draws as many samples as the data set has, with replacement. The loader then requests
    each sample by the number of its draw, ``index + place * len(dataset)``, where ``place`` counts the samples of the
    epoch from 0, so that augmentation can treat repeated samples differently.

    Args:
        dataset: The data set to serve.
        batch_size: Samples per batch, summed over all ranks. The last batch holds the remaining samples; it is merged
            into the previous batch if it has less than one sample per rank (in training: two).
        shuffle_seed: The seed of the order. None: the order of the data set.
        workers: Worker processes that hold ``dataset``. None: this process makes the batches.
        weights: Relative frequency of each sample, non-negative floating point (N,), for at most 2**24 samples. They
            have no effect without ``shuffle_seed``.

    Raises:
        MisconfigurationException: If ``batch_size`` is not a positive integer, there are more ranks than samples, or
            the numbers of weights and samples differ.
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
            raise MisconfigurationException(f"data.batch_size is {batch_size}; it must be a positive integer.")
        if weights is not None and len(weights) != len(dataset):
            raise MisconfigurationException(
                f"A BatchLoader has {len(weights)} weights for {len(dataset)} samples. Pass one weight per sample."
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle_seed = shuffle_seed
        self.workers = workers
        self.weights = weights
        self.epoch = 0
        self.place = {"epoch": 0, "batch": 0}
        self.start = self.place
        # Lightning looks for set_epoch here.
        self.batch_sampler = SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, from 0."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, from 0, and the number of its batches that were served."""
        return dict(self.place)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Start the next iteration at the position of another loader if both are in the same epoch."""
        self.start = state_dict

    def __len__(self) -> int:
        return len(self.batch_sizes())

    def batch_sizes(self) -> list[int]:
        """Return the number of samples in each batch, summed over all ranks."""
        count, processes = len(self.dataset), rank_and_count()[1]
        whole, rest = divmod(count, self.batch_size)
        sizes = [self.batch_size] * whole + [rest] * (rest > 0)
        # Batch normalization cannot be trained on one sample.
        minimum = processes if self.shuffle_seed is None else 2 * processes
        if len(sizes) > 1 and sizes[-1] < min(minimum, self.batch_size):
            sizes[-2:] = [sum(sizes[-2:])]
        if count == 0:
            raise MisconfigurationException("A split of the data has no samples. Give it at least one.")
        if sizes[-1] < processes:
            raise MisconfigurationException(
                f"{sizes[-1]} samples cannot be split across {processes} processes. Use fewer: trainer.devices=…"
            )
        return sizes

    def __iter__(self) -> Iterator[Any]:
        rank, count = rank_and_count()
        first = self.start["batch"] if self.start["epoch"] == self.epoch else 0
        self.start, self.place = {"epoch": 0, "batch": 0}, {"epoch": self.epoch, "batch": first}
        order = _to_device(self._order(), getattr(self.dataset, "device", None))
        rest = order.split(self.batch_sizes())[first:]
        own_batches = [batch.tensor_split(count)[rank] for batch in rest]
        if self.workers:
            batches = self.workers.batches(self.dataset, self.epoch, own_batches)
        else:
            batches = (self.dataset.batch(self.epoch, indices) for indices in own_batches)
        for batch in batches:
            self.place["batch"] += 1
            yield batch

    def _order(self) -> Tensor:
        """Return the indices or draws that all ranks together request in this epoch, int64 (N,)."""
        places = torch.arange(len(self.dataset))
        if self.shuffle_seed is None:
            return places
        generator = Generator().manual_seed(self.shuffle_seed + self.epoch)
        if self.weights is None:
            return torch.randperm(len(places), generator=generator)
        indices = torch.multinomial(self.weights, len(places), replacement=True, generator=generator)
        return indices + places * len(places)


def _to_device(order: Tensor, device: torch.device | None) -> Tensor:
    """Move the order of an epoch to the device of the data set."""
    if device is None or device.type == "cpu":
        return order
    if device.type == "cuda":
        order = order.pin_memory()  # Otherwise the copy waits for the GPU.
    return order.to(device, non_blocking=True)


def rank_and_count() -> tuple[int, int]:
    """Return the rank of this process and the world size."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def shuffle_seed(data: LightningDataModule) -> int | None:
    """Return the seed of the training batches; None if the trainer needs the same batches in each epoch.

    With ``trainer.overfit_batches``, Lightning disables the shuffling of a DataLoader, but not of other loaders.
    """
    return None if data.trainer is not None and data.trainer.overfit_batches else data.seed


def balanced_weights(labels: Tensor) -> Tensor:
    """Return weights with which a BatchLoader draws all classes equally often, in expectation.

    Args:
        labels: The labels of the samples, int64 (N,), from 0.

    Returns:
        1 / (number of samples of the class), float64 (N,).
    """
    return labels.bincount().double().reciprocal()[labels]


class Workers:
    """Worker processes that load batches for all splits and run until ``stop`` is called.

    One DataLoader per split would start a set of processes for each, and only one set would work at a time.

    Args:
        datasets: The data sets whose batches the workers make.
        count: The number of processes, at least 1.
    """

    def __init__(self, datasets: Sequence[protocols.Dataset], count: int) -> None:
        self.datasets = _DataSets(datasets)
        self.count = count
        self.requests: list[Any] = []
        self.loader = self._loader(self.requests)
        self.owner: object = None  # the iteration that uses the workers
        self.extra_loader: DataLoader[Any] | None = None  # serves batches while the workers are in use

    def batches(self, dataset: protocols.Dataset, epoch: int, batches: Sequence[Tensor]) -> Iterator[Any]:
        """Yield the batches of ``dataset`` at these indices, in order; the workers prefetch some of them.

        Args:
            dataset: One of the data sets of the workers.
            epoch: The epoch, from 0.
            batches: The indices of each batch, int64 (N,).
        """
        number = self.datasets.numbers[id(dataset)]
        requests = [(number, epoch, indices.numpy()) for indices in batches]
        if self.owner:
            # Validation within an epoch: the batches that are prefetched for the epoch must not be lost.
            self.extra_loader = self._loader(requests)
            yield from self.extra_loader
            self._stop_extra_loader()
            return
        token = self.owner = object()
        self.requests[:] = requests
        try:
            for made, batch in enumerate(self.loader, start=1):
                if made == len(requests):
                    self.owner = None  # Lightning does not call next() again after the last batch.
                yield batch
        finally:
            if self.owner is token:
                self.owner = None

    def stop(self) -> None:
        """Stop the processes now, not at garbage collection. They start again when needed."""
        stop_workers(self.loader)
        self._stop_extra_loader()
        self.owner = None

    def _stop_extra_loader(self) -> None:
        if self.extra_loader:
            stop_workers(self.extra_loader)
            self.extra_loader = None

    def _loader(self, requests: list[Any]) -> DataLoader[Any]:
        return DataLoader(
            self.datasets,
            batch_sampler=requests,
            num_workers=self.count,
            collate_fn=to_shared_memory,
            worker_init_fn=begin_worker,
            persistent_workers=True,
            pin_memory=torch.cuda.is_available(),
            # A DataLoader draws from its generator at moments that differ between resumed and uninterrupted runs.
            generator=Generator(),
        )


class _DataSets(Dataset[Any]):
    """Several data sets behind the interface of one; a request takes the place of a list of indices."""

    def __init__(self, datasets: Sequence[protocols.Dataset]) -> None:
        self.datasets = list(datasets)
        self.numbers = {id(dataset): number for number, dataset in enumerate(datasets)}

    def __getitems__(self, request: tuple[int, int, Any]) -> tuple[Tensor, ...]:
        number, epoch, indices = request
        return self.datasets[number].batch(epoch, indices)


def to_shared_memory(batch: Any) -> tuple[Tensor, ...]:
    """Move the tensors of a batch to shared memory and return the batch.

    Otherwise, a thread of torch's queue would move them. If shared memory is full, that thread only prints an error,
    and the training process waits forever. An error raised here reaches the training process.

    Raises:
        RuntimeError: If shared memory is full.
    """
    for tensor in batch:
        tensor.share_memory_()
    return batch


def begin_worker(worker: int) -> None:
    """Prepare a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main process stops the workers.
    gc.freeze()  # The collector writes to inherited objects when it visits them, which would copy their pages.


def suggested_workers() -> int:
    """Return a number of worker processes that suits the available cores: at most 8.

    It is at most 4 where a new process imports everything again and takes seconds to start (Windows, macOS).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return min(cores, 8 if multiprocessing.get_all_start_methods()[0] == "fork" else 4)


def make_workers(datasets: Sequence[protocols.Dataset], num_workers: int | None) -> Workers | None:
    """Return worker processes for the data sets, or None if ``num_workers`` is 0.

    Args:
        datasets: The data sets whose batches the workers make.
        num_workers: Workers per rank. None: ``suggested_workers()``.

    Raises:
        MisconfigurationException: If ``num_workers`` is not a non-negative integer.
    """
    if num_workers is None:
        num_workers = suggested_workers()
    if not isinstance(num_workers, int) or num_workers < 0:
        raise MisconfigurationException(
            f"data.num_workers is {num_workers}; it must be null or a non-negative integer."
        )
    return Workers(datasets, num_workers) if num_workers else None
