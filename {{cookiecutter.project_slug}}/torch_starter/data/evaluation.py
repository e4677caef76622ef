"""How many images are evaluated at once."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from ..compat import flatten

# Bytes of the activations of a batch. On a CPU, about its cache: beyond it, each image takes longer. Other devices are
# the faster the more they have to do at once.
CPU_BYTES, DEVICE_BYTES = 8 * 2**20, 256 * 2**20
LARGEST = 4096


def evaluation_batch_size(data: LightningDataModule) -> int:
    """Images per step of validation and test: ``data.eval_batch_size``, or as many as suit the network.

    A step of a small network takes less time than what is done around it. So a batch has as many images as have 8 MB of
    activations on a CPU, 256 MB on another device: a power of two, from ``data.batch_size`` to 4,096. On a CPU, an
    MLP takes 1,024 images of 28 x 28 pixels, and a CNN ``data.batch_size``. The metrics are the same but for rounding.
    Where ``trainer.limit_val_batches`` or ``limit_test_batches`` counts batches, they are those of ``data.batch_size``.

    Args:
        data: has ``batch_size``, ``eval_batch_size`` and ``image_shape``.

    Raises:
        MisconfigurationException: if ``data.eval_batch_size`` is neither None nor a positive whole number.
    """
    trainer: Any = data.trainer
    batch_size: int = data.batch_size
    if (chosen := data.eval_batch_size) is not None:
        if type(chosen) is not int or chosen < 1:
            raise MisconfigurationException(
                f"data.eval_batch_size is {chosen}; it must be null or a whole number from 1."
            )
        return chosen
    if trainer is None:
        return batch_size
    if (trainer.limit_test_batches if trainer.testing else trainer.limit_val_batches) != 1.0:
        return batch_size
    # Others may have divided the network, which then runs in all processes at once or not at all.
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        return batch_size
    try:
        per_image = activation_bytes(trainer.lightning_module, data.image_shape)
    except Exception:  # of a network that takes other images, which the first batch of the run is to say
        return batch_size
    device = trainer.strategy.root_device
    count = (CPU_BYTES if device.type == "cpu" else DEVICE_BYTES) // max(per_image, 1)
    return max(batch_size, min(LARGEST, 1 << max(count, 1).bit_length() - 1))


def activation_bytes(model: LightningModule, image_shape: Sequence[int]) -> int:
    """One image as float32 and what all layers of a model return for it, in bytes."""
    found: list[int] = [4 * math.prod(image_shape)]

    def count(layer: nn.Module, inputs: Any, output: Any) -> None:
        # Recurrent layers return tuples.
        found.extend(value.nbytes for value in flatten(output) if isinstance(value, Tensor))

    layers = [layer for layer in model.modules() if not any(layer.children())]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        run_on_black_image(model, image_shape)
    finally:
        for handle in handles:
            handle.remove()
    return sum(found)


def run_on_black_image(model: LightningModule, image_shape: Sequence[int]) -> Any:
    """What a model returns for a black image (C, H, W), without a change to the model or to random numbers."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()  # so that batch normalization learns nothing from it
    try:
        # Compiling it for a single image takes a minute.
        with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
            return model(torch.zeros(1, *image_shape, dtype=torch.uint8, device=model.device))
    finally:
        for module, mode in modes:
            module.training = mode
