"""Tests of evaluate.py, predict.py and environment.json."""

import contextlib
import csv
import importlib.metadata
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from PIL import Image

from project_for_tests import ROOT, draw_digits, environment
from torch_starter import load_run


def metrics(run):
    return json.loads((run / "results.json").read_text())["metrics"]


def evaluated(script, capfd, *arguments):
    capfd.readouterr()
    script("evaluate.py", *arguments, "--json")
    return json.loads(capfd.readouterr().out)["metrics"]


def predicted(script, tmp_path, *arguments):
    script("predict.py", *arguments, "--output", tmp_path / "predictions.json")
    return json.loads((tmp_path / "predictions.json").read_text())


# evaluate.py


def test_evaluate_matches_training_metrics(classifier, script, capfd):
    found = evaluated(script, capfd, classifier)
    assert found == {name: value for name, value in metrics(classifier).items() if name.startswith("test/")}
    last = evaluated(script, capfd, "--split", "val", "--checkpoint", "last")
    assert last == {name: value for name, value in metrics(classifier).items() if name.startswith("val/")}
    train_metrics = evaluated(script, capfd, "latest", "--split", "train")
    assert train_metrics.keys() == {"train/loss", "train/acc"}


def test_evaluate_prints_table_and_accepts_overrides(line, script, capfd):
    capfd.readouterr()
    script("evaluate.py", line, "data.noise=0")
    printed = capfd.readouterr()
    assert printed.out.splitlines()[0].endswith("best.ckpt")
    assert float(printed.out.split("test/loss")[1]) < metrics(line)["test/loss"]
    assert printed.err == ""


def test_run_without_new_keys_can_be_evaluated(line, script, capfd):
    path = line / ".hydra/config.yaml"
    config = yaml.safe_load(path.read_text())
    del config["data"]["noise"], config["trainer"]["plugins"], config["callbacks"]["resumable"]
    path.write_text(yaml.safe_dump(config))
    assert evaluated(script, capfd, line)["test/loss"] == metrics(line)["test/loss"]


def test_run_from_missing_accelerator_can_be_evaluated(line, script, capfd):
    path = line / ".hydra/config.yaml"
    path.write_text(path.read_text().replace("accelerator: auto", "accelerator: tpu"))
    assert evaluated(script, capfd, line)["test/loss"] == metrics(line)["test/loss"]


@pytest.mark.parametrize("verb", ["resume", "evaluate", "export"])
def test_missing_run_is_named(line, script, verb):
    message = r"outputs/nothing is not a run folder(.|\n)*Latest: outputs/linear_regression/"
    with pytest.raises(SystemExit, match=message):
        script(f"{verb}.py", "outputs/nothing")


@pytest.mark.parametrize("verb", ["resume", "evaluate", "predict", "export"])
def test_message_without_runs_names_train_command(script, verb):
    with pytest.raises(SystemExit, match=r"Start one: python train\.py"):
        script(f"{verb}.py", *(["4"] if verb == "predict" else []))


def test_missing_or_damaged_checkpoint_names_valid_ones(line, script):
    best = line / "checkpoints/best.ckpt"
    best.write_bytes(best.read_bytes()[:-100])
    with pytest.raises(SystemExit, match=r"best.ckpt is damaged. Intact checkpoints: last"):
        script("evaluate.py", line)
    best.unlink()
    with pytest.raises(SystemExit, match=r"best.ckpt is missing. Intact checkpoints: last"):
        script("predict.py", line, "4")


