"""Choose twelve test images that show how a classifier performs."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import default_collate

from ..mistakes import UserError, first_line
from .predictor import Predictor

COUNT, WRONG = 12, 6
SECONDS = 5  # time limit, so only a random part of a large test set is examined
BATCH = 64


@dataclass
class Example:
    """A test image with its label and prediction.

    Attributes:
        image: uint8 ``(C, H, W)``.
        caption: The label, and the prediction if it is wrong.
    """

    image: Tensor
    caption: str


def find_examples(predictor: Predictor) -> list[Example]:
    """Return up to twelve test images: first at most six, the most confidently wrong ones, then correct ones.

    Raises:
        UserError: If the data set is not available locally; it is not downloaded.
    """
    try:
        images, labels, predictions, probabilities = _examine(predictor)
    except (MisconfigurationException, RuntimeError, OSError, ValueError) as error:  # torchvision raises RuntimeError
        reason = first_line(error).partition(" You can use")[0]
        raise UserError(f"{reason} Pass the folder of the data set: data.root=FOLDER") from error
    wrong = (predictions != labels).nonzero().flatten()
    wrong = wrong[probabilities[wrong].argsort(descending=True)][:WRONG]
    others = (predictions == labels).nonzero().flatten()[: COUNT - len(wrong)]
    names = predictor.class_names(int(max(labels.max(), predictions.max())) + 1)
    found = []
    for place in [*wrong.tolist(), *others.tolist()]:
        label, prediction = names[labels[place]], names[predictions[place]]
        predicted = "" if label == prediction else f", predicted {prediction}"
        found.append(Example(images[place], f"{label}{predicted}"))
    return found


def _examine(predictor: Predictor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images, labels, predictions and their probabilities, in random order."""
    dataset = _test_set(predictor.run.data)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    columns: list[tuple[Tensor, ...]] = []
    end = time.monotonic() + SECONDS
    for indices in order.split(BATCH):
        if hasattr(dataset, "batch"):  # see protocols.Dataset
            images, labels = dataset.batch(0, indices)
        else:
            images, labels = default_collate([dataset[index] for index in indices.tolist()])
        probabilities, predictions = predictor.predict(images)["probabilities"].max(dim=1)
        columns.append((images, labels, predictions, probabilities))
        if time.monotonic() > end:
            break
    images, labels, predictions, probabilities = (torch.cat(column) for column in zip(*columns, strict=True))
    return images, labels, predictions, probabilities


def _test_set(data: Any) -> Any:
    split_file = getattr(data, "split_file", None)
    if split_file and not Path(split_file).exists():
        raise UserError(f"{Path(split_file).name} is missing in the run folder, and the demo does not write there.")
    data.num_workers = 0
    data.setup("test")
    return data.test_dataloader().dataset
