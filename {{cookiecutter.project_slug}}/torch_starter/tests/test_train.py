"""Tests of the files and the output of `python train.py`."""

import json
import logging
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import rich
import torch
import yaml
from lightning import Callback

from project_for_tests import ROOT, environment

QUICK = "trainer.max_epochs=20"


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_run_folder_contains_the_documented_files(train):
    (run,) = train(QUICK)
    assert run.parent.name == "linear_regression"
    events = [name for name in names(run) if name.startswith("events.out.tfevents.")]
    assert events
    assert set(names(run)) - set(events) == {
        ".lock",
        ".hydra/config.yaml",
        ".hydra/hydra.yaml",
        ".hydra/overrides.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "environment.json",
        "figures/test_fitted_line.png",
        "figures/train_fitted_line.png",
        "hparams.yaml",
        "results.json",
        "train.log",
    }
    results = json.loads((run / "results.json").read_text())
    assert set(results["metrics"]) == {"train/loss", "val/loss", "test/loss"}
    assert (run / results["best_checkpoint"]).exists()
    config = yaml.safe_load((run / ".hydra/config.yaml").read_text())
    assert yaml.safe_load((run / "hparams.yaml").read_text())["optimizer.lr"] == config["optimizer"]["lr"]
    assert results["epochs"] == results["steps"] == 20
    assert results["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "linear_regression"),
        (["data=linear"], "linear_regression"),
        (["data=mnist", "model=mlp"], "mnist_mlp"),
        (["experiment=mnist"], "mnist"),
        (["experiment=mnist", "model=mlp"], "mnist"),
        (["-m", "data=mnist", "model=mlp,cnn"], "mnist_mlp+cnn"),
        (["-m", "data=mnist", "model=mlp", "seed=1,2"], "mnist_mlp"),
    ],
    ids=str,
)
def test_output_folder_is_named_after_the_task(train, digits, tmp_path, arguments, name):
    is_mnist = "mnist" in str(arguments)
    data = [f"data.root={digits}", "data.num_val=20", "data.num_workers=0", "model=mlp"] if is_mnist else []
    runs = train(*arguments, *(data[:-1] if "model" in str(arguments) else data), "trainer.fast_dev_run=true")
    assert {run.relative_to(tmp_path / "outputs").parts[0] for run in runs} == {name}
    assert len(list(tmp_path.glob("outputs/*/*"))) == 1, "the jobs of a multirun share its folder"


def test_log_has_no_duplicates_and_no_advertisements(train, capfd):
    (run,) = train(QUICK, "callbacks=early_stopping", "+callbacks.early_stopping.verbose=true")
    printed = capfd.readouterr()
    logged = [line.split(" - ", 1)[-1] for line in (run / "train.log").read_text().splitlines()]
    for lines in (printed.out.splitlines() + printed.err.splitlines(), logged):
        improvements = [line for line in lines if "Metric val/loss improved" in line]
        assert improvements, "Lightning's own lines are missing"
        assert len(set(lines)) == len(lines)
        assert not [line for line in lines if re.search("Tip|pip install|available:|http|deprecat|Warning", line)]
    assert sum(bool(re.match(r"epoch +\d+/20 ", line)) for line in logged) == 10
    assert sum("run folder" in line for line in logged) == 1


@pytest.mark.parametrize(
    ("experiment", "model", "data"),
    [
        ("linear_regression", "LinearRegression, 2 parameters", "Points, 100 samples"),
        ("mnist", "CNN, 29,290 parameters", "MNIST, 500 samples"),
    ],
)
def test_first_line_names_model_data_device_and_folder(train, digits, capfd, experiment, model, data):
    small = [f"data.root={digits}", "data.num_val=100"] if experiment == "mnist" else []
    (run,) = train(f"experiment={experiment}", "trainer.max_epochs=1", "trainer.accelerator=cpu", *small)
    first = capfd.readouterr().out.splitlines()[0]
    assert first == f"{model} | {data} | cpu | outputs/{experiment}/{run.name}"


