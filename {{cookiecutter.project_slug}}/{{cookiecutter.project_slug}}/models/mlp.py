"""A multilayer perceptron."""

import math
from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU and dropout between them, applied to all pixels of an image.

    Args:
        image_shape: channels, height and width of the images.
        num_classes: number of classes.
        hidden: width of each hidden layer.
        dropout: probability of setting an activation to 0 during training, in [0, 1).
    """

    def __init__(self, image_shape: Sequence[int], num_classes: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(image_shape)
        for out_features in hidden:
            layers += [nn.Linear(width, out_features), nn.ReLU(), nn.Dropout(dropout)]
            width = out_features
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (N, C, H, W) to logits (N, num_classes)."""
        return self.layers(images)
