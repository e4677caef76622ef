"""Image classifiers of timm, with random or pretrained weights."""

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
from torchvision.transforms.v2 import Resize

from torch_starter.mistakes import close_to

from .pretrained_classifier import Preset, PretrainedClassifier, match_channels


class TimmClassifier(PretrainedClassifier):
    """Any classifier of timm, with its first and last layer adapted to the channels and classes of the data.

    With ``weights``, all layers except the last start from them, and images are normalized and enlarged as for their
    training. They are loaded when training starts without a checkpoint; a trained model no longer needs them. A
    network with a fixed input size, like most transformers, gets all images in exactly that size.

    Args:
        name: name of the network, see ``timm.list_models()``.
        weights: ``DEFAULT``, or a tag of the network's weights in ``timm.list_pretrained()``. None: random weights.
        image_size: height and width, in pixels, to which smaller images are enlarged; a network with a fixed input
            size is created for it. None: the size that the weights were trained on or, without weights, the minimum.
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
        MisconfigurationException: if timm is not installed, has no such network or weights, or not for this size.
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
        timm = _import_timm()
        _check_names(timm, name, weights)
        # timm's notation: resnet18.a1_in1k, or resnet18 for the default weights.
        full_name = name if weights in (None, "DEFAULT") else f"{name}.{weights}"
        config = timm.get_pretrained_cfg(full_name)
        channels, *shape = image_shape
        if image_size:
            size = [image_size, image_size]
        elif weights or config.fixed_input_size:
            size = list(config.input_size[1:])
        else:
            # Most networks halve the image five times, and some fail if less than a pixel remains.
            size = list(config.min_input_size[1:]) if config.min_input_size else [32, 32]
        options = {"img_size": size} if image_size and config.fixed_input_size else {}
        create = partial(timm.create_model, full_name, num_classes=0, in_chans=channels, **options)
        try:
            backbone = create()
        except (AssertionError, ValueError) as error:
            raise MisconfigurationException(
                f"model.image_size is {image_size}; {name} does not support it: {error}\n"
                f"model.image_size=null uses {config.input_size[1]}."
            ) from error
        layers: dict[str, nn.Module] = {"backbone": backbone, "head": nn.Linear(backbone.head_hidden_size, num_classes)}
        is_smaller = any(actual < minimum for actual, minimum in zip(shape, size, strict=True))
        if is_smaller or (config.fixed_input_size and shape != size):
            layers = {"resize": Resize(size), **layers}
        if weights:
            mean, std = (match_channels(values, channels) for values in (config.mean, config.std))
        super().__init__(
            nn.Sequential(OrderedDict(layers)), num_classes, mean, std, loss, metrics, compile, optimizer, scheduler
        )
        self.name = name
        self.create = create
        self.config = config
        self.preset = Preset(full_name, config.input_size[1:], config.crop_pct) if weights else None

    def pretrained_backbone(self) -> nn.Module:
        try:
            return self.create(pretrained=True)
        except OSError as error:
            if self.config.hf_hub_id:
                from huggingface_hub.constants import HF_HUB_CACHE

                place = os.path.join(HF_HUB_CACHE, f"models--{self.config.hf_hub_id.replace('/', '--')}")
                remedy = f"copy that folder from a machine where `hf download {self.config.hf_hub_id}` works"
            else:
                place = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(self.config.url))
                remedy = f"put {self.config.url} there"
            raise MisconfigurationException(
                f"The weights of {self.name} are not in {place} and could not be downloaded: "
                f"{error.__cause__ or error}\n"
                f"Connect to the network, {remedy}, or train without them: model.weights=null"
            ) from error


def _import_timm() -> Any:
    """Import timm, which is optional and takes a second or two.

    Raises:
        MisconfigurationException: if it is not installed.
    """
    try:
        import timm  # pyrefly: ignore[missing-import]
    except ImportError as error:
        raise MisconfigurationException(f'{error}. Install what model=timm needs: pip install -e ".[timm]"') from error
    return timm


def _check_names(timm: Any, name: str, weights: str | None) -> None:
    """Check that timm has a network and its weights.

    Raises:
        MisconfigurationException: if it does not; the message suggests similar names.
    """
    known = timm.list_models()
    base, _, tag = name.partition(".")
    if base not in known:
        nearest = ", ".join(close_to(base, known, count=3)) or "none"
        raise MisconfigurationException(f"model.name is {name}; it is not in timm.list_models(). Nearest: {nearest}.")
    if tag:
        raise MisconfigurationException(
            f"model.name is {name}, which includes the name of weights: write model.name={base} model.weights={tag}"
        )
    tags = [full_name.partition(".")[2] for full_name in timm.list_pretrained(name)]
    tags = [*(["DEFAULT"] if timm.is_model_pretrained(name) else []), *filter(None, tags)]
    if weights is not None and weights not in tags:
        raise MisconfigurationException(
            f"model.weights is {weights}; the choices for {name} are: {', '.join([*tags, 'null'])}."
        )
