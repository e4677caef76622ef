"""Data that fits in memory, served a batch at a time."""

from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Generator, Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class TensorBatches(TensorDataset):
    """Tensors with one row per sample, from which a DataLoader takes whole batches.

    A DataLoader asks a dataset that has ``__getitems__`` for all samples of a batch at once, so that
    a batch costs one index operation instead of one call per sample and a copy to put them together.
    """

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return self[indices]


def dataloader(dataset: TensorBatches, batch_size: int, shuffle_seed: int | None = None) -> DataLoader[Any]:
    """Batches in the order of the dataset or, given ``shuffle_seed``, in an order of their own each epoch.

    That order depends on the seed and the number of the epoch alone, not on what ran before: a resumed
    run sees the batches that it would have seen. (A DistributedSampler for one process is such a
    shuffle, and Lightning tells it the epoch.)

    Raises:
        MisconfigurationException: if ``batch_size`` is not a positive whole number.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise MisconfigurationException(f"data.batch_size is {batch_size}; it must be a whole number from 1.")
    sampler = None
    if shuffle_seed is not None:
        sampler = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=True, seed=shuffle_seed)
    # A generator of its own: a DataLoader draws from it at moments that differ between a resumed run and another.
    return DataLoader(dataset, batch_size, sampler=sampler, collate_fn=as_is, generator=Generator())


def as_is(batch: Any) -> Any:
    """A batch that needs no collating. (A named function, because worker processes must find it.)"""
    return batch
