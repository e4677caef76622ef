"""Base class of the torchvision and timm classifiers: a backbone, optionally pretrained, and a head."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from .image_classifier import ImageClassifier

log = logging.getLogger(__name__)


class Preset(NamedTuple):
    """Preprocessing of the images on which weights were trained.

    Attributes:
        weights: name of the weights.
        size: height and width in pixels.
        center_crop_share: fraction of the shorter side that the center crop kept, in (0, 1].
    """

    weights: str
    size: Sequence[int]
    center_crop_share: float


class PretrainedClassifier(ImageClassifier):
    """An ``ImageClassifier`` whose network has a ``backbone``, which can start from pretrained weights, and a ``head``.

    The weights are loaded when training starts without a checkpoint; a trained model no longer needs them. Subclasses
    set ``preset`` and define ``pretrained_backbone``.
    """

    preset: Preset | None  # of the pretrained weights; None: random initialization

    def pretrained_backbone(self) -> nn.Module:
        """Return a new backbone of the same architecture with the pretrained weights."""
        raise NotImplementedError

    @property
    def backbone(self) -> nn.Module:
        """All layers except the last, for Lightning's BackboneFinetuning."""
        return self.network.get_submodule("backbone")

    def on_fit_start(self) -> None:
        # Not in setup, because ckpt_path is not known there.
        if self.preset and not self.trainer.ckpt_path:
            if isinstance(self.trainer.strategy, FSDPStrategy):
                raise MisconfigurationException(
                    "FSDP shards the network before its pretrained weights are loaded. Use trainer=ddp or "
                    "model.weights=null."
                )
            self.backbone.load_state_dict(self.pretrained_backbone().state_dict())
            self._log_expected_images(self.preset)

    def _log_expected_images(self, preset: Preset) -> None:
        """Log the settings to use if an image folder does not match the preprocessing of the weights."""
        data, (height, width), share = self.trainer.datamodule, preset.size, preset.center_crop_share
        if hasattr(data, "center_crop_share") and (
            tuple(data.image_shape[1:]) != (height, width) or data.center_crop_share != share
        ):
            log.info(
                f"{preset.weights} expects images of data.image_shape=[3,{height},{width}] "
                f"data.center_crop_share={share}"
            )


def match_channels(values: Sequence[float], channels: int) -> list[float]:
    """Return one constant per channel: ``values`` if their number matches, otherwise their average for each."""
    return list(values) if channels == len(values) else [sum(values) / len(values)] * channels
