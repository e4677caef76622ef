"""Test demo.py without a browser. The tests of the template open its page in one."""

import base64
import io
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import torch_starter
from project_for_tests import ROOT, environment, write_images
from torch_starter.mistakes import UserError

pytest.importorskip("gradio", reason='Gradio is not installed: pip install -e ".[demo]"')

import gradio

from torch_starter.demo import display, examples, images, serving
from torch_starter.demo.page import make_page
from torch_starter.demo.predictor import Predictor


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return tmp_path


def test_predictions_match_predict_py(line, classifier, folder):
    predictor = Predictor(torch_starter.load_run(line))
    (row,) = predictor.run.predict([4.25])
    assert predictor.predict(predictor.read(["4.25"])[None])["y"].tolist() == [row["y"]]

    write_images(folder / "new", count=1, seed=5)
    predictor = Predictor(torch_starter.load_run(classifier))
    for path in (folder / "new").rglob("*.jpg"):
        (row,) = predictor.run.predict([path], probabilities=True)
        probabilities = [value for name, value in row.items() if name.startswith("probability_of_")]
        image = predictor.read([str(path)])
        assert predictor.predict(image[None])["probabilities"][0].tolist() == probabilities
        html = images.answer_image(predictor, image)
        assert re.findall(r"<span>([\d.]+%)", html) == [f"{value:.1%}" for value in probabilities]


def test_predictor_uses_precision_of_run(line, folder):
    run = torch_starter.load_run(line, overrides=["trainer.precision=bf16-true"])
    predictor = Predictor(run)
    assert predictor.predict(torch.tensor([[4.25]]))["y"].dtype == torch.bfloat16


def test_demo_stays_local_writes_nothing_and_stops_cleanly(line, folder):
    """Run demo.py as a user would; an audit hook records its connections."""
    code = f"""
import runpy, sys
connected = open("connected.txt", "w", buffering=1)
def watch(event, arguments):
    if event == "socket.connect":
        print(arguments[1], file=connected)
sys.addaudithook(watch)
runpy.run_path({str(ROOT / "demo.py")!r}, run_name="__main__")
"""
    # A proxy that does not exist; Gradio must not use it to request its own page.
    proxy = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    before = {path: path.stat().st_mtime_ns for path in line.rglob("*")}
    command = [sys.executable, "-c", code, str(line), "--port", str(free_port())]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment() | proxy | {"TMPDIR": str(folder)}, **pipes) as process:
        address = process.stdout.readline().split()[0]
        assert address.startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert output == ""
    assert errors.splitlines()[1:] == ["The page is closed."]
    assert {path: path.stat().st_mtime_ns for path in line.rglob("*")} == before
    assert not list(folder.glob("demo_*"))
    connected = (folder / "connected.txt").read_text().splitlines()
    assert connected  # Gradio requests its own page
    assert [address for address in connected if not address.startswith(("('127.0.0.1'", "('::1'"))] == []


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_invalid_arguments_raise_error_before_loading(line, script, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            SystemExit, match=f"Cannot serve a page at --host 127.0.0.1 --port {port}: .*in use.* Choose another"
        ):
            script("demo.py", line, "--port", port)
    with pytest.raises(SystemExit, match=r"Cannot serve a page at --host 203\.0\.113\.1: "):
        script("demo.py", line, "--host", "203.0.113.1")
    with pytest.raises(SystemExit, match=r"Cannot serve a page at --host 127\.0\.0\.1 --port 99999: "):
        script("demo.py", line, "--port", "99999")
    with pytest.raises(SystemExit, match="nowhere is not a run folder"):
        script("demo.py", "nowhere")
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r'not installed: pip install -e "\.\[demo\]"'):
        script("demo.py", line)


def test_unsupported_data_module_raises_error(line, folder):
    run = torch_starter.load_run(line)
    run.data.read_input = lambda word: torch.zeros(2)
    with pytest.raises(UserError, match="no page for Points: it has neither image_shape nor columns"):
        make_page(run)
    run.data.image_shape = (1, 8, 8)
    with pytest.raises(RuntimeError):  # the model does not take images: its own error
        make_page(run)


def test_examples_show_wrong_predictions_first(classifier, folder):
    run = torch_starter.load_run(classifier)
    found = examples.find_examples(Predictor(run))
    assert len(found) == min(12, len(run.data.test_dataloader().dataset))
    is_wrong = [", predicted " in example.caption for example in found]
    assert is_wrong == sorted(is_wrong, reverse=True)
    assert sum(is_wrong) <= 6


