"""Data module for noisy points on a line."""

from collections.abc import Sequence

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from torch_starter.data.batches import BatchLoader, TensorBatches, shuffle_seed


class LinearDataModule(LightningDataModule):
    """Points (x, y) with y = slope * x + intercept + noise * N(0, 1).

    The x values of training points are evenly spaced in [-10, 10]; those of validation and test points are uniformly
    distributed there. Batches are pairs of float32 tensors of shape (N, 1).

    Args:
        slope: slope of the true line.
        intercept: intercept of the true line.
        noise: standard deviation of y around the true line.
        num_train: number of training points.
        num_val: number of validation points.
        num_test: number of test points.
        batch_size: points per step.
        seed: seed of the noise, the validation and test points, and the order of the batches.

    Raises:
        MisconfigurationException: if a number of points is less than 1.
    """

    def __init__(
        self,
        slope: float,
        intercept: float,
        noise: float,
        num_train: int,
        num_val: int,
        num_test: int,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        if min(num_train, num_val, num_test) < 1:
            raise MisconfigurationException(
                f"data.num_train, num_val, num_test are {num_train}, {num_val}, {num_test}; each must be at least 1."
            )
        self.slope = slope
        self.intercept = intercept
        self.noise = noise
        self.batch_size = batch_size
        self.seed = seed

        generator = torch.Generator().manual_seed(seed)
        self.train_set = self._points(torch.linspace(-10, 10, num_train), generator)
        self.val_set = self._points(torch.rand(num_val, generator=generator) * 20 - 10, generator)
        self.test_set = self._points(torch.rand(num_test, generator=generator) * 20 - 10, generator)

    def _points(self, x: torch.Tensor, generator: torch.Generator) -> TensorBatches:
        y = self.slope * x + self.intercept + self.noise * torch.randn(len(x), generator=generator)
        return TensorBatches(x[:, None], y[:, None])

    def find_inputs(self, words: Sequence[str]) -> Sequence[str]:
        """Return the arguments of `predict.py`, each of which is a number."""
        return words

    def read_input(self, word: str) -> torch.Tensor:
        """Return a number as a float32 tensor of shape (1,).

        Raises:
            ValueError: if ``word`` is not a number.
        """
        try:
            return torch.tensor([float(word)])
        except ValueError:
            raise ValueError("it is not a number") from None

    def train_dataloader(self):
        return BatchLoader(self.train_set, self.batch_size, shuffle_seed(self))

    def val_dataloader(self):
        return BatchLoader(self.val_set, self.batch_size)

    def test_dataloader(self):
        return BatchLoader(self.test_set, self.batch_size)
