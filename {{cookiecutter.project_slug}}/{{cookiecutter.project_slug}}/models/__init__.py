from .cnn import CNN
from .dynamic import Dynamic
from .image_classifier import ImageClassifier
from .linear_regression import LinearRegression
from .mlp import MLP
from .torchvision_classifier import TorchvisionClassifier

__all__ = ["CNN", "MLP", "Dynamic", "ImageClassifier", "LinearRegression", "TorchvisionClassifier"]
