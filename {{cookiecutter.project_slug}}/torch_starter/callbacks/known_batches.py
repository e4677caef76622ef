"""Checks before training that the data fit the model."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from ..data.evaluation import run_on_black_image
from ..metrics import describe_type

# The format of a batch of images.
IMAGES = re.compile(r"uint8 \(N, \w+, \w+, \w+\)")
# A dtype, a shape, and optionally the minimum and maximum.
FORMAT = re.compile(r"(\w+) (\([^)]*\))(?: from (\d+) to (\d+))?")


class KnownBatches(Callback):
    """Compares the first batch of each split, and of the inputs of predict.py, with ``batch_format`` of the model.

    ``batch_format`` maps names to the tensors of a batch, in order:
    ``{"x": "float32 (N, 3)", "labels": "int64 (N,) from 0 to 9"}``. A letter matches any number, and float32 matches
    the dtype of the model's weights. Models without ``batch_format`` are not checked.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Run the network on one image of the shape of the data, if the data module has ``image_shape``.

        Raises:
            MisconfigurationException: If the network rejects such images, returns the wrong number of logits, or the
                mean or standard deviation of the data has the wrong number of channels.
        """
        self.checked: set[Any] = set()  # The stages whose first batch was checked.
        data = trainer.datamodule
        formats: Any = getattr(pl_module, "batch_format", None)
        if not (image_shape := getattr(data, "image_shape", None)) or not formats:
            return
        for key in ("mean", "std"):
            if (values := getattr(data, key, None)) is not None and len(values) != image_shape[0]:
                raise MisconfigurationException(
                    f"data.{key} is {list(values)}: {len(values)} values, but images have {image_shape[0]} channels "
                    f"(data.image_shape is {list(image_shape)})."
                )
        images, *others = formats.values()
        if stage == "fit" and IMAGES.match(images) and len(others) == 1 and others[0].startswith("int64 (N,)"):
            _check_network(pl_module, image_shape)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there are batches to train and validate on.

        Raises:
            MisconfigurationException: If there is no batch. Lightning would report success without any training.
        """
        if not is_overridden("test_dataloader", trainer.datamodule, LightningDataModule):
            raise MisconfigurationException(
                f"{type(trainer.datamodule).__name__} has no test_dataloader; the test after training needs one. Add "
                "it, or reuse the validation data: test_dataloader = val_dataloader"
            )
        fit, val = trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop
        try:
            fit.setup_data()
        except ValueError as error:
            if "num_samples" not in str(error):
                raise
            raise _no_batches_error("train_dataloader") from error  # torch's message for an empty, shuffled data set
        if trainer.limit_train_batches and trainer.num_training_batches == 0:
            raise _no_batches_error("train_dataloader", trainer, "train")
        val.setup_data()
        if trainer.enable_validation and not any(val.max_batches):
            raise _no_batches_error("val_dataloader", trainer, "val")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        stage = trainer.state.stage
        if batch_idx == 0 and stage not in self.checked:
            assert stage is not None
            self.checked.add(stage)
            check(pl_module, batch, "read_input" if trainer.predicting else f"{stage.dataloader_prefix}_dataloader")

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_batch_start


def _check_network(model: Any, image_shape: Sequence[int]) -> None:
    """Run a model on a black image so that an error names the network instead of one of its layers."""
    name = getattr(model, "name", type(getattr(model, "network", model)).__name__)
    try:
        output = run_on_black_image(model, image_shape)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise MisconfigurationException(
            f"{name} does not accept images of {list(image_shape)} (channels, height, width), as data= serves them: "
            f"{reason}\nChoose another model=, or change the network or data.image_shape."
        ) from error
    *_, labels = model.batch_format.values()
    *_, highest = _parts(labels)
    if highest and isinstance(output, Tensor) and output.shape != (1, int(highest) + 1):
        raise MisconfigurationException(
            f"{name} returns logits of shape {list(output.shape[1:])} per image; the data have {int(highest) + 1} "
            "classes."
        )


