"""timm's networks for images, from the beginning or from pretrained weights."""

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

from .pretrained_classifier import Preset, PretrainedClassifier, for_channels


class TimmClassifier(PretrainedClassifier):
    """Any of timm's classifiers, with a last layer for the classes and a first one for the channels of the data.

    Given ``weights``, all but the last layer starts from them; images are then normalized with their constants and
    enlarged to the size that they were trained on. They are fetched when a training begins without a checkpoint, so
    what has been trained needs them no more. A network for one size alone, as most transformers are, gets all images
    in exactly that size.

    Args:
        name: see ``timm.list_models()``.
        weights: ``DEFAULT``, or the tag of the network's weights in ``timm.list_pretrained()``; None for none.
        image_size: smaller images are enlarged to this height and width; a network for one size alone is made for it.
            None: the size that the weights were trained on; without weights the least that the network can take.
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
        MisconfigurationException: if timm is not installed, or has no such network or weights, or not for that size.
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
        timm = _timm()
        _check(timm, name, weights)
        # As timm writes it: resnet18.a1_in1k, or resnet18 for the default.
        full_name = name if weights in (None, "DEFAULT") else f"{name}.{weights}"
        config = timm.get_pretrained_cfg(full_name)
        channels, *shape = image_shape
        if image_size:
            size = [image_size, image_size]
        elif weights or config.fixed_input_size:
            size = list(config.input_size[1:])
        else:
            # Most networks halve the image five times, and some then fail on less than a pixel.
            size = list(config.min_input_size[1:]) if config.min_input_size else [32, 32]
        options = {"img_size": size} if image_size and config.fixed_input_size else {}
        create = partial(timm.create_model, full_name, num_classes=0, in_chans=channels, **options)
        try:
            backbone = create()
        except (AssertionError, ValueError) as error:
            raise MisconfigurationException(
                f"model.image_size is {image_size}, for which {name} cannot be made: {error}\n"
                f"model.image_size=null takes {config.input_size[1]}."
            ) from error
        layers: dict[str, nn.Module] = {"backbone": backbone, "head": nn.Linear(backbone.head_hidden_size, num_classes)}
        is_smaller = any(have < want for have, want in zip(shape, size, strict=True))
        if is_smaller or (config.fixed_input_size and shape != size):
            layers = {"resize": Resize(size), **layers}
        if weights:
            mean, std = (for_channels(values, channels) for values in (config.mean, config.std))
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
                remedy = f"copy that folder from where `hf download {self.config.hf_hub_id}` could fetch it"
            else:
                place = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(self.config.url))
                remedy = f"put {self.config.url} there"
            raise MisconfigurationException(
                f"The weights of {self.name} are not in {place} and could not be downloaded: "
                f"{error.__cause__ or error}\n"
                f"Connect to the network, {remedy}, or start without them by model.weights=null."
            ) from error


def _timm() -> Any:
    """The package. It is optional, and imported here, for that takes a second or two.

    Raises:
        MisconfigurationException: if it is not installed.
    """
    try:
        import timm  # pyrefly: ignore[missing-import]
    except ImportError as error:
        raise MisconfigurationException(f'{error}. Install what model=timm needs: pip install -e ".[timm]"') from error
    return timm


def _check(timm: Any, name: str, weights: str | None) -> None:
    """Names what is close to a network or to weights that timm does not have.

    Raises:
        MisconfigurationException: if it does not have them.
    """
    known = timm.list_models()
    base, _, tag = name.partition(".")
    if base not in known:
        nearest = ", ".join(close_to(base, known, count=3)) or "none"
        raise MisconfigurationException(f"model.name is {name}, which timm.list_models() lacks. Nearest: {nearest}.")
    if tag:
        raise MisconfigurationException(
            f"model.name is {name}, with the name of its weights: write model.name={base} model.weights={tag}"
        )
    tags = [full_name.partition(".")[2] for full_name in timm.list_pretrained(name)]
    tags = [*(["DEFAULT"] if timm.is_model_pretrained(name) else []), *filter(None, tags)]
    if weights is not None and weights not in tags:
        raise MisconfigurationException(
            f"model.weights is {weights}; {name} has: {', '.join([*tags, 'null'])} for none."
        )
