"""What the classifiers of torchvision and of timm have in common: a backbone, perhaps pretrained, and a head."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from .image_classifier import ImageClassifier

log = logging.getLogger(__name__)


class Preset(NamedTuple):
    """How images were prepared when weights were trained."""

    weights: str  # what they are called
    size: Sequence[int]  # height and width
    center_crop_share: float  # what was left of the shorter side, in (0, 1]


class PretrainedClassifier(ImageClassifier):
    """An ``ImageClassifier`` whose network has a ``backbone``, which can start from pretrained weights, and a ``head``.

    The weights are fetched when a training begins without a checkpoint, so what has been trained needs them no more.
    A subclass sets ``preset`` and defines ``pretrained_backbone``.
    """

    preset: Preset | None  # of the weights to start from; None for none

    def pretrained_backbone(self) -> nn.Module:
        """Returns another backbone like that of the network, with the pretrained weights."""
        raise NotImplementedError

    @property
    def backbone(self) -> nn.Module:
        """All but the last layer, for Lightning's BackboneFinetuning."""
        return self.network.get_submodule("backbone")

    def on_fit_start(self) -> None:
        # Not in setup, for then Lightning has not said yet whether there is a checkpoint.
        if self.preset and not self.trainer.ckpt_path:
            if isinstance(self.trainer.strategy, FSDPStrategy):
                raise MisconfigurationException(
                    "FSDP has already dealt out the network when its pretrained weights come: take trainer=ddp, or "
                    "model.weights=null."
                )
            self.backbone.load_state_dict(self.pretrained_backbone().state_dict())
            self._compare_pictures(self.preset)

    def _compare_pictures(self, preset: Preset) -> None:
        """Says what to set if a folder of pictures is served in another size than the weights were trained on."""
        data, (height, width), share = self.trainer.datamodule, preset.size, preset.center_crop_share
        if hasattr(data, "center_crop_share") and (
            tuple(data.image_shape[1:]) != (height, width) or data.center_crop_share != share
        ):
            log.info(
                f"{preset.weights} is made for pictures of data.image_shape=[3,{height},{width}] "
                f"data.center_crop_share={share}"
            )


def for_channels(values: Sequence[float], channels: int) -> list[float]:
    """Constants of red, green and blue for images of ``channels``: their average for each, unless there are three."""
    return list(values) if channels == len(values) else [sum(values) / len(values)] * channels