def check(model: LightningModule, batch: Any, source: str) -> None:
    """Compare a batch with the ``batch_format`` of a model.

    Args:
        model: The model; without ``batch_format``, it accepts any batch.
        batch: The batch that the data module serves; only the first tensor if ``source`` is ``read_input``.
        source: The method of the data module that returned the batch.

    Raises:
        MisconfigurationException: If they differ; the message has names, dtypes, and shapes of both, and a conversion.
    """
    formats: Any = getattr(model, "batch_format", None)
    if formats is None:
        return
    if source == "read_input":
        formats = dict(list(formats.items())[:1])
        batch = [batch]
    expected = ", ".join(f"{name} {text}" for name, text in formats.items())
    alternative = "or choose another data= or model=."
    is_batch = isinstance(batch, list | tuple) and all(isinstance(entry, Tensor) for entry in batch)
    if not is_batch or len(batch) != len(formats):
        found = ", ".join(map(describe_type, batch)) if isinstance(batch, list | tuple) else describe_type(batch)
        raise MisconfigurationException(
            f"{source} provides: {found}\n{type(model).__name__} expects: {expected}\n"
            f"Let the data module provide a tuple ({', '.join(formats)}), {alternative}"
        )
    found = ", ".join(f"{name} {describe_type(tensor)}" for name, tensor in zip(formats, batch, strict=True))
    for (name, text), tensor in zip(formats.items(), batch, strict=True):
        if not _fits(tensor, text, model.dtype):
            conversion = _conversion(name, tensor, text, model.dtype)
            remedy = (
                f"In the data module, write {conversion}, {alternative}"
                if conversion
                else f"Change {name}, {alternative}"
            )
            raise MisconfigurationException(
                f"{source} provides: {found}\n{type(model).__name__} expects: {expected}\n{remedy}"
            )
        _, _, lowest, highest = _parts(text)
        if highest and len(tensor) and not int(lowest) <= tensor.min() <= tensor.max() <= int(highest):
            raise MisconfigurationException(
                f"{source} provides: {name} from {tensor.min()} to {tensor.max()}\n"
                f"{type(model).__name__} expects: {expected}\n"
                f"Number the classes from 0 in the data module, and set data.num_classes to the number of classes."
            )


def _parts(text: str) -> tuple[str, ...]:
    match = FORMAT.fullmatch(text)
    if match is None:
        raise ValueError(f"batch_format has {text!r}; it must look like 'float32 (N, 3)' or 'int64 (N,) from 0 to 9'.")
    return match.groups()


def _dtype(text: str, model_dtype: torch.dtype | str) -> torch.dtype | str:
    """Return the dtype of a format; float32 is the dtype of the weights, to which Lightning converts floats."""
    name = _parts(text)[0]
    return model_dtype if name == "float32" else getattr(torch, name)


def _fits(tensor: Tensor, text: str, model_dtype: torch.dtype | str) -> bool:
    shape = re.escape(_parts(text)[1])
    pattern = re.sub(r"[A-Z]\b", r"\\d+", shape)
    return tensor.dtype == _dtype(text, model_dtype) and re.fullmatch(pattern, str(tuple(tensor.shape))) is not None


def _conversion(name: str, tensor: Tensor, text: str, model_dtype: torch.dtype | str) -> str:
    """Return an expression that makes ``tensor`` fit the format; empty if there is none."""
    dtype = _dtype(text, model_dtype)
    changes = {"": tensor}
    if tensor.ndim == 1:
        changes["[:, None]"] = tensor[:, None]
    if tensor.ndim == 2:
        changes[".squeeze(1)"] = tensor.squeeze(1)
        if dtype == torch.int64 and tensor.shape[1] > 1:
            changes[".argmax(dim=1)"] = tensor.argmax(dim=1)  # one-hot
    for change, changed in changes.items():
        if not isinstance(dtype, torch.dtype) or not _fits(changed.to(dtype), text, model_dtype):
            continue
        if dtype == torch.uint8 and tensor.is_floating_point():
            return f"(255 * {name}{change}).round().to({dtype}) for values from 0 to 1"
        return f"{name}{change}" + (f".to({dtype})" if changed.dtype != dtype else "")
    return ""


def _no_batches_error(source: str, trainer: Trainer | None = None, split: str = "") -> MisconfigurationException:
    key = f"limit_{split}_batches"
    limit = getattr(trainer, key, 1.0)
    remedy = f" trainer.{key} is {limit}." if isinstance(limit, float) and limit < 1 else ""
    return MisconfigurationException(
        f"{source} of the data module has no batches. Give it at least one sample.{remedy}"
    )