def test_report_shows_folders_and_next_command(train, capfd):
    (run,) = train(QUICK)
    printed = capfd.readouterr().out
    assert "outputs/linear_regression/" + run.name in printed
    assert f"{run.name}/figures" in printed
    assert "tensorboard --logdir outputs" in printed
    loss = json.loads((run / "results.json").read_text())["metrics"]["test/loss"]
    assert f"{loss:.4f}" in printed


@pytest.mark.parametrize("terminal", [True, False])
def test_terminal_shows_a_bar_and_file_shows_lines(train, capfd, terminal):
    rich.reconfigure(force_terminal=terminal)
    train(QUICK)
    printed = capfd.readouterr().out
    assert ("━" in printed) == ("\x1b" in printed) == terminal
    assert all(re.search(rf"epoch +{epoch}/20 +train/loss \d", printed) for epoch in range(2, 21, 2))


@pytest.mark.parametrize("experiment", ["linear_regression", "mnist"])
def test_fast_dev_run(train, digits, experiment):
    data = ["data.num_val=100", f"data.root={digits}"] if experiment == "mnist" else []
    (run,) = train(f"experiment={experiment}", "trainer.fast_dev_run=true", *data)
    results = json.loads((run / "results.json").read_text())
    assert results["steps"] == 1
    assert results["best_checkpoint"] is None


def test_arguments_of_the_trainer_are_keys(train):
    """Sets common arguments that the config of an earlier version did not list."""
    options = ["max_steps=30", "min_epochs=1", "num_sanity_val_steps=0", "val_check_interval=0.5", "benchmark=false"]
    options += ["gradient_clip_val=1", "gradient_clip_algorithm=value", "reload_dataloaders_every_n_epochs=1"]
    (run,) = train("data.batch_size=10", QUICK, *(f"trainer.{option}" for option in options))
    assert json.loads((run / "results.json").read_text())["steps"] == 30


def test_two_loggers_write_side_by_side(train):
    (run,) = train(QUICK, "logger=[tensorboard,csv]")
    assert any(run.glob("events.out.tfevents.*"))
    assert (run / "csv/version_0/metrics.csv").read_text().startswith("epoch,")


@pytest.mark.parametrize("off", ["~logger", "logger=[]", "logger.tensorboard=null"])
def test_loggers_can_be_disabled(train, off):
    (run,) = train(QUICK, off)
    assert not any(run.glob("events.out.tfevents.*"))
    assert (run / "results.json").exists()


