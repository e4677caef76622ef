"""Handwritten digits, from files in MNIST's format."""

import math
from itertools import pairwise
from pathlib import Path

import torch
from lightning import LightningDataModule, LightningModule
from torch import nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy
from torchvision.datasets import MNIST

from torch_starter.data.augmentation import augmentation
from torch_starter.data.batches import BatchLoader, TensorBatches, make_workers, shuffle_seed
from torch_starter.data.download import download
from torch_starter.data.images import find_images, normalization_constants, read_image, resize_and_crop
from torch_starter.optimization import optimizer_and_scheduler


class Digits(LightningDataModule):
    """Batches of uint8 images (N, 1, 28, 28) and int64 labels (N,)."""

    dataset = MNIST

    def __init__(
        self,
        root,
        batch_size,
        num_val,
        augmentation,
        num_workers,
        seed,
        image_shape,
        num_classes,
        class_names,
        mean,
        std,
    ):
        super().__init__()
        self.root = Path(root)
        self.batch_size = batch_size
        self.num_val = num_val
        self.augmentation = augmentation
        self.num_workers = num_workers
        self.seed = seed
        self.image_shape = image_shape
        self.num_classes = num_classes
        self.class_names = class_names
        self.mean = mean
        self.std = std

    def prepare_data(self):
        download(MNIST, self.root, [{"train": True}, {"train": False}])

    def facts(self):
        self.prepare_data()
        self.class_names = [name.partition(" - ")[0] for name in MNIST.classes]
        return {"class_names": self.class_names}

    def setup(self, stage):
        if stage == "test":
            self.test_set = TensorBatches(*self._load(train=False))
            return
        images, labels = self._load(train=True)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
        val, train = order[: self.num_val], order[self.num_val :]
        augment = augmentation(self.augmentation, self.seed)
        self.val_set = TensorBatches(images[val], labels[val])
        self.train_set = TensorBatches(images[train], labels[train], augment=augment)
        is_slow = self.train_set.is_slow
        self.workers = make_workers([self.train_set, self.val_set], self.num_workers) if is_slow else None

    def _load(self, train):
        split = MNIST(self.root, train)
        return split.data[:, None], split.targets

    def find_inputs(self, words):
        return find_images(words)

    def read_input(self, path):
        return resize_and_crop(read_image(path, 1), self.image_shape)

    def invert(self, image):
        return 255 - image

    def train_dataloader(self):
        return BatchLoader(self.train_set, self.batch_size, shuffle_seed(self), self.workers)

    def val_dataloader(self):
        return BatchLoader(self.val_set, self.batch_size, workers=self.workers)

    def test_dataloader(self):
        return BatchLoader(self.test_set, self.batch_size)

    def teardown(self, stage):
        if getattr(self, "workers", None):
            self.workers.stop()

    def on_exception(self, exception):
        self.teardown("fit")


class CNN(nn.Sequential):
    def __init__(self, image_shape, num_classes, channels):
        layers, scale = [], 2 ** len(channels)
        for inputs, outputs in pairwise([image_shape[0], *channels]):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(outputs), nn.ReLU()]
        features = channels[-1] * (image_shape[1] // scale) * (image_shape[2] // scale)
        super().__init__(*layers, nn.Flatten(), nn.Linear(features, num_classes))


class MLP(nn.Sequential):
    def __init__(self, image_shape, num_classes, hidden, dropout):
        widths = [math.prod(image_shape), *hidden]
        layers = [nn.Flatten()]
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
        super().__init__(*layers, nn.Linear(widths[-1], num_classes))


class Classifier(LightningModule):
    def __init__(self, network, num_classes, mean, std, compile, optimizer, scheduler):
        super().__init__()
        self.network = network
        if compile:
            self.network.compile()
        for name, values in normalization_constants(mean, std).items():
            self.register_buffer(name, values)
        labels = f"int64 (N,) from 0 to {num_classes - 1}"
        self.batch_format = {"images": f"uint8 (N, {len(mean)}, H, W)", "labels": labels}
        self.train_acc, self.val_acc, self.test_acc = (MulticlassAccuracy(num_classes, average="micro") for _ in "abc")
        self.optimizer = optimizer
        self.scheduler = scheduler

    @property
    def backbone(self):
        return nn.Sequential(*list(self.network)[:-1])

    def forward(self, images):
        return self.network((images / 255 - self.mean) / self.std)

    def training_step(self, batch):
        return self._step(batch, "train")

    def validation_step(self, batch):
        return self._step(batch, "val")

    def test_step(self, batch):
        return self._step(batch, "test")

    def predict_step(self, images):
        probabilities = self(images).softmax(dim=1)
        probability, label = probabilities.max(dim=1)
        return {"label": label, "probability": probability, "probabilities": probabilities}

    def _step(self, batch, stage):
        images, labels = batch
        logits = self(images)
        loss = cross_entropy(logits, labels)
        accuracy = getattr(self, f"{stage}_acc")
        accuracy.update(logits, labels)
        self.log(f"{stage}/loss", loss, prog_bar=True)
        self.log(f"{stage}/acc", accuracy, prog_bar=True, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return optimizer_and_scheduler(self, self.optimizer, self.scheduler)
