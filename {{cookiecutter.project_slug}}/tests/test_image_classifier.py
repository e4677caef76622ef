"""Tests of `python train.py experiment=mnist` on small files in MNIST's format."""

import json

import numpy
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from conftest import GLYPHS, draw_digits

SMALL = ["experiment=mnist", "data.num_val=100", "data.batch_size=50"]


def predicted(script, tmp_path, *arguments):
    """Return the rows that `predict.py` writes to a file."""
    script("predict.py", *arguments, "--output", tmp_path / "rows.json")
    return json.loads((tmp_path / "rows.json").read_text())


def metrics(run):
    return json.loads((run / "results.json").read_text())["metrics"]


@pytest.mark.parametrize("model", ["cnn", pytest.param("mlp", marks=pytest.mark.slow)])
def test_classifier_learns_digits(train, digits, model):
    (run,) = train(*SMALL, f"data.root={digits}", f"model={model}", "trainer.max_epochs=8")
    # Guessing has an accuracy of 0.1.
    assert metrics(run)["test/acc"] > 0.8
    assert metrics(run)["val/acc"] > 0.8


def test_debug_trains_a_few_batches(train, digits):
    (run,) = train("experiment=[mnist,debug]", f"data.root={digits}", "data.num_val=100", "data.batch_size=50")
    results = json.loads((run / "results.json").read_text())
    assert (results["epochs"], results["steps"]) == (2, 6)
    assert run.parent.name == "mnist+debug"
    assert not (run / "figures").exists()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop", "adagrad", "muon"])
def test_every_optimizer_learns_with_defaults(train, digits, optimizer):
    (run,) = train(*SMALL, f"data.root={digits}", f"optimizer={optimizer}", "trainer.max_epochs=6")
    # Guessing has a loss of ln 10 = 2.3.
    assert metrics(run)["test/acc"] > 0.8
    assert metrics(run)["test/loss"] < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["constant", "step", "cosine", "one_cycle", "plateau", "warmup_cosine"])
def test_every_scheduler_learns_with_defaults(train, digits, scheduler):
    (run,) = train(*SMALL, f"data.root={digits}", f"scheduler={scheduler}", "trainer.max_epochs=6")
    assert metrics(run)["test/acc"] > 0.8


@pytest.mark.slow
def test_seed_determines_result(train, digits):
    """Equal seeds, including 0, give equal results; other seeds give other results."""

    def run(seed):
        return metrics(train(*SMALL, f"data.root={digits}", "model=mlp", "trainer.max_epochs=2", f"seed={seed}")[0])

    first, again, other = run(0), run(0), run(1)
    assert first == again
    assert first != other


def test_checkpoints_contain_normalization_constants(train, digits):
    (run,) = train(*SMALL, f"data.root={digits}", "trainer.max_epochs=1")
    for name in ("best", "last"):
        weights = torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]
        assert weights["mean"].item() == pytest.approx(0.1307)
        assert weights["std"].item() == pytest.approx(0.3081)


@pytest.mark.slow
def test_training_starts_from_a_checkpoint(train, digits):
    arguments = [*SMALL, f"data.root={digits}", "model=mlp", "scheduler=constant"]
    (first,) = train(*arguments, "trainer.max_epochs=2")
    (second,) = train(*arguments, "trainer.max_epochs=3", f"ckpt_path={first}/checkpoints/last.ckpt")
    results = json.loads((second / "results.json").read_text())
    assert results["epochs"] == 3
    assert results["steps"] == 30  # 10 steps per epoch; the first run made 20 of them


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["data.num_val=600"], ["data.num_val is 600", "1 to 599"]),
        (["data.num_val=0"], ["data.num_val is 0", "1 to 599"]),
        (["data.dataset=MNITS"], ["data.dataset is MNITS", "MNIST"]),
        (["data.num_classes=5"], ["data.num_classes is 5", "label 9"]),
        (["data.image_shape=[1,32,32]"], ["data.image_shape is [1, 32, 32]", "[1, 28, 28]"]),
        (["model=linear_regression"], ["LinearRegression expects: x float32 (N, 1)", "another data= or model="]),
        (["data.mean=0.5"], ["data.mean is 0.5", "a list"]),
    ],
    ids=lambda value: value[0] if "=" in value[0] else "",
)
def test_invalid_setting_is_explained(train, digits, arguments, messages):
    with pytest.raises(SystemExit) as exit_:
        train("experiment=mnist", f"data.root={digits}", "data.num_val=100", *arguments)
    for message in messages:
        assert message in exit_.value.code
    assert len(exit_.value.code.splitlines()) <= 4


