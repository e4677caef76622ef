"""Tests of the default run of `python train.py` against the closed-form least squares line."""

import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from conftest import ROOT


@pytest.fixture
def closed_form():
    """Return slope and intercept of least squares on the training points of the default config."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        data = instantiate(compose("train").data)
    x, y = data.train_set.tensors
    return torch.linalg.lstsq(torch.cat([x, torch.ones_like(x)], dim=1), y).solution.flatten()


def line(checkpoint):
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    return torch.stack([weights["linear.weight"].squeeze(), weights["linear.bias"].squeeze()])


def test_fitted_line_equals_least_squares(train, closed_form, capfd):
    (run,) = train()
    assert line(run / "checkpoints/last.ckpt") == pytest.approx(closed_form, abs=0.01)
    # The best checkpoint differs from it because validation points are random.
    assert line(run / "checkpoints/best.ckpt") == pytest.approx(closed_form, abs=0.3)

    results = json.loads((run / "results.json").read_text())
    assert results["epochs"] == 500
    # The remaining error is the noise, with variance 2².
    assert results["metrics"]["test/loss"] == pytest.approx(4, abs=1.5)

    slope, intercept = line(run / "checkpoints/best.ckpt").tolist()
    printed = capfd.readouterr().out
    assert f"y = {slope:.3f} x + {intercept:.3f}" in printed
    assert "y = 3.000 x + 2.000" in printed
    assert f"at x = 4        y = {4 * slope + intercept:.3f}" in printed
    assert 4 * slope + intercept == pytest.approx(14, abs=1)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop", "adagrad"])
def test_every_optimizer_finds_the_line(train, closed_form, optimizer):
    (run,) = train(f"optimizer={optimizer}", "trainer.check_val_every_n_epoch=100")
    # AdamW shrinks the weights slightly.
    assert line(run / "checkpoints/last.ckpt") == pytest.approx(closed_form, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["constant", "step", "cosine", "one_cycle", "plateau", "warmup_cosine"])
def test_every_scheduler_finds_the_line(train, closed_form, scheduler):
    (run,) = train("optimizer=sgd", f"scheduler={scheduler}", "trainer.max_epochs=200")
    assert line(run / "checkpoints/last.ckpt") == pytest.approx(closed_form, abs=0.1)


@pytest.mark.slow
def test_noise_free_line_is_found_exactly(train):
    (run,) = train("data.noise=0", "data.slope=-1.5", "data.intercept=7", "optimizer=sgd", "trainer.max_epochs=200")
    assert line(run / "checkpoints/best.ckpt") == pytest.approx(torch.tensor([-1.5, 7.0]), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_gradient_clipping_works_in_mixed_precision(train, optimizer):
    """Also for fused optimizers."""
    mixed = ["trainer.accelerator=cpu", "trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1e-6"]
    (run,) = train(f"optimizer={optimizer}", "optimizer.weight_decay=0", *mixed, "trainer.max_epochs=1")
    assert (run / "results.json").exists()


@pytest.mark.slow
def test_plateau_scheduler_counts_only_validations(train):
    rare = ["trainer.check_val_every_n_epoch=20", "trainer.max_epochs=200"]
    (run,) = train("optimizer=sgd", "optimizer.lr=1e-4", "scheduler=plateau", "scheduler.patience=2", *rare)
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert state["lr_schedulers"][0]["last_epoch"] == 10
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-4


@pytest.mark.slow
def test_early_stopping_stops_unless_disabled(train):
    (run,) = train("callbacks=early_stopping")
    assert json.loads((run / "results.json").read_text())["epochs"] < 500
    (run,) = train("callbacks=early_stopping", "callbacks.early_stopping=null", "trainer.max_epochs=30")
    assert json.loads((run / "results.json").read_text())["epochs"] == 30
