"""Image classifiers of torchvision, with random or pretrained weights."""

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

from .pretrained_classifier import Preset, PretrainedClassifier, match_channels


class TorchvisionClassifier(PretrainedClassifier):
    """Any classifier of torchvision, with its first and last layer adapted to the channels and classes of the data.

    With ``weights``, all layers except the last start from them, and images are normalized and enlarged as for their
    training. They are loaded when training starts without a checkpoint; a trained model no longer needs them.

    Args:
        name: name of the network, see ``torchvision.models.list_models(torchvision.models)``.
        weights: ``DEFAULT``, or another name in torchvision's list of the network's weights. None: random weights.
        image_size: height and width, in pixels, to which smaller images are enlarged. None: the size that the weights
            were trained on or, without weights, the minimum of the network.
        image_shape: channels, height and width of the images.
        num_classes: number of classes.
        mean: mean of the training images per channel, in the range 0 to 1; not used with weights.
        std: standard deviation of the training images per channel, in the range 0 to 1; not used with weights.
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
                f"model.name is {name}; torchvision.models has no classifier of this name. Nearest: {nearest}."
            )
        all_weights = models.get_model_weights(name)
        if weights is not None and weights not in all_weights.__members__:
            raise MisconfigurationException(
                f"model.weights is {weights}; the choices for {name} are: {', '.join(all_weights.__members__)}, "
                "or null for none."
            )
        chosen = all_weights[weights] if weights else None
        preset = chosen.transforms() if chosen else None
        channels = image_shape[0]
        size = image_size or max(all_weights["DEFAULT"].meta["min_size"])
        if preset:
            mean, std = (match_channels(values, channels) for values in (preset.mean, preset.std))
            size = image_size or preset.crop_size[0]
        backbone, features = _create_backbone(name, None, channels)
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
        return _create_backbone(self.name, self.weights, self.channels)[0]


def _create_backbone(name: str, weights: Any, channels: int) -> tuple[nn.Module, int]:
    """Return a network without its last layer, for images of ``channels``, and its number of output features.

    Raises:
        MisconfigurationException: if the weights are not available.
    """
    # Only these two networks have auxiliary outputs for training.
    extra = {"aux_logits": False, "init_weights": weights is None} if name in ("googlenet", "inception_v3") else {}
    try:
        network = models.get_model(name, weights=weights, **extra)
    except OSError as error:
        file = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(weights.url))
        raise MisconfigurationException(
            f"The weights of {name} are not in {file} and could not be downloaded: {error}\n"
            f"Connect to the network, put {weights.url} there, or train without them: model.weights=null"
        ) from error
    # The last layer outputs the 1,000 classes of ImageNet.
    last, layer = [
        (path, module)
        for path, module in network.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == 1000)
        or (isinstance(module, nn.Conv2d) and module.out_channels == 1000)
    ][-1]
    _replace_layer(network, last, nn.Identity())
    first, convolution = next((path, m) for path, m in network.named_modules() if isinstance(m, nn.Conv2d))
    if channels != convolution.in_channels:
        _replace_layer(network, first, _convert_to_grayscale(convolution, channels))
    return network, layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def _convert_to_grayscale(convolution: nn.Conv2d, channels: int) -> nn.Conv2d:
    """Return a convolution that maps grayscale images to what ``convolution`` returns for them in RGB."""
    adapted = copy.deepcopy(convolution)
    adapted.in_channels = channels
    weight = convolution.weight.detach().sum(dim=1, keepdim=True) / channels
    adapted.weight = nn.Parameter(weight.repeat(1, channels, 1, 1))
    return adapted


def _replace_layer(network: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, layer)
