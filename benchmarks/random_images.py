"""Random images of CIFAR-10's shape, for machines without its files; an epoch takes the same time."""

from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import OmegaConf

# The configs contain the name of the project's package; speed.py and gpu.py run in the project's folder.
ImageDataModule: Any = get_class(OmegaConf.load("configs/data/mnist.yaml")["_target_"])


class RandomImages(ImageDataModule):
    """The project's image data module with 50,000 training and 10,000 test images drawn at random."""

    def prepare_data(self) -> None:
        self.class_names = self.class_names or [str(label) for label in range(10)]

    def _load(self, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        count, generator = 50_000 if train else 10_000, torch.Generator().manual_seed(0)
        images = torch.randint(256, (count, *self.image_shape), generator=generator, dtype=torch.uint8)
        return images, torch.randint(10, (count,), generator=generator)
