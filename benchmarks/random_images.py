"""Random images of CIFAR-10's shape, for machines without its files: an epoch of them takes as long."""

from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import OmegaConf

# The name of the project's package stands in its configs; speed.py and gpu.py work in its folder.
ImageDataModule: Any = get_class(OmegaConf.load("configs/data/mnist.yaml")["_target_"])


class RandomImages(ImageDataModule):
    """The project's data module, given 50,000 and 10,000 random images in place of files."""

    def prepare_data(self) -> None:
        self.class_names = self.class_names or [str(label) for label in range(10)]

    def _load(self, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        count, chance = 50_000 if train else 10_000, torch.Generator().manual_seed(0)
        images = torch.randint(256, (count, *self.image_shape), generator=chance, dtype=torch.uint8)
        return images, torch.randint(10, (count,), generator=chance)
