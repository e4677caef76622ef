"""Test compare.py: the settings in which finished runs differ, and their metrics over seeds and folds."""

import csv
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys

import pytest
import rich
from PIL import Image

from project_for_tests import ROOT, environment
from torch_starter.comparison.curves import read_curve

QUICK = ["trainer.max_epochs=20", "callbacks.regression_figures=null", "callbacks.run_description=null"]


@pytest.fixture(autouse=True)
def _use_wide_terminal():
    rich.reconfigure(width=250)


@pytest.fixture
def write(tmp_path):
    """Return a function that writes the results.json of a run and returns its folder."""

    def write(name, overrides, value, choices=None, hyperparameters=None, mode="max", **more):
        run = tmp_path / "outputs" / name
        (run / ".hydra").mkdir(parents=True)
        (run / ".hydra/config.yaml").write_text("seed: 1\n")
        results = {
            "metrics": {"val/acc": value, "test/acc": value, "test/confusion/cat/dog": 1.0},
            "monitored": {"metric": "val/acc", "mode": mode, "value": value},
            "epochs": 5,
            "seconds": 1.5,
            "overrides": overrides,
            "choices": choices or {},
            "hyperparameters": hyperparameters or {},
            "commit": None,
        }
        (run / "results.json").write_text(json.dumps(results | more))
        return run

    return write


@pytest.fixture
def compare(script, capfd):
    """Return a function that runs `python compare.py ARGUMENTS` and returns its output."""

    def compare(*arguments):
        capfd.readouterr()
        script("compare.py", *arguments)
        return capfd.readouterr().out

    return compare


def tables(printed):
    """Return each table as rows of cells, with its header first."""
    found = []
    lines = printed.splitlines()
    for number, line in enumerate(lines):
        if re.fullmatch(r" ─+ *", line):
            rows = [lines[number - 1]]
            for row in lines[number + 1 :]:
                if not row.strip() or not row.startswith("  "):
                    break
                rows.append(row)
            found.append([re.split(r" {2,}", row.strip()) for row in rows])
    return found


def results(run):
    return json.loads((run / "results.json").read_text())


def test_compare_averages_runs_over_seeds(train, compare, tmp_path):
    runs = [
        train(*QUICK, f"optimizer={name}", f"seed={seed}")[0]
        for name, seed in (("adam", 1), ("adam", 2), ("sgd", 1), ("sgd", 2))
    ]
    found = tables(compare())
    assert [len(table) for table in found] == [3, 5]
    assert found[0][0] == ["optimizer", "n", "val/loss", "test/loss", "epochs", "seconds"]
    for name, pair in (("adam", runs[:2]), ("sgd", runs[2:])):
        row = next(row for row in found[0] if row[0] == name)
        values = [results(run)["metrics"]["test/loss"] for run in pair]
        assert row[1] == "2"
        assert row[3] == f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
    assert found[1][0] == ["run", "optimizer", "seed", "val/loss", "test/loss", "epochs", "seconds"]
    # results.json also has groups and keys that were not typed.
    assert results(runs[0])["choices"]["model"] == "linear_regression"
    assert results(runs[0])["hyperparameters"]["data.num_train"] == 100
    assert compare("--where", "model=linear_regression", "--where", "seed=1").count("adam") == 1

    shutil.rmtree(runs[3])
    plotted = compare("--plot", "plots/loss.png", "--sort", "val/loss")
    assert "is not plotted" not in plotted
    with Image.open(tmp_path / "plots/loss.png") as image:
        assert len(image.convert("L").getcolors()) > 50, "the figure is not empty"
    curve = read_curve(runs[0], "val/loss")
    assert sorted(curve) == list(range(1, 21))
    assert min(curve.values()) == pytest.approx(results(runs[0])["monitored"]["value"])


def test_plot_reads_csv_logger(train, compare, tmp_path):
    (run,) = train(*QUICK, "logger=csv")
    compare("--plot", "loss.png")
    assert (tmp_path / "loss.png").exists()
    assert sorted(read_curve(run, "val/loss")) == list(range(1, 21))


def test_resumed_run_keeps_choices_and_hyperparameters(train, script):
    (run,) = train(*QUICK, "optimizer=sgd")
    before = results(run)
    script("resume.py", run, "trainer.max_epochs=25")
    assert results(run)["choices"] == before["choices"]
    assert results(run)["hyperparameters"] == before["hyperparameters"] | {"trainer.max_epochs": 25}


