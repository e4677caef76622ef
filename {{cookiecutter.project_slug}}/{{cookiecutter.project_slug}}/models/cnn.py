"""A small convolutional network."""

from collections.abc import Sequence

from torch import Tensor, nn


class CNN(nn.Module):
    """Convolution, pooling, batch normalization and ReLU for each entry of ``channels``, then a linear layer.

    Pooling precedes batch normalization and ReLU because it reduces their work to a quarter.

    Args:
        image_shape: channels, height and width of the images.
        num_classes: number of classes.
        channels: output channels of each convolution.
    """

    def __init__(self, image_shape: Sequence[int], num_classes: int, channels: Sequence[int]) -> None:
        super().__init__()
        in_channels, height, width = image_shape
        layers: list[nn.Module] = []
        for out_channels in channels:
            layers += [
                # Batch normalization subtracts the mean, so a bias would have no effect.
                nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
                nn.MaxPool2d(2),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]
            in_channels, height, width = out_channels, height // 2, width // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(in_channels * height * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (N, C, H, W) to logits (N, num_classes)."""
        return self.classifier(self.features(images).flatten(1))
