"""Tests of what a run writes to TensorBoard, read with its own reader, and to figures/."""

import io
import re
import sys
from itertools import pairwise

import numpy
import pytest
import torch
from hydra.utils import instantiate
from lightning import Trainer
from omegaconf import OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data
from torch.utils.data import DataLoader

from conftest import ROOT, skip_if_deleted

TAGS = (ROOT / "docs/runs.md").read_text(encoding="utf-8").partition("| tag |")[2]
EVERYTHING = {"images": 0, "scalars": 0, "tensors": 0}  # 0 keeps all events


def events(run):
    return EventAccumulator(str(run), size_guidance=EVERYTHING).Reload()


@pytest.fixture
def mnist(digits):
    small = ["data.num_val=100", "data.batch_size=50", "trainer.max_epochs=3"]
    return ["experiment=mnist", f"data.root={digits}", *small]


@pytest.mark.slow
def test_table_of_tags_is_complete(train, mnist):
    rows = re.findall(r"^\| (.*?) \| .* \| (.*?) \|$", TAGS, re.MULTILINE)
    for arguments, experiment in ((["trainer.max_epochs=20"], "linear_regression"), (mnist, "images")):
        (run,) = train(*arguments)
        tags = events(run).Tags()
        promised = {
            tag.replace("NAME", "acc")  # the default metric for images; linear regression has none
            for tag_cell, of in rows
            for tag in re.findall("`(.*?)`", tag_cell)
            if {"all", experiment} & set(of.split(", ")) and ("NAME" not in tag or experiment == "images")
            if not re.search("CLASS|TRUE", tag)
        }
        assert promised == {*tags["scalars"], *tags["images"], *(tag.partition("/")[0] for tag in tags["tensors"])}
        assert tags["graph"]


@pytest.mark.slow
def test_curves_have_expected_steps_and_values(train, mnist):
    (run,) = train(*mnist, "trainer.log_every_n_steps=1")
    curves = {tag: events(run).Scalars(tag) for tag in ("train/lr", "train/epoch_seconds", "train/samples_per_second")}
    rates = [point.value for point in curves["train/lr"]]
    assert [point.step for point in curves["train/lr"]] == list(range(30))
    assert max(rates) == pytest.approx(0.02, rel=0.1), "one_cycle rises to optimizer.lr"
    assert rates[-1] < rates[0] < max(rates)
    for tag in ("train/epoch_seconds", "train/samples_per_second"):
        assert [point.step for point in curves[tag]] == [9, 19, 29], "the last step of each epoch"
        assert all(point.value > 0 for point in curves[tag])
    # An epoch has 500 samples, and their training takes no longer than the epoch.
    for seconds, samples in zip(curves["train/epoch_seconds"], curves["train/samples_per_second"], strict=True):
        assert samples.value >= 500 / seconds.value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "steps"),
    [("trainer.max_epochs=40", range(7, 40, 8)), ("trainer.max_epochs=3", [0, 1, 2]), ("max_steps", [0, 1, 3, 7])],
)
def test_regression_figures_are_drawn(train, limit, steps):
    limits = ["trainer.max_epochs=-1", "trainer.max_steps=9"] if limit == "max_steps" else [limit]
    (run,) = train(*limits)
    read = events(run)
    for tag in ("train/fitted_line", "train/loss_surface"):
        figures = read.Images(tag)
        assert [figure.step for figure in figures] == list(steps)
        assert {(figure.width, figure.height) for figure in figures} == {(640, 480)}
        assert len({figure.encoded_image_string for figure in figures}) == len(figures), "all figures differ"
    assert len(read.Images("test/fitted_line")) == 1
    check_files(run, read)


@pytest.mark.slow
def test_classifier_figures_are_drawn(train, mnist):
    (run,) = train(*mnist)
    read = events(run)
    sizes = {"confusion_matrix": (640, 640), "class_accuracy": (640, 480), "confidently_wrong": (720, 540)}
    for name, size in sizes.items():
        assert [figure.step for figure in read.Images(f"val/{name}")] == [9, 19, 29]
        assert [figure.step for figure in read.Images(f"test/{name}")] == [30]
        assert {(figure.width, figure.height) for figure in read.Images(f"val/{name}")} == {size}
    check_files(run, read)


