"""Metrics of the config are named by stage, logged once per epoch, and checked before training."""

import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)
from torchmetrics.regression import MeanSquaredError, R2Score

from torch_starter.callbacks.epoch_metrics import EpochMetrics
from torch_starter.metrics import metrics_of_stages, refuse_misfits

# Predictions 0, 0, 1, 1 for the labels 0, 1, 1, 1.
LOGITS = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
LABELS = torch.tensor([0, 1, 1, 1])


class Extremes(Metric):
    """Smallest and largest output, by name."""

    def __init__(self):
        super().__init__()
        self.add_state("outputs", default=[], dist_reduce_fx="cat")

    def update(self, outputs, targets):
        self.outputs.append(outputs)

    def compute(self):
        outputs = torch.cat(self.outputs)
        return {"smallest": outputs.min(), "largest": outputs.max()}


class Model(LightningModule):
    """Returns its input as logits."""

    def __init__(self, metrics):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.train_metrics, self.val_metrics, self.test_metrics = metrics_of_stages(metrics)

    def _step(self, batch, metrics):
        metrics.update(batch[0], batch[1])
        return (self.weight * batch[0]).mean()

    def training_step(self, batch):
        return self._step(batch, self.train_metrics)

    def validation_step(self, batch):
        return self._step(batch, self.val_metrics)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Data(LightningDataModule):
    """Two batches of two."""

    def __init__(self, class_names=None):
        super().__init__()
        self.class_names = class_names

    def train_dataloader(self):
        return DataLoader(TensorDataset(LOGITS, LABELS), batch_size=2)

    val_dataloader = train_dataloader


def fit_and_log(tmp_path, class_names=None, max_epochs=1, **metrics) -> dict[str, float]:
    """Train and validate on two batches; return the logged values."""
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[EpochMetrics()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(metrics), Data(class_names))
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_stages_have_separate_metrics():
    metric = MulticlassAccuracy(2)
    train, val, test = metrics_of_stages({"acc": metric, "none": None})
    train.update(LOGITS, LABELS)
    assert [list(stage.keys()) for stage in (train, val, test)] == [["train/acc"], ["val/acc"], ["test/acc"]]
    assert train["acc"].update_called
    assert not any(one.update_called for one in (val["acc"], test["acc"], metric))


def test_metrics_are_computed_over_the_epoch(tmp_path):
    # The mean over the two batches equals the epoch value for accuracy, but not for F1.
    found = fit_and_log(tmp_path, max_epochs=2, acc=MulticlassAccuracy(2, average="micro"), f1=MulticlassF1Score(2))
    f1 = (2 / 3 + 4 / 5) / 2
    assert found["train/acc"] == found["val/acc"] == 0.75
    assert found["val/f1"] == pytest.approx(f1)
    assert found["train/f1"] == pytest.approx(f1)  # of the second epoch only


def test_values_per_class_are_named_by_class(tmp_path):
    recall = MulticlassRecall(2, average="none")
    assert fit_and_log(tmp_path, recall=recall)["val/recall/1"] == pytest.approx(2 / 3)
    found = fit_and_log(tmp_path, class_names=["cat", "dog"], recall=recall)
    assert found["train/recall/cat"] == 1
    assert found["val/recall/dog"] == pytest.approx(2 / 3)


def test_matrix_entries_are_named_by_true_and_predicted_class(tmp_path):
    found = fit_and_log(tmp_path, class_names=["cat", "dog"], confusion=MulticlassConfusionMatrix(2))
    entries = {"cat/cat": 1, "cat/dog": 0, "dog/cat": 1, "dog/dog": 2}
    assert {name: found[f"val/confusion/{name}"] for name in entries} == entries


def test_dicts_of_values_are_logged(tmp_path):
    found = fit_and_log(tmp_path, ends=Extremes())
    largest = [value for name, value in found.items() if name.startswith("val/") and "largest" in name]
    assert largest == [1]


def test_empty_metrics_log_nothing(tmp_path):
    assert fit_and_log(tmp_path) == {}


