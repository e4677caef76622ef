"""Tests that data the model cannot use cause one message with dtypes, shapes, and the remedy before training."""

import json
from pathlib import Path

import pytest

from project_for_tests import PACKAGE

MODULE = """
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
N = 12
x = torch.rand({size})
y = torch.arange(N) % 3
{change}


class Own(LightningDataModule):
    image_shape = {shape}

    def __init__(self, **values):
        super().__init__()

    def train_dataloader(self):
        samples = [{sample} for x, y in zip(x, y)]
        return DataLoader(samples, 4, shuffle={shuffle})

    def val_dataloader(self):
        return self.train_dataloader()

    test_dataloader = val_dataloader

    def find_inputs(self, words):
        return words

    def read_input(self, word):
        return {read}
"""
REGRESSION = ["~data", "trainer.max_epochs=1", "scheduler=constant"]
CLASSIFICATION = [
    *REGRESSION,
    "model=cnn",
    "+data.image_shape=[1,8,8]",
    "+data.num_classes=3",
    "+data.mean=[0.5]",
    "+data.std=[0.5]",
]
GOOD = {"size": "N, 1", "change": "y = y[:, None].float()", "sample": "(x, y)", "shuffle": "True", "shape": "None"}
IMAGES = {**GOOD, "size": "N, 1, 8, 8", "change": "x = (255 * x).to(torch.uint8)", "shape": "[1, 8, 8]"}
READ = "torch.tensor([float(word)])"


@pytest.fixture
def train_on(own_project):
    """Return a function that trains on a data module with custom lines."""

    def train_on(arguments=REGRESSION, read=READ, **parts):
        Path(PACKAGE, "own.py").write_text(MODULE.format(**GOOD | parts, read=read), encoding="utf-8")
        own_project("train.py", *arguments, f"+data._target_={PACKAGE}.own.Own", "hydra.run.dir=run")

    return train_on


