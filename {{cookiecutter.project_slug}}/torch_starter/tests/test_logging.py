"""Values that a model logs by `self.log` in each step, and how often Lightning processes them."""

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.regression import MeanSquaredError

from torch_starter.callbacks.sparse_logging import SparseLogging


class Model(LightningModule):
    """Logs a value, a mean over the epoch and a metric in each step."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.metric = MeanSquaredError()

    def training_step(self, batch):
        (x,) = batch
        y = self.layer(x)
        self.metric.update(y, x)
        self.log("train/value", float(self.global_step))
        self.log("train/mean", x.mean(), on_epoch=True, on_step=False)
        self.log("train/metric", self.metric, on_step=False, on_epoch=True)
        return (y - x).square().mean()

    def validation_step(self, batch):
        self.log("val/mean", batch[0].mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Train for two epochs of ten steps; return the trainer and the calls of `log` as (step, name)."""

    def fit(*callbacks, **options):
        calls, log = [], LightningModule.log

        def counted(self, name, value, *args, **kwargs):
            calls.append((self.global_step, name))
            return log(self, name, value, *args, **kwargs)

        monkeypatch.setattr(LightningModule, "log", counted)
        torch.manual_seed(0)
        loader = DataLoader(TensorDataset(torch.arange(10.0)[:, None]), batch_size=1)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=2,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            num_sanity_val_steps=0,
            **options,
        )
        model = Model()
        trainer.fit(model, loader, loader)
        monkeypatch.undo()
        assert "log" not in vars(model), "the model is unchanged"
        return trainer, calls

    return fit


def test_metrics_match_plain_lightning(fit):
    plain, _ = fit(log_every_n_steps=5)
    sparse, _ = fit(SparseLogging(), log_every_n_steps=5)
    assert sparse.callback_metrics.keys() == plain.callback_metrics.keys()
    for name, value in plain.callback_metrics.items():
        assert sparse.callback_metrics[name].item() == value.item(), name
    assert sparse.callback_metrics["train/mean"] == 4.5


def test_unused_values_are_not_logged(fit):
    _, calls = fit(SparseLogging(), log_every_n_steps=5)
    assert [step for step, name in calls if name == "train/value"] == [4, 9, 14, 19]
    assert [step for step, name in calls if name == "train/metric"] == [0, 10]
    assert len([step for step, name in calls if name == "train/mean"]) == 20
    _, calls = fit(SparseLogging(), log_every_n_steps=0, check_val_every_n_epoch=2)
    assert [step for step, name in calls if name == "train/value"] == [9, 19], "the last step of each epoch"
    _, calls = fit(SparseLogging(), log_every_n_steps=0, check_val_every_n_epoch=2, limit_train_batches=1)
    assert [step for step, name in calls if name == "train/value"] == [1], "the validated step, if epochs have one step"


def test_evaluation_mean_is_started_once(fit):
    _, calls = fit(SparseLogging())
    assert [step for step, name in calls if name == "val/mean"] == [10, 20], "the first of ten steps"


class VariousValues(Model):
    """Logs values in validation that are not plain means."""

    def validation_step(self, batch, batch_idx):
        x = batch[0].mean()
        self.log("val/largest", x, reduce_fx="max")
        self.log("val/weighted", x, batch_size=batch_idx + 1)
        self.log("val/number", float(x))
        self.log("val/whole", batch_idx)
        self.log("val/step", x, on_step=True, on_epoch=True)

    def on_validation_batch_end(self, outputs, batch, batch_idx):
        self.log("val/hook", batch[0].mean() + 1)

    def on_validation_epoch_end(self):
        self.log("val/end", 7.0)


def test_other_evaluation_values_match_plain_lightning(tmp_path):
    def validate(*callbacks):
        options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(accelerator="cpu", callbacks=list(callbacks), default_root_dir=tmp_path, **options)
        loader = DataLoader(TensorDataset(torch.arange(10.0)[:, None]), batch_size=3)
        return [trainer.validate(VariousValues(), loader, verbose=False) for _ in range(2)]

    found = validate(SparseLogging())
    assert found == validate()
    ((metrics,), _) = found
    assert metrics["val/largest"] == 9
    assert metrics["val/hook"] == pytest.approx(5.5)


class TwoLoaders(Model):
    def __init__(self):
        super().__init__()
        self.metrics = torch.nn.ModuleList([MeanSquaredError(), MeanSquaredError()])

    def validation_step(self, batch, batch_idx, dataloader_idx):
        self.metrics[dataloader_idx].update(batch[0], batch[0] + dataloader_idx)
        self.log("val/metric", self.metrics[dataloader_idx], on_step=False, on_epoch=True)


def test_each_loader_has_a_metric(tmp_path):
    loaders = [DataLoader(TensorDataset(torch.arange(4.0)[:, None])) for _ in range(2)]
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", callbacks=[SparseLogging()], default_root_dir=tmp_path, **options)
    (first, second) = trainer.validate(TwoLoaders(), loaders, verbose=False)
    assert first == {"val/metric/dataloader_idx_0": 0}
    assert second == {"val/metric/dataloader_idx_1": 1}
