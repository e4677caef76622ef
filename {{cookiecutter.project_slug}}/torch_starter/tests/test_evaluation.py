"""Tests of the evaluation batch size from the config or from the size of the network."""

from types import SimpleNamespace

import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from torch_starter.data.batches import BatchLoader, TensorBatches
from torch_starter.data.evaluation import activation_bytes, evaluation_batch_size

IMAGE_SHAPE = (1, 8, 8)


class Classifier(LightningModule):
    """A classifier of uint8 images (N, 1, 8, 8); ``channels`` determines the size of its activations."""

    def __init__(self, channels):
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(64 * channels, 10),
        )

    def forward(self, images):
        return self.network(images / 255)

    def validation_step(self, batch):
        self.log("val/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


class Data(LightningDataModule):
    image_shape = IMAGE_SHAPE

    def __init__(self, batch_size=16, eval_batch_size=None):
        super().__init__()
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size

    def val_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (500, *IMAGE_SHAPE), dtype=torch.uint8, generator=generator)
        return BatchLoader(TensorBatches(images, torch.arange(500) % 10), evaluation_batch_size(self))


def validated(tmp_path, data, channels):
    """Return the number of batches and the loss; the weights are the same in each call."""
    torch.manual_seed(0)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, **options)
    ((metrics),) = trainer.validate(Classifier(channels), data, verbose=False)
    return trainer.num_val_batches, metrics["val/loss"]


def test_activations_are_counted_in_each_layer():
    # The image; the outputs of convolution, normalization, dropout, and flattening; and the logits.
    assert activation_bytes(Classifier(2), IMAGE_SHAPE) == 4 * (64 + 4 * 2 * 64 + 10)


def test_tuple_outputs_of_a_layer_are_counted():
    class Recurrent(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.LSTM(8, 5, batch_first=True)

        def forward(self, images):
            return self.layer(images[:, 0] / 255)[0]

    # The image, eight outputs of 5 numbers each, and the two states.
    assert activation_bytes(Recurrent(), IMAGE_SHAPE) == 4 * (64 + 8 * 5 + 2 * 5)


def test_limited_batches_keep_the_training_batch_size(tmp_path):
    trainer = Trainer(accelerator="cpu", logger=False, limit_val_batches=2, default_root_dir=tmp_path)
    seen = []

    class Watched(Classifier):
        def validation_step(self, batch):
            seen.append(len(batch[0]))

    trainer.validate(Watched(1), Data(), verbose=False)
    assert seen == [16, 16]


def test_small_network_uses_larger_batches_with_same_result(tmp_path):
    batches, loss = validated(tmp_path, Data(), channels=1)
    one_by_one, same = validated(tmp_path, Data(eval_batch_size=16), channels=1)
    assert (batches, one_by_one) == ([1], [32])
    assert loss == pytest.approx(same)


def test_large_network_keeps_the_training_batch_size(tmp_path):
    assert validated(tmp_path, Data(batch_size=125), channels=512)[0] == [4]


def test_counting_does_not_change_model_or_random_state():
    model = Classifier(2).train()
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    activation_bytes(model, IMAGE_SHAPE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("strategy", [None, FSDPStrategy()])
def test_sharded_network_keeps_the_training_batch_size(strategy):
    data = Data(batch_size=7)
    limits = {"testing": False, "limit_val_batches": 1.0}
    data.trainer = strategy and SimpleNamespace(strategy=strategy, **limits)  # pyrefly: ignore
    assert evaluation_batch_size(data) == 7


@pytest.mark.parametrize("size", [0, -1, 2.5, "many"])
def test_invalid_size_is_rejected(size):
    with pytest.raises(
        MisconfigurationException, match=f"data.eval_batch_size is {size}; it must be null or a positive"
    ):
        evaluation_batch_size(Data(eval_batch_size=size))


def test_unsuitable_image_shape_keeps_the_training_batch_size(tmp_path):
    data = Data(batch_size=9)
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.strategy.connect(Classifier(1))
    data.trainer = trainer
    data.image_shape = (1, 5, 5)  # pyrefly: ignore
    assert evaluation_batch_size(data) == 9
