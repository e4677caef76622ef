"""Train and load runs in Python and in notebooks: `load_run` and `train_run`."""

import json
import logging
import os
import signal
import subprocess
import sys

import numpy
import pytest
import torch
from lightning import Callback
from PIL import Image

import torch_starter
from project_for_tests import ROOT, draw_digits, environment
from torch_starter.mistakes import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return tmp_path


def test_loaded_run_has_config_model_data_and_metrics(line, folder):
    run = torch_starter.load_run("latest")
    assert run.folder == line
    assert run.config.optimizer.lr == 0.1
    assert not run.model.training
    best = torch.load(line / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert all(value.equal(best[name]) for name, value in run.model.state_dict().items())
    assert run.data.batch_size == 100
    assert run.metrics == json.loads((line / "results.json").read_text())["metrics"]
    assert run.evaluate()["test/loss"] == pytest.approx(run.metrics["test/loss"], rel=1e-6)


def test_load_run_accepts_checkpoint_and_overrides(line, folder):
    run = torch_starter.load_run(line, checkpoint="last", overrides=["data.noise=0"])
    last = torch.load(line / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert run.model.state_dict()["linear.weight"].equal(last["linear.weight"])
    assert run.evaluate("val")["val/loss"] != torch_starter.load_run(line, "last").evaluate("val")["val/loss"]


def test_predict_returns_the_rows_of_predict_py(line, script, folder):
    script("predict.py", line, 4, "-1e-3", "--output", "rows.json")
    rows = json.loads((folder / "rows.json").read_text())
    run = torch_starter.load_run(line)
    assert run.predict([4, "-1e-3"]) == rows
    assert run.predict(4)[0]["y"] == pytest.approx(rows[0]["y"], rel=1e-6)
    assert run.predict(torch.tensor([[4.0], [-1e-3]])) == [row | {"input": str(i)} for i, row in enumerate(rows)]
    with pytest.raises(UserError, match="cat: skipped, it is not a number"):
        run.predict([4, "cat"])


def test_predict_accepts_image_files_and_tensors(classifier, folder):
    images, _ = draw_digits(5, seed=1)
    for number, image in enumerate(images):
        Image.fromarray(image.numpy()).save(folder / f"{number}.png")
    run = torch_starter.load_run(classifier)
    by_file = run.predict([folder / f"{number}.png" for number in range(5)])
    by_tensor = run.predict(images[:, None])
    assert [row["label"] for row in by_file] == [row["label"] for row in by_tensor]
    assert by_file[0].keys() == {"input", "label", "probability"}


def test_loaded_run_writes_no_files(line, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    run = torch_starter.load_run(line)
    run.predict([1])
    run.evaluate("train")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_untrusted_target_is_refused(line, folder):
    config = line / ".hydra/config.yaml"
    config.write_text(config.read_text().replace("small_task.points.Points", "os.mkdir"))
    with pytest.raises(UserError, match=r"data\._target_ of the run's config is os\.mkdir"):
        torch_starter.load_run(line)


@pytest.mark.parametrize(("run", "message"), [("nowhere", "is not a run folder"), ("latest", "There is no run in")])
def test_missing_run_is_reported(folder, run, message):
    with pytest.raises(UserError, match=message):
        torch_starter.load_run(run)


def list_names(folder):
    return sorted(path.name for path in folder.rglob("*") if "events" not in path.name)


def test_train_run_matches_train_py(train, folder, capfd):
    overrides = ["trainer.max_epochs=20", "optimizer=sgd"]
    (by_command,) = train(*overrides)
    before = logging.root.handlers[:], sys.argv, dict(os.environ)
    capfd.readouterr()
    run = torch_starter.train_run(*overrides)
    assert "epoch 20/20" in capfd.readouterr().out
    assert (logging.root.handlers[:], sys.argv, dict(os.environ)) == before
    assert run.folder.parent == by_command.parent, "outputs/NAME"
    for name in (".hydra/overrides.yaml", ".hydra/config.yaml"):
        text = (by_command / name).read_text().replace(by_command.name, run.folder.name)
        assert (run.folder / name).read_text() == text
    assert list_names(run.folder) == list_names(by_command)
    (start,) = json.loads((run.folder / "environment.json").read_text())
    assert start["command"].endswith("train.py trainer.max_epochs=20 optimizer=sgd")
    assert run.metrics == json.loads((by_command / "results.json").read_text())["metrics"]
    assert numpy.isclose(run.predict([0])[0]["y"], run.model.linear.bias.item())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optmizer=sgd"], "optmizer"),
        (["optimizer.lr=fast"], r"optimizer\.lr=fast: fast is not a number"),
        (["data.batch_size=0"], "data.batch_size is 0"),
    ],
)
def test_user_error_leaves_no_run_folder(folder, overrides, message):
    before = logging.root.handlers[:]
    with pytest.raises(UserError, match=message):
        torch_starter.train_run(*overrides)
    assert not list(folder.rglob("config.yaml"))
    assert logging.root.handlers == before
    assert torch_starter.train_run("trainer.max_epochs=1").metrics, "the next run works"


def test_bug_keeps_its_traceback(folder):
    with pytest.raises(ZeroDivisionError):
        torch_starter.train_run("+callbacks.fault._target_=test_train.DivideByZero", "+callbacks.fault.divisor=0")


class Interrupt(Callback):
    """Interrupts training, like the stop button of a notebook cell."""

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            signal.raise_signal(signal.SIGINT)


def test_interrupted_cell_can_be_resumed(folder, capfd, request):
    # Background processes of a shell ignore SIGINT.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, previous))
    before = signal.getsignal(signal.SIGINT)
    stop = "+callbacks.interrupt._target_=test_python.Interrupt"
    with pytest.raises(KeyboardInterrupt):
        torch_starter.train_run("trainer.max_epochs=4", "callbacks.last_checkpoint.times=null", stop)
    assert signal.getsignal(signal.SIGINT) is before
    assert "resume with   python resume.py" in capfd.readouterr().out
    (run,) = (path.parent for path in folder.glob("outputs/*/*/.hydra"))
    assert (run / "checkpoints/last.ckpt").exists()
    assert not (run / "results.json").exists()


CELLS = """
import torch_starter
run = torch_starter.train_run("trainer.max_epochs=40", "optimizer.lr=0.1")
---
again = torch_starter.load_run("latest")
assert again.folder == run.folder
again.predict([4, 5])
"""


@pytest.mark.slow
def test_notebook_trains_with_progress_bar_and_predicts(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="needs pip install nbclient ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="needs pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="needs pip install nbclient ipykernel")
    cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS.split("---")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    folder = tmp_path / "notebooks"
    folder.mkdir()
    env = environment() | {"PYTHONPATH": str(ROOT)}
    resources = {"metadata": {"path": folder}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute(env=env)
    trained, predicted = (cell.outputs for cell in notebook.cells)
    text = "".join(output.get("text", "") for output in trained)
    assert text.count("epoch 40/40") == 1
    assert "\x1b" not in text
    bars = [output for output in trained if "text/html" in output.get("data", {})]
    assert len(bars) == 1, "one progress bar, updated in place"
    assert 'max="40"' in bars[0]["data"]["text/html"]
    assert not [output for output in trained if output.get("name") == "stderr"]
    assert predicted[0]["data"]["text/plain"].startswith("[{'input': '4', 'y': ")
    assert list(folder.glob("outputs/linear_regression/*/results.json"))


@pytest.mark.slow
def test_load_run_finds_project_package_without_installation(line, tmp_path):
    code = f"import sys; sys.path.append({str(ROOT)!r}); import torch_starter; "
    code += f"print(torch_starter.load_run({str(line)!r}).metrics)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "test/loss" in done.stdout
