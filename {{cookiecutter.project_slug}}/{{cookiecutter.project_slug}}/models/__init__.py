from .cnn import CNN
from .image_classifier import ImageClassifier
from .linear_regression import LinearRegression
from .mlp import MLP

__all__ = ["CNN", "MLP", "ImageClassifier", "LinearRegression"]
