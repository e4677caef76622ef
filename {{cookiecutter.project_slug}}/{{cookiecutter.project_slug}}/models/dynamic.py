"""A network whose computation depends on its input."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Dynamic(nn.Module):
    """Two perceptrons; the sum of its (normalized) pixels decides which of them an image passes through.

    An ordinary Python ``if`` decides for each batch, and autograd records the operations that run. Each image takes its
    own path, so its logits do not depend on the rest of its batch.

    Args:
        image_shape: channels, height and width of the images.
        num_classes: number of classes.
        hidden: width of the hidden layer of each path.
    """

    def __init__(self, image_shape: Sequence[int], num_classes: int, hidden: int) -> None:
        super().__init__()
        self.bright, self.dark = (
            nn.Sequential(nn.Linear(math.prod(image_shape), hidden), nn.ReLU(), nn.Linear(hidden, num_classes))
            for _ in range(2)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (N, C, H, W) to logits (N, num_classes)."""
        images = images.flatten(1)
        is_bright = images.sum(dim=1) > 0
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            # An exported or traced graph is the same for all inputs, so it contains both paths.
            return torch.where(is_bright[:, None], self.bright(images), self.dark(images))
        if is_bright.all():
            return self.bright(images)
        if not is_bright.any():
            return self.dark(images)
        logits = torch.cat([self.bright(images[is_bright]), self.dark(images[~is_bright])])
        places = torch.cat([is_bright.nonzero(), (~is_bright).nonzero()]).flatten()
        return logits[places.argsort()]
