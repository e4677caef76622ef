"""Linear regression on noisy points of a line."""

import torch
from lightning import Callback, LightningDataModule, LightningModule
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import mse_loss

from torch_starter.data.batches import BatchLoader, TensorBatches, shuffle_seed
from torch_starter.figures import is_due, log_figure
from torch_starter.optimization import optimizer_and_scheduler


class Points(LightningDataModule):
    """y = slope * x + intercept + noise * N(0, 1); batches of float32 x and y, both (N, 1)."""

    def __init__(self, slope, intercept, noise, num_train, num_val, num_test, batch_size, seed):
        super().__init__()
        self.batch_size = batch_size
        self.seed = seed
        generator = torch.Generator().manual_seed(seed)

        def points(count):
            x = torch.rand(count, 1, generator=generator) * 20 - 10
            return TensorBatches(x, slope * x + intercept + noise * torch.randn(count, 1, generator=generator))

        self.train_set, self.val_set, self.test_set = map(points, (num_train, num_val, num_test))

    def find_inputs(self, words):
        return words

    def read_input(self, word):
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


class LinearRegression(LightningModule):
    """Linear regression, y = weight * x + bias, with the squared error."""

    def __init__(self, in_features, compile, optimizer, scheduler):
        super().__init__()
        self.linear = nn.Linear(in_features, 1)
        if compile:
            self.linear.compile()
        self.batch_format = {"x": f"float32 (N, {in_features})", "y": "float32 (N, 1)"}
        self.optimizer = optimizer
        self.scheduler = scheduler

    def forward(self, x):
        return self.linear(x)

    def training_step(self, batch):
        return self._step(batch, "train")

    def validation_step(self, batch):
        self._step(batch, "val")

    def test_step(self, batch):
        self._step(batch, "test")

    def predict_step(self, x):
        return {"y": self(x).squeeze(1)}

    def _step(self, batch, stage):
        x, y = batch
        loss = mse_loss(self(x), y)
        self.log(f"{stage}/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return optimizer_and_scheduler(self, self.optimizer, self.scheduler)


class LineFigure(Callback):
    """Plots the line at some epochs and after the test."""

    def __init__(self, times):
        self.times = int(times)
        self.drawn = 0

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state_dict):
        self.drawn = state_dict["drawn"]

    def on_train_epoch_end(self, trainer, pl_module):
        if isinstance(pl_module, LinearRegression) and is_due(trainer, self.times, self.drawn):
            self._draw(trainer, pl_module, "train")
            self.drawn = trainer.current_epoch + 1

    def on_test_epoch_end(self, trainer, pl_module):
        if isinstance(pl_module, LinearRegression):
            self._draw(trainer, pl_module, "test")

    def _draw(self, trainer, model, stage):
        figure = Figure(figsize=(6.4, 4.8))
        ends = torch.tensor([[-10.0], [10.0]])
        figure.add_subplot().plot(ends, model(ends.to(model.device, model.dtype)).detach().cpu())
        log_figure(trainer, f"{stage}/fitted_line", figure)
