from .image import ImageDataModule
from .linear import LinearDataModule

__all__ = ["ImageDataModule", "LinearDataModule"]
