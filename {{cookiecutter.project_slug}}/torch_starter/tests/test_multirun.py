"""The final table of `python train.py -m` lists the runs of this multirun, sorted by the monitored metric."""

import json
import multiprocessing
import os
import re
import runpy
import shlex
import signal
import statistics
import sys
from pathlib import Path

import pytest
import rich
from lightning import Callback

from project_for_tests import ROOT

QUICK = ["trainer.max_epochs=20", "callbacks.regression_figures=null"]
SHORTEST = [*QUICK, "callbacks.run_description=null"]


@pytest.fixture(autouse=True)
def _wide():
    rich.reconfigure(width=250)


def get_last_table(printed):
    """Return the lines of the last table, without its header."""
    return re.split(r"─+ *\n", printed)[-1].partition("run folders")[0]


def get_last_rows(printed):
    """Return the lines of the last table by run, in order."""
    return {line.split()[0]: line for line in get_last_table(printed).splitlines() if line.strip()}


@pytest.mark.slow
def test_second_multirun_does_not_change_runs_in_the_folder(train, tmp_path, capfd):
    train("-m", *QUICK, "hydra.sweep.dir=s", "optimizer=sgd,adam")
    first = get_last_rows(capfd.readouterr().out)
    before = {path: path.read_bytes() for path in (tmp_path / "s").glob("*/**/*") if path.is_file()}
    with pytest.raises(SystemExit, match="2 of 2 runs failed"):
        train("-m", *QUICK, "hydra.sweep.dir=s", "optimizer=rmsprop,adamw")
    second = get_last_rows(capfd.readouterr().out)
    for number, optimizer in (("0", "rmsprop"), ("1", "adamw")):
        assert optimizer in second[number]
        assert f"s/{number} already contains a run" in second[number]
        assert not set(re.findall(r"\d+\.\d{4}", first[number])) & set(re.findall(r"\d+\.\d{4}", second[number]))
    assert {path: path.read_bytes() for path in (tmp_path / "s").glob("*/**/*") if path.is_file()} == before


@pytest.mark.slow
def test_table_omits_other_runs_in_the_folder(train, capfd):
    subdir = "hydra.sweep.subdir=${hydra:runtime.choices.optimizer}"
    train("-m", *QUICK, "hydra.sweep.dir=s", subdir, "optimizer=sgd,adam")
    train("-m", *QUICK, "hydra.sweep.dir=s", subdir, "optimizer=rmsprop,adamw")
    assert sorted(get_last_rows(capfd.readouterr().out)) == ["adamw", "rmsprop"]


@pytest.mark.slow
def test_subfolders_may_contain_values_and_slashes(train, tmp_path, capfd):
    subdir = "hydra.sweep.subdir=${hydra:runtime.choices.optimizer}/batch ${data.batch_size}"
    with pytest.raises(SystemExit, match="2 of 4 runs failed"):
        train("-m", *QUICK, "hydra.sweep.dir=s", subdir, "optimizer=sgd,adam", "data.batch_size=0,50")
    printed = capfd.readouterr()
    assert get_last_table(printed.out).count("data.batch_size is 0; it must be a positive integer.") == 2
    assert "sgd/batch 50" in printed.out.partition("failed")[0]
    assert "raised" not in printed.err
    assert (tmp_path / "s/adam/batch 0/error.txt").exists()


def test_same_command_resumes_missing_jobs(train, tmp_path, capfd):
    grid = ["-m", *QUICK, "hydra.sweep.dir=s", "optimizer=sgd,adam"]
    train(*grid)
    first = {number: re.findall(r"\d\.\d{4}", line) for number, line in get_last_rows(capfd.readouterr().out).items()}
    (tmp_path / "s/1/results.json").unlink()  # as if the job had been killed before
    train(*grid, "ckpt_path=last")
    printed = capfd.readouterr().out
    assert {number: re.findall(r"\d\.\d{4}", line) for number, line in get_last_rows(printed).items()} == first
    assert "s/0 is finished" in printed


class MAE(Callback):
    """Logs metrics whose names do not say whether higher is better."""

    def on_test_epoch_end(self, trainer, pl_module):
        pl_module.log("test/MAE", 1 / trainer.callback_metrics["test/loss"])

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/score", -trainer.callback_metrics["val/loss"])


BY_SCORE = ["callbacks.best_checkpoint.monitor=val/score", "callbacks.best_checkpoint.mode=max"]


@pytest.mark.parametrize("monitor", [[], BY_SCORE], ids=["val/loss", "val/score"])
def test_runs_are_sorted_by_best_checkpoint(train, tmp_path, capfd, monitor):
    own = "+callbacks.mae._target_=test_multirun.MAE"
    train("-m", *QUICK, *monitor, own, "optimizer=adam,sgd", "hydra.sweep.dir=s")
    results = [json.loads((tmp_path / f"s/{number}/results.json").read_text()) for number in "01"]
    best = [result["monitored"]["value"] for result in results]
    better = (max if monitor else min)(best)
    found = get_last_rows(capfd.readouterr().out)
    assert list(found) == (["0", "1"] if best[0] == better else ["1", "0"])
    assert results[1]["metrics"]["test/MAE"] > results[0]["metrics"]["test/MAE"], (
        "sorting by this metric would reverse the order"
    )
    for number, value in zip("01", best, strict=True):
        assert f"{value:.4f}" in found[number]


