"""The batch size of validation and test."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from ..compat import flatten

# Bytes of the activations of a batch. On a CPU, about the size of its cache: beyond it, each image takes longer. Other
# devices are faster with larger batches.
CPU_BYTES, DEVICE_BYTES = 8 * 2**20, 256 * 2**20
MAX_BATCH_SIZE = 4096


def evaluation_batch_size(data: LightningDataModule) -> int:
    """Return the images per step of validation and test: ``data.eval_batch_size`` or a size that suits the network.

    A step of a small network takes less time than the overhead around it. Therefore, a batch has as many images as
    fit into 8 MB of activations on a CPU, or 256 MB on other devices. The batch size is a power of two of at most
    4,096, or ``data.batch_size`` if that is larger. On a CPU, it is 1,024 images of 28 x 28 pixels for an MLP, and
    ``data.batch_size`` for a CNN. The metrics are the same up to rounding. If ``trainer.limit_val_batches`` or
    ``limit_test_batches`` limits the batches, the batch size is ``data.batch_size``.

    Args:
        data: A data module with ``batch_size``, ``eval_batch_size``, and ``image_shape``.

    Raises:
        MisconfigurationException: If ``data.eval_batch_size`` is neither None nor a positive integer.
    """
    trainer: Any = data.trainer
    batch_size: int = data.batch_size
    if (chosen := data.eval_batch_size) is not None:
        if type(chosen) is not int or chosen < 1:
            raise MisconfigurationException(f"data.eval_batch_size is {chosen}; it must be null or a positive integer.")
        return chosen
    if trainer is None:
        return batch_size
    if (trainer.limit_test_batches if trainer.testing else trainer.limit_val_batches) != 1.0:
        return batch_size
    # Other strategies may shard the network, which then only runs on all ranks at once.
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        return batch_size
    try:
        per_image = activation_bytes(trainer.lightning_module, data.image_shape)
    except Exception:  # The network may expect other images; the check of the first batch reports that.
        return batch_size
    device = trainer.strategy.root_device
    count = (CPU_BYTES if device.type == "cpu" else DEVICE_BYTES) // max(per_image, 1)
    return max(batch_size, min(MAX_BATCH_SIZE, 1 << max(count, 1).bit_length() - 1))


def activation_bytes(model: LightningModule, image_shape: Sequence[int]) -> int:
    """Return the bytes of one float32 image and of the outputs of all layers of a model for it.

    Args:
        model: The model to run.
        image_shape: (C, H, W).
    """
    sizes: list[int] = [4 * math.prod(image_shape)]

    def count(layer: nn.Module, inputs: Any, output: Any) -> None:
        # Recurrent layers return tuples.
        sizes.extend(value.nbytes for value in flatten(output) if isinstance(value, Tensor))

    layers = [layer for layer in model.modules() if not any(layer.children())]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        run_on_black_image(model, image_shape)
    finally:
        for handle in handles:
            handle.remove()
    return sum(sizes)


def run_on_black_image(model: LightningModule, image_shape: Sequence[int]) -> Any:
    """Return the output of a model for a batch of one black image.

    Neither the model nor the random state changes.

    Args:
        model: The model to run.
        image_shape: (C, H, W).
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()  # Otherwise batch normalization would update its statistics.
    try:
        # Compiling the model for a single image takes a minute.
        with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
            return model(torch.zeros(1, *image_shape, dtype=torch.uint8, device=model.device))
    finally:
        for module, mode in modes:
            module.training = mode
