"""torchvision's networks for images, from the beginning or from pretrained weights."""

import copy
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric
from torchvision import models

from torch_starter.mistakes import close_to

from .pretrained_classifier import Preset, PretrainedClassifier, for_channels


class TorchvisionClassifier(PretrainedClassifier):
    """Any of torchvision's classifiers, with a last layer for the classes and a first one for the channels of the data.

    Given ``weights``, all but the last layer starts from them; images are then normalised with their constants and
    enlarged to the size that they were trained on. They are fetched when a training begins without a checkpoint, so
    what has been trained needs them no more.

    Args:
        name: see ``torchvision.models.list_models(torchvision.models)``.
        weights: ``DEFAULT``, or another name in torchvision's list of the network's weights; None for none.
        image_size: smaller images are enlarged to this height and width. None: the size that the weights were trained
            on; without weights the least that the network can take.
        image_shape: channels, height and width of the images.
        num_classes: number of classes.
        mean: of the training images, per channel, on the scale 0 to 1; not used with weights.
        std: standard deviation of the training images, likewise.
        loss: see ``ImageClassifier``.
        metrics: see ``ImageClassifier``.
        compile: see ``ImageClassifier``.
        optimizer: see ``ImageClassifier``.
        scheduler: see ``ImageClassifier``.

    Raises:
        MisconfigurationException: if torchvision has no such network or weights.
    """

    def __init__(
        self,
        name: str,
        weights: str | None,
        image_size: int | None,
        image_shape: Sequence[int],
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        loss: nn.Module,
        metrics: Mapping[str, Metric | None],
        compile: bool,
        optimizer: "partial[Optimizer]",
        scheduler: "partial[LRScheduler]",
    ) -> None:
        known = models.list_models(models)
        if name not in known:
            nearest = ", ".join(close_to(name, known, count=3)) or "none"
            raise MisconfigurationException(
                f"model.name is {name}, which is no classifier in torchvision.models. Nearest: {nearest}."
            )
        all_weights = models.get_model_weights(name)
        if weights is not None and weights not in all_weights.__members__:
            raise MisconfigurationException(
                f"model.weights is {weights}; {name} has: {', '.join(all_weights.__members__)}, or null for none."
            )
        chosen = all_weights[weights] if weights else None
        preset = chosen.transforms() if chosen else None
        channels = image_shape[0]
        size = image_size or max(all_weights["DEFAULT"].meta["min_size"])
        if preset:
            mean, std = (for_channels(values, channels) for values in (preset.mean, preset.std))
            size = image_size or preset.crop_size[0]
        backbone, features = _backbone(name, None, channels)
        layers: dict[str, nn.Module] = {"backbone": backbone, "head": nn.Linear(features, num_classes)}
        if min(image_shape[1:]) < size:
            layers = {"enlarge": nn.Upsample((size, size), mode="bilinear"), **layers}
        network = nn.Sequential(OrderedDict(layers))
        super().__init__(network, num_classes, mean, std, loss, metrics, compile, optimizer, scheduler)
        self.name = name
        self.weights = chosen
        self.channels = channels
        self.preset = None
        if preset:
            share = round(preset.crop_size[0] / preset.resize_size[0], 3)
            self.preset = Preset(str(chosen), 2 * preset.crop_size, share)

    def pretrained_backbone(self) -> nn.Module:
        return _backbone(self.name, self.weights, self.channels)[0]


def _backbone(name: str, weights: Any, channels: int) -> tuple[nn.Module, int]:
    """A network of torchvision without its last layer, for images of ``channels``; and its number of features.

    Raises:
        MisconfigurationException: if the weights are not to be had.
    """
    # These two have outputs in the middle, for training, which the others do not have.
    extra = {"aux_logits": False, "init_weights": weights is None} if name in ("googlenet", "inception_v3") else {}
    try:
        network = models.get_model(name, weights=weights, **extra)
    except OSError as error:
        file = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(weights.url))
        raise MisconfigurationException(
            f"The weights of {name} are not in {file} and could not be downloaded: {error}\n"
            f"Connect to the network, put {weights.url} there, or start without them by model.weights=null."
        ) from error
    # The last layer is the one that gives the 1,000 classes of ImageNet.
    last, layer = [
        (path, module)
        for path, module in network.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == 1000)
        or (isinstance(module, nn.Conv2d) and module.out_channels == 1000)
    ][-1]
    _replace(network, last, nn.Identity())
    first, convolution = next((path, m) for path, m in network.named_modules() if isinstance(m, nn.Conv2d))
    if channels != convolution.in_channels:
        _replace(network, first, _for_grey(convolution, channels))
    return network, layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def _for_grey(convolution: nn.Conv2d, channels: int) -> nn.Conv2d:
    """A convolution that gives for grey images what ``convolution`` gives for the same in red, green and blue."""
    adapted = copy.deepcopy(convolution)
    adapted.in_channels = channels
    weight = convolution.weight.detach().sum(dim=1, keepdim=True) / channels
    adapted.weight = nn.Parameter(weight.repeat(1, channels, 1, 1))
    return adapted


def _replace(network: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, layer)
