from .image import ImageDataModule
from .image_folder import ImageFolderDataModule
from .linear import LinearDataModule

__all__ = ["ImageDataModule", "ImageFolderDataModule", "LinearDataModule"]