def test_compare_averages_folds(write, compare):
    for fold, value in enumerate((0.5, 0.6, 0.7)):
        write(f"folds/{fold}", ["data.num_folds=3", f"data.fold={fold}"], value)
    settings, runs = tables(compare("outputs/folds"))
    assert settings[1][:2] == ["3", "0.6000 ± 0.1000"]
    assert [row[:3] for row in runs] == [["run", "fold", "val/acc"], *([n, n, f"0.{5 + int(n)}000"] for n in "210")]


def test_compare_omits_metrics_with_several_values(write, compare):
    write("a", ["seed=1"], 0.5)
    assert "confusion" not in compare()


def test_compare_uses_typed_and_default_values(write, compare):
    write("typed", ["optimizer=sgd", "optimizer.lr=1e-1"], 0.5, {"optimizer": "sgd"}, {"optimizer.lr": 0.1})
    adam = {"optimizer": "adam"}, {"optimizer.lr": 0.01}
    write("default", [], 0.6, *adam)
    write("place", ["data.root=/disk", "hydra.run.dir=outputs/place"], 0.7, *adam)
    settings, runs = tables(compare())
    assert settings[0][:3] == ["optimizer", "lr", "n"]
    assert [row[:3] for row in settings[1:]] == [["adam", "0.01", "2"], ["sgd", "0.1", "1"]]
    assert [row[0] for row in runs[1:]] == ["place", "default", "typed"]


def test_changed_config_file_distinguishes_runs(write, compare):
    write("before", ["seed=1"], 0.5, hyperparameters={"seed": 1, "optimizer.lr": 0.1, "data.batch_size": 64})
    write("after", ["seed=2"], 0.6, hyperparameters={"seed": 2, "optimizer.lr": 0.2, "data.batch_size": 64})
    (runs,) = tables(compare())
    assert [row[:3] for row in runs] == [["run", "lr", "seed"], ["after", "0.2", "2"], ["before", "0.1", "1"]]


@pytest.mark.slow
def test_compare_ignores_values_set_from_data(train, image_folder, compare):
    options = ["data=image_folder", f"data.root={image_folder}", "model=cnn", "data.image_shape=[3,16,16]"]
    runs = [train(*options, "trainer.max_epochs=1", f"seed={seed}")[0] for seed in (1, 2)]
    assert all("data.num_classes" not in results(run)["hyperparameters"] for run in runs)
    settings, _ = tables(compare())
    assert settings[1][0] == "2"


def test_compare_reads_overrides_of_old_runs(write, compare):
    for number, optimizer in enumerate(("adam", "adam", "sgd")):
        run = write(str(number), [f"optimizer={optimizer}", f"seed={number}"], 0.5 + number / 10)
        old = {key: results(run)[key] for key in ("metrics", "monitored", "epochs", "seconds", "overrides")}
        (run / "results.json").write_text(json.dumps(old))
    settings, _ = tables(compare())
    assert [row[:3] for row in settings[1:]] == [["sgd", "1", "0.7000"], ["adam", "2", "0.5500 ± 0.0707"]]


def test_compare_orders_by_metric(write, compare):
    for name, value, loss in (("a", 0.5, 3.0), ("b", 0.7, 2.0), ("c", None, 1.0)):
        write(name, [f"model={name}"], value, metrics={"val/acc": value, "test/acc": value, "test/loss": loss})

    def order(*arguments):
        return "".join(row[0] for row in tables(compare(*arguments))[0][1:])

    assert order() == "bac", "the best first; NaN, null in JSON, last"
    assert order("--sort", "test/acc") == "bac", "the mode is that of val/acc"
    assert order("--sort", "test/loss") == "cba", "the smallest first"
    assert order("--sort", "test/loss", "--reverse") == "abc"
    assert order("--best", "1") == "b"
    assert "and 2 more settings: --best 3" in compare("--best", "1")


def test_compare_shows_differing_commits(write, compare):
    write("a", ["seed=1"], 0.5, commit="a" * 40)
    assert "commit" not in compare()
    write("b", ["seed=2"], 0.6, commit="b" * 40 + "-dirty")
    settings, runs = tables(compare())
    assert settings[1][-1] == "2 commits"
    assert [row[-1] for row in runs] == ["commit", "bbbbbbb-dirty", "aaaaaaa"]


def test_compare_reports_repeated_runs(write, compare):
    for name in "ab":
        write(name, ["seed=1"], 0.5)
    assert "runs with the same setting and seed as another, counted separately: 1" in compare()


