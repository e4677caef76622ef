"""A small convolutional network."""

from collections.abc import Sequence

from torch import Tensor, nn


class CNN(nn.Module):
    """Convolution, pooling, batch normalisation and ReLU, once per entry of ``channels``; then one linear layer.

    Pooling comes first, because what follows then has a quarter of the work.

    Args:
        image_shape: channels, height and width of the images.
        num_classes: length of the output.
        channels: output channels of each convolution.
    """

    def __init__(self, image_shape: Sequence[int], num_classes: int, channels: Sequence[int]) -> None:
        super().__init__()
        in_channels, height, width = image_shape
        layers: list[nn.Module] = []
        for out_channels in channels:
            layers += [
                # Batch normalisation subtracts the mean, so a bias would be lost.
                nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
                nn.MaxPool2d(2),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]
            in_channels, height, width = out_channels, height // 2, width // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(in_channels * height * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Float images (N, C, H, W) to logits (N, num_classes)."""
        return self.classifier(self.features(images).flatten(1))
