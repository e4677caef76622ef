"""`python train.py experiment=mnist`, on small files in MNIST's format."""

import json

import pytest
import torch

SMALL = ["experiment=mnist", "data.num_val=100", "data.batch_size=50"]


def metrics(run):
    return json.loads((run / "results.json").read_text())["metrics"]


@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_it_learns_digits(train, digits, model):
    (run,) = train(*SMALL, f"data.root={digits}", f"model={model}", "trainer.max_epochs=8")
    # A guess is right once in ten.
    assert metrics(run)["test/acc"] > 0.8
    assert metrics(run)["val/acc"] > 0.8


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop", "adagrad"])
def test_every_optimizer_learns_by_its_name_alone(train, digits, optimizer):
    (run,) = train(*SMALL, f"data.root={digits}", f"optimizer={optimizer}", "trainer.max_epochs=6")
    # A guess has the loss ln 10 = 2.3.
    assert metrics(run)["test/acc"] > 0.8
    assert metrics(run)["test/loss"] < 0.8


@pytest.mark.parametrize("scheduler", ["constant", "step", "cosine", "one_cycle", "plateau"])
def test_every_scheduler_learns_by_its_name_alone(train, digits, scheduler):
    (run,) = train(*SMALL, f"data.root={digits}", f"scheduler={scheduler}", "trainer.max_epochs=6")
    assert metrics(run)["test/acc"] > 0.8


def test_a_seed_decides_the_result(train, digits):
    """0 is a seed like any other, and another seed is another run."""

    def run(seed):
        return metrics(train(*SMALL, f"data.root={digits}", "model=mlp", "trainer.max_epochs=2", f"seed={seed}")[0])

    first, again, other = run(0), run(0), run(1)
    assert first == again
    assert first != other


def test_the_best_checkpoint_is_plain_tensors_with_the_preprocessing_inside(train, digits):
    (run,) = train(*SMALL, f"data.root={digits}", "trainer.max_epochs=1")
    for name in ("best", "last"):
        weights = torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]
        assert weights["mean"].item() == pytest.approx(0.1307)
        assert weights["std"].item() == pytest.approx(0.3081)


def test_training_can_start_from_a_checkpoint(train, digits):
    arguments = [*SMALL, f"data.root={digits}", "model=mlp", "scheduler=constant"]
    (first,) = train(*arguments, "trainer.max_epochs=2")
    (second,) = train(*arguments, "trainer.max_epochs=3", f"ckpt_path={first}/checkpoints/last.ckpt")
    results = json.loads((second / "results.json").read_text())
    assert results["epochs"] == 3
    assert results["steps"] == 30  # 500 images by 50, three times: 20 steps were there already