def test_help_does_not_import_torch(tmp_path):
    for verb in {"resume.py", "evaluate.py", "predict.py", "export.py", "compare.py"} & {
        path.name for path in ROOT.iterdir()
    }:
        command = [sys.executable, "-X", "importtime", str(ROOT / verb), "--help"]
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.stdout.startswith("usage:")
        assert "torch" not in {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


# predict.py


def test_predict_accepts_numbers(line, script, tmp_path, capfd):
    weights = torch.load(line / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    rows = predicted(script, tmp_path, line, "4", "-2.5")
    assert [row["input"] for row in rows] == ["4", "-2.5"]
    for row in rows:
        expected = weights["linear.weight"].item() * float(row["input"]) + weights["linear.bias"].item()
        assert row["y"] == pytest.approx(expected, rel=1e-6)
    capfd.readouterr()
    script("predict.py", "4")
    assert f"{rows[0]['y']:.4f}" in capfd.readouterr().out


def test_predict_accepts_numbers_that_look_like_options(line, script, tmp_path):
    numbers = ["-1e-3", "-1E5", "-.5", "-1_000", "-inf", "+3", "-2"]
    rows = predicted(script, tmp_path, "latest", *numbers)
    assert [row["input"] for row in rows] == numbers
    assert [row["y"] is None for row in rows] == [number == "-inf" for number in numbers], "JSON has no infinity"


def test_invalid_number_is_named_and_skipped(line, script, tmp_path):
    with pytest.raises(SystemExit, match="four: skipped, it is not a number"):
        predicted(script, tmp_path, line, "4", "four", "5")
    rows = json.loads((tmp_path / "predictions.json").read_text())
    assert [row["input"] for row in rows] == ["4", "5"]


def test_predictions_match_evaluate(classifier, script, tmp_path, capfd):
    """Predictions for the test images as files have bit-identical probabilities and the same accuracy."""
    images, labels = draw_digits(200, seed=1)
    for i, image in enumerate(images):
        Image.fromarray(image.numpy()).save(tmp_path / f"{i:03}.png")
    rows = predicted(script, tmp_path, classifier, str(tmp_path / "*.png"))
    correct = sum(int(row["label"]) == label for row, label in zip(rows, labels.tolist(), strict=True))
    assert numpy.float32(correct / 200) == numpy.float32(evaluated(script, capfd, classifier)["test/acc"])

    # evaluate.py's loss is the mean of -ln p of the labels; the file has p for correct predictions.
    run = load_run(classifier)
    run.data.setup("test")
    outputs = run.trainer.predict(run.model, (images for images, _ in run.data.test_dataloader()))
    assert [row["probability"] for row in rows] == [p for output in outputs for p in output["probability"].tolist()]


def test_predict_reads_common_image_formats(classifier, script, tmp_path):
    """The same digit in different formats gets the same prediction."""
    images = draw_digits(200, seed=1)[0]
    image = Image.fromarray(images[0].numpy())
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    image.save(folder / "gray.png")
    image.convert("RGB").save(folder / "color.png")
    image.convert("RGB").save(folder / "color.webp", lossless=True)
    image.resize((280, 280), Image.Resampling.NEAREST).save(folder / "deeper/large.png")
    image.convert("RGB").save(folder / "photo.jpg", quality=95)
    image.convert("P").save(folder / "palette.png")
    image.convert("CMYK").save(folder / "print.tif")
    Image.fromarray(images[0].numpy().astype(numpy.uint16) * 257).save(folder / "sixteen_bits.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees clockwise to display
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    # Black in transparent areas is not visible.
    transparent = Image.new("LA", image.size, (0, 0))
    transparent.putalpha(Image.eval(image, lambda value: 255 - value))
    transparent.save(folder / "transparent.png")
    (folder / ".hidden").write_text("not an image of the user")

    rows = predicted(script, tmp_path, classifier, folder)
    assert len(rows) == 10
    (gray,) = (row for row in rows if row["input"].endswith("gray.png"))
    exact = ("color.png", "color.webp", "palette.png", "sixteen_bits.png", "turned.png", "transparent.png")
    for row in rows:
        assert row["label"] == gray["label"], row
        if row["input"].endswith(exact):
            assert row["probability"] == pytest.approx(gray["probability"], rel=1e-5), row


def test_inverted_image_gets_same_prediction(classifier, script, tmp_path):
    image = Image.fromarray(draw_digits(1, seed=1)[0][0].numpy())
    image.save(tmp_path / "bright.png")
    Image.eval(image, lambda value: 255 - value).save(tmp_path / "dark.png")
    (bright,) = predicted(script, tmp_path, classifier, tmp_path / "bright.png")
    (dark,) = predicted(script, tmp_path, classifier, tmp_path / "dark.png", "--invert")
    assert (bright["label"], bright["probability"]) == (dark["label"], dark["probability"])


def test_invert_is_refused_without_support(line, script):
    with pytest.raises(SystemExit, match="Points cannot invert inputs"):
        script("predict.py", line, 4, "--invert", "--output", "rows.csv")
    assert not list(line.parents[2].glob("rows.csv*"))


def test_folder_without_images_is_named(classifier, script, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(SystemExit, match=r"nothing: skipped, there is no image in this folder"):
        script("predict.py", classifier, tmp_path / "nothing")


def children(pid):
    """Return the ids of running child processes."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_interrupted_predict_keeps_rows_and_stops_workers(classifier, tmp_path, suffix):
    folder = tmp_path / "many"
    folder.mkdir()
    for number, image in enumerate(draw_digits(400, seed=1)[0]):
        Image.fromarray(image.numpy()).save(folder / f"{number:03}.png")
    (folder / "010.png").write_text("no image")  # does not stop prediction
    os.mkfifo(tmp_path / "last.png")
    output = tmp_path / f"out.{suffix}"
    output.write_text("as it was")
    config = classifier / ".hydra/config.yaml"
    config.write_text(config.read_text().replace("num_workers: null", "num_workers: 2"))
    command = [sys.executable, ROOT / "predict.py", classifier, folder, tmp_path / "last.png", "--output", output]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        with (tmp_path / "last.png").open("wb"):  # opens once a worker waits for input from it
            part = tmp_path / f"out.{suffix}.part"
            assert part.read_text().count(".png") >= 100
            workers = children(process.pid)
            assert len(workers) == 2
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        errors = process.stderr.read()
    assert process.returncode == 128 + signal.SIGINT
    assert errors.splitlines()[-1] == f"interrupted; {part.read_text().count('.png')} predictions are in {part}"
    assert output.read_text() == "as it was"
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


def test_workers_match_single_process(classifier, script, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number, image in enumerate(draw_digits(180, seed=1)[0]):
        Image.fromarray(image.numpy()).save(folder / f"{number:03}.png")
    for number in (0, 7, 60):
        (folder / f"{number:03}.png").write_text("no image")
    config = classifier / ".hydra/config.yaml"
    found = []
    for workers in (0, 2):
        config.write_text(re.sub("num_workers: .*", f"num_workers: {workers}", config.read_text()))
        with pytest.raises(SystemExit) as exit_:
            predicted(script, tmp_path, classifier, folder)
        assert [line.partition(": skipped")[0][-7:] for line in exit_.value.code.splitlines()] == [
            "000.png",
            "007.png",
            "060.png",
        ]
        found.append(json.loads((tmp_path / "predictions.json").read_text()))
    assert len(found[0]) == 177
    assert found[0] == found[1]
    assert not (tmp_path / "predictions.json.part").exists()


def test_invalid_image_is_named_and_skipped(classifier, script, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    image = Image.fromarray(draw_digits(1, seed=1)[0][0].numpy()).resize((100, 100))
    image.save(folder / "whole.png")
    image.save(folder / "half.jpg")
    (folder / "half.jpg").write_bytes((folder / "half.jpg").read_bytes()[:900])
    (folder / "notes.txt").write_text("three and a seven")
    (folder / "empty.png").touch()
    with pytest.raises(SystemExit) as exit_:
        script("predict.py", classifier, folder, tmp_path / "nothing*.png", "--output", tmp_path / "out.csv")
    lines = exit_.value.code.splitlines()
    for name in ("half.jpg", "notes.txt", "empty.png", "nothing*.png"):
        assert sum(f"{name}: skipped, " in line for line in lines) == 1
    assert len(lines) == 4
    with (tmp_path / "out.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["input"].endswith("whole.png")


def test_output_with_wrong_suffix_is_refused_early(line, script, tmp_path):
    with pytest.raises(SystemExit, match=r"must end in \.csv or \.json"):
        script("predict.py", line, "4", "--output", tmp_path / "out.xlsx")


def test_output_folder_is_refused_early(line, script, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(SystemExit, match="is a folder"):
        script("predict.py", line, "4", "--output", "folder.csv")


def test_output_over_file_of_run_is_refused(line, script):
    before = (line / "results.json").read_bytes()
    with pytest.raises(SystemExit, match="is a file of the run"):
        script("predict.py", line, "4", "--output", line / "results.json")
    assert (line / "results.json").read_bytes() == before
    script("predict.py", line, "4", "--output", line / "predictions.csv")


# environment.json


def test_environment_records_command_and_versions(train, tmp_path):
    (run,) = train("trainer.max_epochs=2", "optimizer=adam")
    (start,) = json.loads((run / "environment.json").read_text())
    python, script, *arguments = shlex.split(start["command"])
    assert python == "python"
    assert script.endswith("train.py")
    assert arguments == ["trainer.max_epochs=2", "optimizer=adam"]
    assert start["packages"]["torch"] == importlib.metadata.version("torch")
    assert {"started", "git", "python", "device", "host", "platform", "cpu_cores"} <= start.keys()


@pytest.mark.parametrize("state", ["none", "within another", "clean", "dirty"])
def test_environment_records_commit_and_diff(train, tmp_path, monkeypatch, state):
    project = tmp_path / "project"
    project.mkdir()
    (project / "train.py").write_text("1\n")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setattr("torch_starter.environment.ROOT", project)
    if state != "none":
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        what = [".gitignore"] if state == "within another" else ["-A"]
        (project / ".gitignore").write_text("")
        for arguments in (["init", "-q"], ["add", *what], [*identity, "commit", "-qm", "all"]):
            subprocess.run(["git", *arguments], cwd=project, check=True)
    if state == "dirty":
        (project / "train.py").write_text("2\n")
    (run,) = train("trainer.fast_dev_run=true")
    (start,) = json.loads((run / "environment.json").read_text())
    if state in ("none", "within another"):
        assert start["git"] is None
    else:
        assert len(start["git"]["commit"]) == 40
        assert start["git"]["dirty"] == (state == "dirty")
        assert ("-1\n+2\n" in start["git"]["diff"]) == (state == "dirty")