@pytest.mark.slow
def test_figures_are_drawn_once_per_epoch(train, mnist):
    (run,) = train(*mnist, "trainer.val_check_interval=2")
    assert len(events(run).Scalars("val/loss")) == 15
    assert len(events(run).Images("val/confusion_matrix")) == 3


def check_files(run, read):
    """Check that the files equal the last figures in TensorBoard."""
    files = {path.name: numpy.asarray(Image.open(path)) for path in (run / "figures").iterdir()}
    assert set(files) == {tag.replace("/", "_") + ".png" for tag in read.Tags()["images"]}
    for tag in read.Tags()["images"]:
        last = Image.open(io.BytesIO(read.Images(tag)[-1].encoded_image_string))
        pixels = files[tag.replace("/", "_") + ".png"]
        assert numpy.array_equal(pixels, numpy.asarray(last))
        assert 0.5 < (pixels == 255).mean() < 0.99 or "wrong" in tag, "neither empty nor full"


@pytest.mark.slow
def test_figures_are_drawn_without_tensorboard(train):
    (run,) = train("trainer.max_epochs=2", "~logger")
    assert (run / "figures/train_fitted_line.png").exists()


@pytest.mark.slow
def test_diverging_run_is_drawn_while_finite(train):
    (run,) = train("optimizer=sgd", "optimizer.lr=10", "trainer.max_epochs=40", "callbacks.finite_loss=null")
    steps = [figure.step for figure in events(run).Images("train/fitted_line")]
    assert steps == [7]


@pytest.mark.slow
def test_config_and_hyperparameters_are_logged(train):
    (run,) = train("trainer.max_epochs=1", "optimizer=sgd", "optimizer.lr=0.01", "trainer.gradient_clip_val=1")
    read = events(run)
    (text,) = read.Tensors("config/text_summary")
    config = (run / ".hydra/config.yaml").read_text(encoding="utf-8")
    assert text.tensor_proto.string_val[0].decode() == f"```yaml\n{config}```"

    content = read.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    values = parse_session_start_info_plugin_data(content).hparams
    assert values["optimizer"].string_value == "SGD"
    assert values["optimizer.lr"].number_value == 0.01
    assert values["trainer.gradient_clip_val"].number_value == 1
    assert values["trainer.deterministic"].string_value == "False"
    assert values["model"].string_value == "LinearRegression"
    assert not {"model.optimizer", "data.seed", "run_dir"} & set(values), "no duplicates, no values that always differ"
    assert OmegaConf.load(run / "hparams.yaml")["optimizer.lr"] == 0.01


@pytest.mark.slow
def test_graph_contains_network(train, mnist):
    (run,) = train(*mnist, "trainer.max_epochs=1", "model=mlp")
    nodes = {node.name for node in events(run).Graph().node}
    assert any("MLP[network]" in name and "Linear" in name for name in nodes)


@pytest.mark.slow
def test_graph_does_not_change_the_run(train, mnist):
    """Tracing changes neither the random numbers of dropout nor the statistics of batch normalization."""
    for model in ("cnn", "mlp"):
        quick = [*mnist, f"model={model}", "trainer.max_epochs=1"]
        runs = train(*quick) + train(*quick, "callbacks.run_description=null")
        states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in runs]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


class Untraceable(torch.nn.Linear):
    """A network that fails when it is traced."""

    def __init__(self, **arguments):
        super().__init__(28 * 28, 10)

    def forward(self, images):
        if torch.jit.is_tracing():
            raise TypeError("cannot be traced")
        return super().forward(images.flatten(1))


@pytest.mark.slow
def test_untraceable_network_has_no_graph(train, mnist, capfd):
    (run,) = train(*mnist, "trainer.max_epochs=1", "model.network._target_=test_tensorboard.Untraceable")
    assert not events(run).Tags()["graph"]
    assert "no graph of the model: cannot be traced" in capfd.readouterr().out