def test_missing_test_images_raise_error(classifier, folder):
    run = torch_starter.load_run(classifier, overrides=["data.root=gone"])
    with pytest.raises(UserError, match="Dataset not found"):
        examples.find_examples(Predictor(run))
    assert not Path("gone").exists()  # nothing is downloaded
    run.data.split_file = classifier / "split.csv"  # which would be written again
    with pytest.raises(UserError, match=r"split\.csv is missing in the run folder"):
        examples.find_examples(Predictor(run))


class CornerModel:
    """A model that sees only the brightness of the upper left quarter of images."""

    def predict(self, images):
        inside = images[:, :, :16, :16].float().mean(dim=(1, 2, 3)) / 255
        return {"probabilities": torch.stack([1 - inside, inside], dim=1)}

    def class_names(self, count):
        return ["dark", "<b>bright</b>"]


def pixels(html: str) -> numpy.ndarray:
    """Return the pixels of the first image in HTML."""
    return numpy.asarray(Image.open(io.BytesIO(base64.b64decode(re.search('base64,([^"]*)', html)[1]))))


def test_occlusion_map_is_red_where_covering_matters():
    image = torch.zeros(1, 32, 32, dtype=torch.uint8)
    image[:, :16, :16] = 255
    html = images.occlusion_map(CornerModel(), image)
    assert "<b>" not in html
    redness = pixels(html)[..., 0].astype(int) - pixels(html)[..., 1]
    assert redness[4:12, 4:12].min() > 50
    assert redness[22:, 22:].max() == 0
    assert "by less than 1%" in images.occlusion_map(CornerModel(), torch.zeros(1, 32, 32, dtype=torch.uint8))


def test_bars_keep_label_order_and_escape_names():
    html = display.probability_bars(["b", "<script>"], [0.25, 0.75])
    assert html.index(">b<") < html.index("&lt;script&gt;")
    assert "<script" not in html
    assert "width: 75.00%" in html
    assert html.index('class="row largest"') > html.index(">b<")
    many = display.probability_bars([f"class {label}" for label in range(100)], [label / 4950 for label in range(100)])
    assert many.index("class 99") < many.index("class 98")
    assert many.count('class="bar"') == 12


def test_effect_bars_extend_to_both_sides():
    html = display.effect_bars({"rooms": 2.0, "age": -4.0, "city": 0.0})
    assert re.findall(r"<span>([^<]*)</span>", html) == ["age", "-4", "rooms", "+2", "city", "+0"]
    assert re.findall(r"margin-left: ([\d.]+)%; width: ([\d.]+)%", html) == [
        ("0.00", "50.00"),
        ("50.00", "25.00"),
        ("50.00", "0.00"),
    ]


def test_visitors_cannot_read_other_files(classifier, folder, monkeypatch):
    uploads = folder / "uploads"
    uploads.mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(uploads))
    page = make_page(torch_starter.load_run(classifier))
    (field,) = [block for block in page.blocks.values() if isinstance(block, gradio.Image)]
    for path in (uploads / "1.png", uploads / "../secret.png", folder / "secret.png"):
        Image.new("L", (28, 28)).save(path)
    files = (uploads / "1.png", uploads / "../secret.png", folder / "secret.png", folder, "/etc")
    named = [field.data_model(path=str(path)) for path in files]
    assert field.preprocess(named[0]) == str(uploads / "1.png")
    for other in named[1:]:
        with pytest.raises(gradio.Error, match="not an uploaded file"):
            field.preprocess(other)


def test_enormous_image_is_refused_without_decoding(folder):
    Image.new("1", (10_000, 6_000)).save(folder / "large.png")
    with pytest.raises(ValueError, match="it has 10000 x 6000 pixels"):
        images.refuse_enormous("large.png")
    (folder / "words.png").write_text("no image")
    images.refuse_enormous("words.png")  # its reader reports the error


def test_page_ignores_damaged_results(line, folder):
    for text in ('{"metrics": null}', '{"metr', '{"metrics": {"test/loss": null}}'):
        (line / "results.json").write_text(text)
        make_page(torch_starter.load_run(line))


def test_predict_step_can_use_batch_idx_and_trainer(line, folder):
    run = torch_starter.load_run(line)
    run.model.predict_step = lambda batch, batch_idx: {"y": run.model(batch).squeeze(1) + run.model.trainer.world_size}
    (y,) = Predictor(run).predict(torch.tensor([[4.0]]))["y"].tolist()
    assert y == torch_starter.load_run(line).predict(4)[0]["y"] + 1