@pytest.mark.parametrize(
    ("parts", "found", "remedy"),
    [
        ({"change": "x, y = x.double(), y[:, None].float()"}, "x float64 (4, 1)", "x.to(torch.float32)"),
        ({"change": "y = y[:, None].double()"}, "y float64 (4, 1)", "y.to(torch.float32)"),
        ({"change": "y = y.float()"}, "y float32 (4,)", "y[:, None]"),
        ({}, "y int64 (4,)", "y[:, None].to(torch.float32)"),
        ({"change": "x, y = x[:, 0], y[:, None].float()"}, "x float32 (4,)", "x[:, None]"),
        ({"size": "N, 3"}, "x float32 (4, 3)", "Change x"),
        ({"sample": "dict(x=x, y=y)"}, "a dict of x: float32 (4, 1)", "a tuple (x, y)"),
        ({"sample": "x"}, "provides: float32 (4, 1)", "a tuple (x, y)"),
        ({"sample": "(x, y, y)"}, "int64 (4,), int64 (4,)", "a tuple (x, y)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_regression_reports_the_expected_batch(train_on, parts, found, remedy):
    with pytest.raises(SystemExit) as exit_:
        train_on(**{"change": ""} | parts)
    message = str(exit_.value.code)
    assert found in message
    assert "LinearRegression expects: x float32 (N, 1), y float32 (N, 1)" in message
    assert remedy in message
    assert not list(Path("run").rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("change", "found", "remedy"),
    [
        ("", "images float32 (4, 1, 8, 8)", "(255 * images).round().to(torch.uint8)"),
        ("x = x.double()", "images float64", "(255 * images).round().to(torch.uint8)"),
        (f"{IMAGES['change']}; y = y.float()", "labels float32 (4,)", "labels.to(torch.int64)"),
        (f"{IMAGES['change']}; y = y.to(torch.uint8)", "labels uint8 (4,)", "labels.to(torch.int64)"),
        (f"{IMAGES['change']}; y = y[:, None]", "labels int64 (4, 1)", "labels.squeeze(1)"),
        (f"{IMAGES['change']}; y = torch.eye(3)[y]", "labels float32 (4, 3)", "labels.argmax(dim=1)"),
        (f"{IMAGES['change']}; y = y + 1", "to 3", "Number the classes from 0"),
        (f"{IMAGES['change']}; y = y - 1", "from -1", "Number the classes from 0"),
    ],
)
def test_classifier_reports_the_expected_batch(train_on, change, found, remedy):
    with pytest.raises(SystemExit) as exit_:
        train_on(CLASSIFICATION, **IMAGES | {"change": change, "shuffle": "False"})
    message = str(exit_.value.code)
    assert found in message
    assert "images uint8 (N, 1, H, W), labels int64 (N,) from 0 to 2" in message
    assert remedy in message
    assert not list(Path("run").rglob("*.ckpt"))


@pytest.mark.parametrize("shuffle", ["True", "False"])
def test_empty_data_set_is_reported(train_on, shuffle):
    with pytest.raises(SystemExit, match="train_dataloader of the data module has no batches"):
        train_on(change="x, y = x[:0], y[:0]", shuffle=shuffle)


def test_commands_accept_data_without_a_batch_size(train_on, own_project, capfd):
    train_on()
    own_project("evaluate.py", "run", "--json")
    own_project("predict.py", "run", "1", "2.5", "--output", "p.json")
    assert len(json.loads(Path("p.json").read_text())) == 2


@pytest.mark.parametrize(
    ("read", "found"),
    [("torch.tensor(float(word))", "x float32 (1,)"), ("torch.tensor([int(word)])", "x int64 (1, 1)")],
)
def test_predict_reports_an_unsuitable_input(train_on, own_project, read, found):
    train_on(read=read)
    with pytest.raises(SystemExit) as exit_:
        own_project("predict.py", "run", "1")
    assert f"read_input provides: {found}\nLinearRegression expects: x float32 (N, 1)" in str(exit_.value.code)


def test_double_precision_accepts_double_data(train_on):
    train_on([*REGRESSION, "trainer.precision=64-true"], change="x, y = x.double(), y[:, None].double()")
    assert Path("run/results.json").exists()


def test_missing_test_set_is_reported_before_training(train_on, own_project, monkeypatch):
    monkeypatch.setitem(GOOD, "read", READ)
    text = MODULE.replace("test_dataloader = val_dataloader", "")
    Path(PACKAGE, "own.py").write_text(text.format(**GOOD), encoding="utf-8")
    command = ["train.py", *REGRESSION, f"+data._target_={PACKAGE}.own.Own", "hydra.run.dir=run"]
    with pytest.raises(SystemExit, match="Own has no test_dataloader") as exit_:
        own_project(*command)
    assert not Path("run").exists()
    remedy = str(exit_.value.code).partition("or reuse the validation data: ")[2]
    Path(PACKAGE, "own2.py").write_text(text.format(**GOOD) + f"\n    {remedy}\n", encoding="utf-8")
    own_project(*command[:-2], f"+data._target_={PACKAGE}.own2.Own", "hydra.run.dir=run")


CALLBACK = """
from lightning import Callback


class Mine(Callback):
    pass
"""
MODEL = """
from torch import nn

from small_task.points import LinearRegression


class Late(LinearRegression):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        del self.linear

    def configure_model(self):
        self.linear = nn.Linear(1, 1)
"""


def test_custom_callback_and_model_work_with_all_commands(own_project):
    """The callback is in the former folder of the template's callbacks; the model creates its layers late."""
    folder = Path(PACKAGE, "callbacks")
    folder.mkdir()
    for path, text in {"callbacks/__init__.py": "", "callbacks/mine.py": CALLBACK, "late.py": MODEL}.items():
        Path(PACKAGE, path).write_text(text, encoding="utf-8")
    mine = [f"+callbacks.mine._target_={PACKAGE}.callbacks.mine.Mine", f"model._target_={PACKAGE}.late.Late"]
    own_project("train.py", *mine, "trainer.max_epochs=2", "hydra.run.dir=run")
    for verb, *arguments in (["evaluate.py"], ["predict.py", "1"], ["resume.py", "trainer.max_epochs=3"]):
        own_project(verb, "run", *arguments)