@pytest.mark.slow
def test_prediction_handles_dark_drawings(classifier, script, tmp_path):
    image = Image.fromarray(draw_digits(1, seed=1)[0][0].numpy())
    image.save(tmp_path / "bright.png")
    Image.eval(image, lambda value: 255 - value).save(tmp_path / "dark.png")
    (bright,) = predicted(script, tmp_path, classifier, tmp_path / "bright.png")
    for options in ([], ["--invert"]):
        (dark,) = predicted(script, tmp_path, classifier, tmp_path / "dark.png", *options)
        assert (bright["label"], bright["probability"]) == (dark["label"], dark["probability"])


@pytest.mark.slow
def test_prediction_finds_drawing_on_a_sheet(train, digits, script, tmp_path):
    """Digits drawn on sheets of many sizes are recognized by a network trained on blurred edges."""
    blur = "+data.augmentation.blur={_target_:torchvision.transforms.v2.GaussianBlur,kernel_size:3}"
    small = ["data.num_val=100", "data.batch_size=50", "data.num_workers=0", "trainer.max_epochs=12"]
    (run,) = train("experiment=mnist", f"data.root={digits}", *small, blur)
    generator = numpy.random.default_rng(0)
    rows = [row.split() for row in GLYPHS.split("\n") if row.strip()]
    (tmp_path / "sheets").mkdir()
    for number in range(60):
        glyph = numpy.array([[pixel == "#" for pixel in row[number % 10]] for row in rows])
        scale = int(generator.integers(8, 60))
        height, width = (side * scale + int(generator.integers(2 * scale, 500)) for side in glyph.shape)
        top, left = (
            int(generator.integers(length - side * scale)) for length, side in zip((height, width), (5, 3), strict=True)
        )
        sheet = numpy.full((height, width), 230.0)
        ink = numpy.kron(glyph, numpy.ones((scale, scale)))
        sheet[top : top + 5 * scale, left : left + 3 * scale] -= 180 * ink
        sheet *= numpy.linspace(1, generator.uniform(0.7, 1), width)
        sheet += generator.normal(0, 4, sheet.shape)
        sheet = 255 - sheet if number % 3 == 0 else sheet
        Image.fromarray(sheet.clip(0, 255).astype(numpy.uint8)).save(tmp_path / f"sheets/{number:02}.jpg")
    found = predicted(script, tmp_path, run, tmp_path / "sheets")
    right = sum(int(row["label"]) == number % 10 for number, row in enumerate(found))
    assert right >= 54, f"{right} of 60"


@pytest.mark.slow
def test_blank_sheet_is_reported(classifier, script, tmp_path):
    Image.new("L", (300, 200), 240).save(tmp_path / "blank.png")
    with pytest.raises(SystemExit, match=r"blank\.png: skipped, it has no drawing on it"):
        script("predict.py", classifier, tmp_path / "blank.png")


def test_run_starts_from_weights_of_another_loss(classifier, train, digits):
    small = ["experiment=mnist", f"data.root={digits}", "data.num_val=100", "trainer.max_epochs=1"]
    (run,) = train(*small, f"weights={classifier}/checkpoints/best.ckpt", "loss.weight=balanced")
    assert len(config(run)["loss"]["weight"]) == 10
    (again,) = train(*small, f"weights={run}/checkpoints/best.ckpt")
    assert config(again)["loss"]["weight"] is None


def test_class_metrics_are_named_by_class(train, digits):
    small = [f"data.root={digits}", "data.num_val=100", "trainer.max_epochs=1"]
    (run,) = train("experiment=mnist", *small, "metrics=[accuracy,f1,confusion]", "metrics.f1.average=none")
    found = metrics(run)
    assert {"test/acc", "test/f1/7", "test/confusion/7/1"} <= found.keys()
    assert sum(found[f"test/confusion/7/{label}"] for label in range(10)) > 0


def config(run):
    return OmegaConf.to_container(OmegaConf.load(run / ".hydra/config.yaml"))