@pytest.mark.slow
def test_resumed_run_continues_curves_and_figures(train, script, tmp_path):
    (run,) = train("trainer.max_epochs=20")
    script("resume.py", run, "trainer.max_epochs=30")
    read = events(run)
    assert [point.step for point in read.Scalars("val/loss")] == list(range(30))
    assert [figure.step for figure in read.Images("train/fitted_line")] == [3, 7, 11, 15, 19, 23, 29]
    assert "max_epochs: 30" in read.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()


class Fixed(torch.nn.Module):
    """A network that returns the first pixels of an image as logits."""

    def forward(self, images):
        return images.flatten(1)[:, :3]


@pytest.mark.slow
def test_most_confident_mistakes_come_first(tmp_path):
    skip_if_deleted(["model=cnn"])
    config = OmegaConf.load(ROOT / "configs/model/image_classifier.yaml")
    classifier = OmegaConf.load(ROOT / "configs/callbacks/default.yaml").classifier_figures
    figures = instantiate(classifier)
    loss = torch.nn.CrossEntropyLoss()
    model = instantiate({"_target_": config._target_}, Fixed(), 3, [0.0], [1 / 255], loss, {}, False, None, None)
    logits = torch.tensor([[9, 1, 0], [0, 2, 9], [0, 5, 0], [7, 0, 0], [0, 0, 8]], dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, 2, 2])
    batches = [(logits[:3].view(-1, 1, 1, 3), labels[:3]), (logits[3:].view(-1, 1, 1, 3), labels[3:])]
    trainer = Trainer(
        accelerator="cpu", logger=False, callbacks=[figures], default_root_dir=tmp_path, enable_progress_bar=False
    )
    trainer.test(model, DataLoader(batches, batch_size=None), verbose=False)
    images, true, predictions, probabilities = figures.wrong
    assert [image.flatten().tolist() for image in images] == [[0, 2, 9], [7, 0, 0], [0, 5, 0]]
    assert true.tolist() == [1, 2, 0]
    assert predictions.tolist() == [2, 0, 1]
    assert probabilities.tolist() == sorted(probabilities.tolist(), reverse=True)
    assert figures.matrix.compute().tolist() == [[1, 1, 0], [0, 0, 1], [1, 0, 1]]
    assert (tmp_path / "figures/test_confidently_wrong.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("num_classes", "name"), [(1, "x"), (10, "a rather long name"), (200, "name")])
def test_figures_fit_any_number_of_classes(num_classes, name):
    skip_if_deleted(["model=cnn"])
    figures = instantiate(OmegaConf.load(ROOT / "configs/callbacks/default.yaml").classifier_figures)
    draw = sys.modules[type(figures).__module__]
    matrix = 5 * torch.eye(num_classes, dtype=torch.int64)
    matrix[0, 0] = 0  # a class without samples
    names = [f"{name} {label}" for label in range(num_classes)]
    for figure in (draw.confusion_matrix(matrix, names), draw.class_accuracy(matrix, names)):
        figure.draw_without_rendering()
        (axes,) = figure.axes
        box = figure.bbox
        labels = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert 1 <= len(labels) <= 30
        assert all(box.y0 <= label.y0 and label.y1 <= box.y1 for label in labels), "within the figure"
        assert not any(left.overlaps(right) for left, right in pairwise(labels))


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 15])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 224, 224)])
def test_figure_fits_any_number_of_mistakes(count, shape):
    skip_if_deleted(["model=cnn"])
    figures = instantiate(OmegaConf.load(ROOT / "configs/callbacks/default.yaml").classifier_figures)
    draw = sys.modules[type(figures).__module__]
    images, labels = torch.zeros(count, *shape, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64)
    figure = draw.confidently_wrong(images, labels, labels + 1, torch.linspace(1, 0.1, count), ["aeroplane", "bird"])
    figure.draw_without_rendering()
    texts = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(texts) == count
    assert all(figure.bbox.y0 <= text.y0 and text.y1 <= figure.bbox.y1 for text in texts)
    assert not any(left.overlaps(right) for left, right in pairwise(texts))