def test_settings_show_mean_over_seeds_above_runs(train, tmp_path, capfd):
    train("-m", *SHORTEST, "optimizer=adam,sgd", "seed=1,2,3", "hydra.sweep.dir=s")
    printed = capfd.readouterr().out
    settings = re.split(r"─+ *\n", printed)[-2]
    values = {"adam": [], "sgd": []}
    for number in range(6):
        results = json.loads((tmp_path / f"s/{number}/results.json").read_text())
        values[results["choices"]["optimizer"]].append(results["monitored"]["value"])
    order = sorted(values, key=lambda optimizer: statistics.mean(values[optimizer]))
    assert re.findall(r"^ +(adam|sgd) +3 ", settings, re.MULTILINE) == order
    for row in values.values():
        assert f"{statistics.mean(row):.4f} ± {statistics.stdev(row):.4f}" in settings
    assert re.search(r"run +optimizer +seed +val/loss +test/loss", printed)
    assert len(get_last_rows(printed)) == 6
    best = min([*values["adam"], *values["sgd"]])
    assert f"{best:.4f}" in next(iter(get_last_rows(printed).values()))


# Interrupted multiruns


class SignalOnce(Callback):
    """Sends a signal to the process in the tenth epoch of job 1, once."""

    def __init__(self, sent):
        self.sent = sent

    def on_train_epoch_end(self, trainer, pl_module):
        is_due = trainer.current_epoch == 9 and Path(trainer.default_root_dir).name == "1"
        if is_due and not Path("sent").exists():
            Path("sent").touch()
            os.kill(os.getpid(), self.sent)


def run_in_child(arguments, output):
    sys.stdout = sys.stderr = os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT), "w", buffering=1)
    sys.argv = ["train.py", *arguments]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


@pytest.fixture
def run_until_signal(train, tmp_path):
    """Run `python train.py ARGUMENTS` in a child process until it receives a signal; return its output."""
    if sys.platform != "linux":
        pytest.skip("forking after importing torch is only safe on Linux")

    def run_until_signal(sent, *arguments):
        output = tmp_path / "output.txt"
        stop = f"+callbacks.stop={{_target_:test_multirun.SignalOnce,sent:{int(sent)}}}"
        process = multiprocessing.get_context("fork").Process(target=run_in_child, args=([*arguments, stop], output))
        process.start()
        process.join()
        assert process.exitcode == (-sent if sent == signal.SIGKILL else 128 + sent)
        return stop, output.read_text()

    return run_until_signal


def test_killed_multirun_resumes_with_the_same_results(train, run_until_signal, tmp_path, capfd):
    grid = ["-m", *SHORTEST, "seed=1,2,3"]
    train(*grid, "hydra.sweep.dir=whole")  # first, so that the fork has everything imported
    expected = get_last_table(capfd.readouterr().out)
    stop, _ = run_until_signal(signal.SIGKILL, *grid, "hydra.sweep.dir=s")
    assert [path.parent.name for path in (tmp_path / "s").glob("*/results.json")] == ["0"]
    before = (tmp_path / "s/0/results.json").read_bytes()

    train(*grid, "hydra.sweep.dir=s", stop, "ckpt_path=last")
    found = get_last_table(capfd.readouterr().out)
    assert re.findall(r"\d+\.\d{4}", found) == re.findall(r"\d+\.\d{4}", expected)
    assert sorted(get_last_rows(found)) == list("012")
    assert (tmp_path / "s/0/results.json").read_bytes() == before
    assert "resuming after epoch" in (tmp_path / "s/1/train.log").read_text()


def test_terminated_multirun_prints_resume_command(train, run_until_signal):
    train(*SHORTEST)  # so that the fork has everything imported
    grid = ["-m", *SHORTEST, "seed=1,2", "hydra.sweep.dir=a folder"]
    stop, printed = run_until_signal(signal.SIGTERM, *grid)
    command = re.search(r"resume with   python \S*train.py (.*)", printed)[1]
    assert shlex.split(command) == [*grid[:-1], stop, grid[-1], "ckpt_path=last"]


@pytest.mark.slow
def test_changed_grid_does_not_use_old_checkpoints(train, tmp_path, capfd):
    train("-m", *SHORTEST, "hydra.sweep.dir=s", "seed=1,2")
    before = (tmp_path / "s/0/results.json").read_bytes()
    with pytest.raises(SystemExit, match="1 of 3 runs failed"):
        train("-m", *SHORTEST, "hydra.sweep.dir=s", "seed=5,2,3", "ckpt_path=last")
    assert "s/0 has seed=1, not seed=5; it was not changed." in capfd.readouterr().out
    assert (tmp_path / "s/0/results.json").read_bytes() == before
    # All jobs may train longer, however.
    train("-m", *SHORTEST[1:], "trainer.max_epochs=25", "hydra.sweep.dir=s", "seed=1,2", "ckpt_path=last")
    assert {json.loads((tmp_path / f"s/{number}/results.json").read_text())["epochs"] for number in range(2)} == {25}