def test_output_files_contain_all_values(write, compare, tmp_path):
    write("a", ["optimizer.lr=0.1"], 0.5, {"optimizer": "sgd"}, {"optimizer.lr": 0.123456789012345, "seed": 1})
    write("b", ["optimizer.lr=0.2"], math.nan, {"optimizer": "adam"}, {"optimizer.lr": 0.2, "seed": 1})
    for name in ("runs.csv", "runs.json", "runs.md"):
        compare("--output", name)
    with (tmp_path / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["outputs/a", "outputs/b"]
    assert rows[0]["optimizer.lr"] == "0.123456789012345"
    assert rows[0]["test/confusion/cat/dog"] == "1.0"
    found = json.loads((tmp_path / "runs.json").read_text())
    assert found[0]["settings"] == {"optimizer": "sgd", "optimizer.lr": 0.123456789012345, "seed": 1}
    assert found[1]["metrics"]["val/acc"] is None
    page = (tmp_path / "runs.md").read_text().splitlines()
    assert page[0] == "| run | lr | val/acc | test/acc | epochs | seconds |"
    assert len(page) == 4


def test_compare_reports_unfinished_and_damaged_runs(write, compare, tmp_path):
    write("a", ["seed=1"], 0.5)
    (write("b", ["seed=2"], 0.5) / "results.json").unlink()
    for number, text in enumerate(("{", "[]", '{"overrides": 1}', '{"overrides": [], "metrics": {"a": "b"}}')):
        (write(f"damaged{number}", [], 0.5) / "results.json").write_text(text)
    printed = compare()
    assert "unfinished runs, skipped: 1\n" in printed
    assert re.findall(r"damaged(\d)/results.json cannot be read", printed) == list("0123")
    assert len(tables(printed)[0]) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission on Windows")
def test_compare_follows_no_links(write, compare, tmp_path):
    write("a", ["seed=1"], 0.5)
    run = write("b", ["seed=2"], 0.987)
    (run / "results.json").rename(tmp_path / "secret.json")
    (run / "results.json").symlink_to(tmp_path / "secret.json")
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "outputs/link")
    printed = compare()
    assert "b/results.json cannot be read and is skipped" in printed
    assert "0.9870" not in printed


def test_compare_escapes_control_characters(write, compare):
    write("a", ["model=\x1b[2J"], 0.5)
    write("b", ["model=x"], 0.6)
    assert "\x1b" not in compare()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sort", "val/ac"], r"--sort val/ac: no run has this metric. Did you mean val/acc\?"),
        (["--where", "optimiser=adam"], r"no run has the key optimiser. Did you mean optimizer\?"),
        (["--where", "optimizer=adm"], r"no run has this value. Did you mean adam\?"),
        (["--where", "optimizer"], "--where is optimizer; it must be a key and a value"),
        (["--best", "0"], "--best is 0"),
        (["outputs/m"], r"outputs/m is not a folder. Did you mean outputs/n\?"),
        (["--output", "runs.txt"], r"its name must end in .csv or .json or .md"),
        (["--plot", "runs.pdf"], r"its name must end in .png"),
        (["--plot", "runs.png"], "no run has a curve of val/acc"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_arguments_raise_error(write, compare, arguments, message):
    write("n", ["optimizer=adam"], 0.5, {"optimizer": "adam"})
    with pytest.raises(SystemExit, match=message):
        compare(*arguments)


def test_error_without_finished_run_suggests_command(write, compare):
    with pytest.raises(SystemExit, match=r"no finished run in outputs. Train one: python train\.py"):
        compare()
    (write("a", [], 0.5) / "results.json").unlink()
    with pytest.raises(SystemExit, match=r"1 not finished; resume one: python resume\.py"):
        compare()


@pytest.mark.parametrize("width", [80, 100, 120])
def test_table_fits_terminal(write, compare, width):
    channels = {"model.network.channels": "[16, 32, 64, 128]", "data.augmentation.crop": "RandomResizedCrop"}
    for number in range(4):
        typed = [f"{key}={value}{number % 2}" for key, value in channels.items()] + [f"seed={number}"]
        metrics = {f"test/{name}": 0.5 for name in ("acc", "auroc", "f1", "iou", "precision", "recall", "top5")}
        write(str(number), typed, number / 10, metrics=metrics)
    rich.reconfigure(width=width, force_terminal=True)
    printed = compare()
    assert max(map(len, printed.splitlines())) <= width
    assert "0.1000 ± 0.1414" in printed
    assert "hidden, because the terminal is too narrow:" in printed


def test_compare_imports_neither_torch_nor_lightning(write, tmp_path):
    write("a", ["seed=1"], 0.5)
    code = (
        "import runpy, sys; sys.argv[:1] = ['compare.py']; runpy.run_path(sys.argv.pop(), run_name='__main__'); "
        "print(sorted({'torch', 'lightning'} & {*sys.modules}))"
    )
    command = [sys.executable, "-c", code, "--output", "runs.csv", str(ROOT / "compare.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