CALLBACKS = yaml.safe_load((ROOT / "configs/callbacks/default.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("callback", [name for name, callback in CALLBACKS.items() if callback])
def test_each_callback_can_be_disabled(train, capfd, callback):
    (run,) = train(QUICK, f"callbacks.{callback}=null")
    assert (run / "checkpoints/best.ckpt").exists() == (callback != "best_checkpoint")
    assert (run / "checkpoints/last.ckpt").exists() == (callback != "last_checkpoint")
    assert ("epoch 20/20" in capfd.readouterr().out) == (callback != "progress")
    assert (run / "figures").exists() == (callback != "regression_figures")


def test_run_without_checkpoints_tests_the_last_weights(train):
    (run,) = train(QUICK, "callbacks.best_checkpoint=null", "callbacks.last_checkpoint=null")
    assert not list(run.rglob("*.ckpt"))
    assert "test/loss" in json.loads((run / "results.json").read_text())["metrics"]


def test_multirun_ends_with_a_table_sorted_by_result(train, capfd):
    runs = train("-m", "optimizer=sgd,adam", "trainer.max_epochs=50", "data.noise=1")
    assert [run.name for run in runs] == ["0", "1"]
    assert runs[0].parent == runs[1].parent
    losses = {
        name: json.loads((run / "results.json").read_text())["metrics"]["test/loss"]
        for name, run in zip(["sgd", "adam"], runs, strict=True)
    }
    assert losses["sgd"] < losses["adam"]
    table = capfd.readouterr().out.rpartition("test/loss ")[2]
    assert table.index(f"{losses['sgd']:.4f}") < table.index(f"{losses['adam']:.4f}")
    assert table.index("sgd") < table.index("adam")
    assert "data.noise" not in table, "settings that all runs share are not in the table"


def test_table_shows_brackets(train, capfd):
    train("-m", "optimizer.betas=[0.9,0.99],[0.8,0.9]", "trainer.max_epochs=1")
    table = capfd.readouterr().out.rpartition("test/loss ")[2]
    assert "[0.9,0.99]" in table
    assert "[0.8,0.9]" in table


def test_multirun_continues_after_a_failed_run(train, tmp_path, capfd):
    rich.reconfigure(width=200)
    with pytest.raises(SystemExit, match="2 of 4 runs failed"):
        train("-m", "data.batch_size=0,100", "optimizer.lr=0.02,0.1", "trainer.max_epochs=5")
    (sweep,) = tmp_path.glob("outputs/linear_regression/*")
    failed = [(sweep / str(number) / "error.txt").exists() for number in range(4)]
    finished = [(sweep / str(number) / "results.json").exists() for number in range(4)]
    assert failed == [True, True, False, False]
    assert finished == [False, False, True, True]
    printed = capfd.readouterr()
    rows = re.findall(r"^ +(\d) ", printed.out, re.MULTILINE)
    assert rows == ["3", "2", "0", "1"], "the best first, the failed runs last"
    assert printed.out.rpartition("test/loss")[2].count("data.batch_size is 0; it must be a positive integer.") == 2
    assert "Traceback" not in printed.out + printed.err
    assert "data.batch_size is 0" in (sweep / "0/train.log").read_text()


class DivideByZero(Callback):
    """Raises a ZeroDivisionError if ``divisor`` is 0."""

    def __init__(self, divisor):
        self.divisor = divisor

    def on_train_epoch_end(self, trainer, pl_module):
        self.divisor = 1 / self.divisor


@pytest.mark.slow
def test_multirun_logs_the_traceback_of_an_error(train, tmp_path, capfd):
    rich.reconfigure(width=200)
    divide = ["+callbacks.fault._target_=test_train.DivideByZero", "+callbacks.fault.divisor=0,1"]
    with pytest.raises(SystemExit, match="1 of 2 runs failed"):
        train("-m", "trainer.max_epochs=2", *divide)
    table = capfd.readouterr().out.rpartition("test/loss")[2]
    assert "ZeroDivisionError: division by zero" in table
    assert "Traceback" not in table
    (log,) = tmp_path.glob("outputs/linear_regression/*/0/train.log")
    assert "Traceback" in log.read_text()
    assert "in on_train_epoch_end" in log.read_text()


@pytest.mark.slow
def test_parallel_multirun_matches_sequential_multirun(train, tmp_path, capfd):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason='needs pip install -e ".[sweep]"')
    rich.reconfigure(width=200)
    grid = ["-m", "data.batch_size=0,100", "optimizer=sgd,adam", "trainer.max_epochs=2"]
    printed, found = [], []
    for launcher in (["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], []):
        with pytest.raises(SystemExit, match="2 of 4 runs failed"):
            train(*grid, *launcher)
        sweep = max(tmp_path.glob("outputs/linear_regression/*"))
        found.append([json.loads((sweep / number / "results.json").read_text())["metrics"] for number in "23"])
        printed.append(capfd.readouterr().out.rpartition("test/loss")[2].partition("run folders")[0])
    assert found[0] == found[1]
    assert printed[0] == printed[1]


@pytest.mark.slow
def test_table_lists_nan_last(train, capfd):
    train(
        "-m",
        "optimizer=sgd",
        "optimizer.lr=1000,0.01,0.02",
        "trainer.max_epochs=40",
        "callbacks.best_checkpoint=null",
        "callbacks.finite_loss=null",
    )
    table = capfd.readouterr().out.rpartition("test/loss")[2]
    assert re.findall(r"^ +(\d) ", table, re.MULTILINE)[-1] == "0"
    assert "nan" in table


def strict(text):
    """Parse JSON and reject Python's NaN and Infinity."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_run_with_infinite_loss_stops(train, tmp_path, capfd):
    lines = []
    for options in (["trainer.max_epochs=40"], ["data.batch_size=1", "trainer.max_epochs=3"]):
        with pytest.raises(SystemExit) as exit_:
            train("optimizer=sgd", "optimizer.lr=1e10", *options, f"hydra.run.dir={len(lines)}")
        lines.append(exit_.value.code)
        run = tmp_path / str(len(lines) - 1)
        assert not (run / "results.json").exists()
        for path in run.glob("checkpoints/*.ckpt"):
            state = torch.load(path, weights_only=True)["state_dict"]
            assert all(value.isfinite().all() for value in state.values())
    assert (tmp_path / "0/checkpoints/best.ckpt").exists(), "the first epoch was finite"
    for line in lines:
        assert re.search(r"loss is (nan|inf) in epoch \d+, after step \d+, at a learning rate of 1e\+10", line)
        for remedy in ("optimizer.lr", "trainer.gradient_clip_val", "detect_anomaly", "callbacks.finite_loss=null"):
            assert remedy in line
    assert "resume.py" not in capfd.readouterr().out, "a resumed run would stop in the same way"


@pytest.mark.slow
def test_nan_results_are_valid_json(train, script, tmp_path, capfd):
    options = ["optimizer=sgd", "optimizer.lr=1e10", "trainer.max_epochs=40", "callbacks.best_checkpoint=null"]
    (run,) = train(*options, "callbacks.finite_loss=null")
    assert strict((run / "results.json").read_text())["metrics"]["test/loss"] is None
    capfd.readouterr()
    script("evaluate.py", run, "--checkpoint", "last", "--json")
    assert strict("{" + capfd.readouterr().out.partition("{")[2])["metrics"]["test/loss"] is None
    script("predict.py", run, "4", "--checkpoint", "last", "--output", "predictions.json")
    assert strict((tmp_path / "predictions.json").read_text())[0]["y"] is None


def test_multirun_table_shows_the_infinite_loss(train, capfd):
    rich.reconfigure(width=250)
    with pytest.raises(SystemExit, match="1 of 2 runs failed"):
        train("-m", "optimizer=sgd", "optimizer.lr=1e10,0.01", "trainer.max_epochs=40")
    assert "loss is" in capfd.readouterr().out.rpartition("test/loss")[2]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (["callbacks.best_checkpoint.monitor=val/losss"], "callbacks.best_checkpoint.monitor"),
        (["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/losss"], "callbacks.early_stopping"),
        (["scheduler=plateau", "scheduler.monitor=val/losss"], "scheduler.monitor"),
        (["callbacks.best_checkpoint.monitor=val/losss", "trainer.num_sanity_val_steps=0"], "best_checkpoint"),
        (["callbacks.best_checkpoint.monitor=train/losss"], "callbacks.best_checkpoint.monitor"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_unknown_monitor_stops_the_run(train, capfd, options, key):
    with pytest.raises(SystemExit) as exit_:
        train(QUICK, *options)
    wrong = "train/losss" if "train" in options[0] else "val/losss"
    assert f"monitor is {wrong}, but no such metric is logged. Did you mean {wrong[:-1]}?" in exit_.value.code
    assert key in exit_.value.code
    printed = capfd.readouterr().out
    assert "resume.py" not in printed
    assert "epoch  2/20" not in printed


class Gap(Callback):
    """Logs a custom metric at the end of each training epoch."""

    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.log("gap", 1.0)


@pytest.mark.parametrize("monitor", ["gap", "train/loss", "epoch"])
def test_custom_metric_can_be_monitored(train, monitor):
    gap = "+callbacks.gap._target_=test_train.Gap"
    (run,) = train(QUICK, gap, f"callbacks.best_checkpoint.monitor={monitor}")
    assert (run / "checkpoints/best.ckpt").exists()


def test_run_folder_is_locked_during_training(train, script, tmp_path, capfd):
    """Another process holds the lock until it is killed; the system then releases the lock."""
    train(QUICK, "hydra.run.dir=mine")
    code = "import os, sys\nfrom torch_starter import run_folder\nwith run_folder.hold_lock('mine'):\n"
    code += "    print(os.getpid(), flush=True)\n    sys.stdin.read()"
    command = [sys.executable, "-c", code]
    other = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        pid = other.stdout.readline().decode().strip()
        before = {path: path.read_bytes() for path in (tmp_path / "mine").rglob("*") if path.is_file()}
        for words in (
            ["resume.py", "mine", "trainer.max_epochs=30"],
            ["train.py", "trainer.max_epochs=30", "hydra.run.dir=mine", "ckpt_path=last"],
            ["train.py", "seed=1", "hydra.run.dir=mine"],
        ):
            with pytest.raises(SystemExit) as exit_:
                script(*words)
            assert f"mine is being trained by process {pid} on {platform.node()}, since 20" in exit_.value.code
        assert {path: path.read_bytes() for path in (tmp_path / "mine").rglob("*") if path.is_file()} == before
        script("evaluate.py", "mine")
        script("predict.py", "mine", "4")
    finally:
        other.kill()
        other.communicate()
    script("resume.py", "mine", "trainer.max_epochs=30")
    assert json.loads((tmp_path / "mine/results.json").read_text())["epochs"] == 30
    assert not (tmp_path / "mine/.lock.json").exists()


@pytest.mark.slow
def test_resuming_a_failed_run_removes_its_error(train, script, tmp_path):
    with pytest.raises(SystemExit, match="1 of 2 runs failed"):
        train("-m", "data.batch_size=0,100", "trainer.max_epochs=2")
    (error,) = tmp_path.glob("outputs/linear_regression/*/0/error.txt")
    script("resume.py", error.parent, "data.batch_size=100")
    assert (error.parent / "results.json").exists()
    assert not error.exists()


@pytest.mark.slow
def test_files_are_utf_8_on_systems_with_another_encoding(tmp_path):
    """As on Windows, files default to ASCII and the console lacks most letters."""
    ascii_ = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"}
    ascii_ |= {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, str(ROOT / "train.py"), QUICK, "hydra.run.dir=run"]
    command += ["+callbacks.says._target_=test_train.LogUnicode"]
    done = subprocess.run(command, cwd=tmp_path, env=environment() | ascii_, capture_output=True, encoding="cp1252")
    assert (done.returncode, done.stderr) == (0, "")
    assert "class \\u5c71 …" in done.stdout
    assert "class 山 …" in (tmp_path / "run/train.log").read_text(encoding="utf-8")


class LogUnicode(Callback):
    """Logs a character that the Western European code page lacks."""

    def on_train_end(self, trainer, pl_module):
        logging.getLogger(__name__).info("class 山 …")


@pytest.mark.parametrize(("folder", "log_dir"), [(".", "."), ("mine/first", "mine"), ("../elsewhere", None)])
def test_run_folder_can_be_anywhere(train, tmp_path, capfd, folder, log_dir):
    train(QUICK, f"hydra.run.dir={folder}")
    assert (tmp_path / folder / "results.json").exists()
    assert f"tensorboard --logdir {log_dir or (tmp_path / folder).resolve()}\n" in capfd.readouterr().out


def test_runs_in_the_same_second_have_separate_folders(train):
    folders = [train(QUICK)[0] for _ in range(2)]
    assert folders[0] != folders[1]


def test_run_does_not_overwrite_another(train, tmp_path):
    train(QUICK, "hydra.run.dir=mine")
    before = (tmp_path / "mine/checkpoints/best.ckpt").read_bytes()
    with pytest.raises(SystemExit, match="mine already contains a run"):
        train(QUICK, "seed=1", "hydra.run.dir=mine")
    assert (tmp_path / "mine/checkpoints/best.ckpt").read_bytes() == before


def test_help_shows_the_project_page_with_its_groups(script, capfd):
    script("train.py", "--help")
    page = capfd.readouterr().out
    assert page.startswith("python train.py [group=choice …] [key=value …]\n\nA line through points")
    assert "\nlogger: csv, mlflow, tensorboard, wandb\n" in page


@pytest.mark.parametrize("argument", ["--help", "--cfg=job", "optmizer=adam"])
def test_help_config_and_typos_do_not_import_torch(tmp_path, argument):
    command = [sys.executable, "-X", "importtime", str(ROOT / "train.py"), argument]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hydra" in imported
    assert not {"torch", "lightning", "rich"} & imported