def test_metrics_with_equal_state_share_it():
    train, *_ = metrics_of_stages({"precision": MulticlassPrecision(2), "recall": MulticlassRecall(2)})
    train.update(LOGITS, LABELS)
    train.compute()
    assert len(train.compute_groups) == 1


def test_updates_are_buffered():
    updates = []

    class UpdateCounter(MeanSquaredError):
        def update(self, preds, target):
            updates.append(len(preds))
            super().update(preds, target)

    train, *_ = metrics_of_stages({"mse": UpdateCounter()})
    outputs, targets = torch.randn(4100, 10), torch.randn(4100, 10)
    for step in range(0, 4100, 100):
        batch = outputs[step : step + 100].clone()
        train.update(batch, targets[step : step + 100])
        batch.zero_()  # as a model may do
    assert updates == [3300], "the buffer is flushed at 65,536 numbers"
    assert train["mse"].compute() == pytest.approx(float((outputs - targets).square().mean())), (
        "compute flushes the buffer"
    )
    train.update(torch.zeros(20_000, 10), torch.zeros(20_000, 10))
    assert updates == [3300, 800, 20_000], "large batches are not buffered"
    train.update(outputs[:100], targets[:100])
    train.reset()
    train.update(LOGITS, LOGITS + 1)
    assert train.compute() == {"train/mse": 1}, "reset empties the buffer"


def get_refusal(loss, metrics, outputs=LOGITS, targets=LABELS) -> str:
    with pytest.raises(MisconfigurationException) as refusal:
        refuse_misfits(loss, metrics, outputs, targets)
    return str(refusal.value)


def test_check_does_not_change_loss_metrics_and_rng():
    metric, loss = MulticlassAccuracy(2), nn.CrossEntropyLoss()
    state = torch.random.get_rng_state()
    refuse_misfits(loss, {"acc": metric, "none": None}, LOGITS, LABELS)
    refuse_misfits(nn.MSELoss(), {"r2": R2Score()}, torch.zeros(2), torch.zeros(2))
    assert not metric.update_called
    assert torch.random.get_rng_state().equal(state)


def test_regression_loss_is_refused_for_classes():
    refusal = get_refusal(nn.MSELoss(), {})
    assert "The loss MSELoss does not accept" in refusal
    assert "int64 (4,)" in refusal
    assert "loss=cross_entropy" in refusal


def test_classification_loss_is_refused_for_numbers():
    assert "loss=mse" in get_refusal(nn.CrossEntropyLoss(), {}, torch.zeros(2, 1), torch.zeros(2))


def test_unreduced_loss_is_refused():
    assert "reduction=mean" in get_refusal(nn.CrossEntropyLoss(reduction="none"), {})


def test_class_weights_of_wrong_length_are_refused():
    assert "CrossEntropyLoss" in get_refusal(nn.CrossEntropyLoss(torch.ones(3)), {})


def test_refused_metric_is_named():
    refusal = get_refusal(nn.CrossEntropyLoss(), {"acc": MulticlassAccuracy(2), "mine": MeanSquaredError()})
    assert "The metric mine, a MeanSquaredError, does not accept" in refusal
    assert "metrics.mine=null" in refusal


def test_unnamed_metric_is_refused():
    assert "MulticlassAccuracy without a name" in get_refusal(nn.CrossEntropyLoss(), MulticlassAccuracy(2))


def test_different_dtypes_and_shapes_are_not_buffered_together():
    train, *_ = metrics_of_stages({"mse": MeanSquaredError()})
    plain, values = MeanSquaredError(), [torch.randn(4, 5), torch.randn(4, 9), torch.randn(3, 9).double()]
    values += [torch.full((2, 9), 1e4, dtype=torch.float16), torch.randn(3, 9)]
    for outputs in values:
        for metric in (train, plain):
            metric.update(outputs, torch.zeros_like(outputs))
    assert train.compute()["train/mse"] == pytest.approx(float(plain.compute()))
