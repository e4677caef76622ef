"""The table that ends `python train.py -m`: of this multirun alone, in the order that best.ckpt is chosen by."""

import json
import re

import pytest
import rich
from lightning import Callback

QUICK = ["trainer.max_epochs=20", "callbacks.regression_figures=null"]


@pytest.fixture(autouse=True)
def _wide():
    rich.reconfigure(width=250)


def table(printed):
    """The lines between the header of the last table and its end."""
    return re.split(r"─+ *\n", printed)[-1].partition("run folders")[0]


def rows(printed):
    """The lines of the last table, by run, in order."""
    return {line.split()[0]: line for line in table(printed).splitlines() if line.strip()}


def test_same_folder_a_second_time(train, tmp_path, capfd):
    train("-m", *QUICK, "hydra.sweep.dir=s", "optimizer=sgd,adam")
    first = rows(capfd.readouterr().out)
    before = {path: path.read_bytes() for path in (tmp_path / "s").glob("*/**/*") if path.is_file()}
    with pytest.raises(SystemExit, match="2 of 2 runs failed"):
        train("-m", *QUICK, "hydra.sweep.dir=s", "optimizer=rmsprop,adamw")
    second = rows(capfd.readouterr().out)
    for number, optimizer in (("0", "rmsprop"), ("1", "adamw")):
        assert f"optimizer={optimizer}" in second[number]
        assert f"s/{number} holds a run" in second[number]
        assert not set(re.findall(r"\d+\.\d{4}", first[number])) & set(re.findall(r"\d+\.\d{4}", second[number]))
    assert {path: path.read_bytes() for path in (tmp_path / "s").glob("*/**/*") if path.is_file()} == before


def test_other_runs_of_the_folder_are_not_in_the_table(train, capfd):
    subdir = "hydra.sweep.subdir=${hydra:runtime.choices.optimizer}"
    train("-m", *QUICK, "hydra.sweep.dir=s", subdir, "optimizer=sgd,adam")
    train("-m", *QUICK, "hydra.sweep.dir=s", subdir, "optimizer=rmsprop,adamw")
    assert sorted(rows(capfd.readouterr().out)) == ["adamw", "rmsprop"]


def test_folders_made_of_values_and_slashes(train, tmp_path, capfd):
    subdir = "hydra.sweep.subdir=${hydra:runtime.choices.optimizer}/batch ${data.batch_size}"
    with pytest.raises(SystemExit, match="2 of 4 runs failed"):
        train("-m", *QUICK, "hydra.sweep.dir=s", subdir, "optimizer=sgd,adam", "data.batch_size=0,50")
    printed = capfd.readouterr()
    assert table(printed.out).count("data.batch_size is 0; it must be a whole number from 1.") == 2
    assert "sgd/batch 50" in table(printed.out)
    assert "raised" not in printed.err
    assert (tmp_path / "s/adam/batch 0/error.txt").exists()


def test_same_command_goes_on_with_what_is_missing(train, tmp_path, capfd):
    grid = ["-m", *QUICK, "hydra.sweep.dir=s", "optimizer=sgd,adam"]
    train(*grid)
    first = {number: re.findall(r"\d\.\d{4}", line) for number, line in rows(capfd.readouterr().out).items()}
    (tmp_path / "s/1/results.json").unlink()  # as if it had been killed before
    train(*grid, "ckpt_path=last")
    printed = capfd.readouterr().out
    assert {number: re.findall(r"\d\.\d{4}", line) for number, line in rows(printed).items()} == first
    assert "s/0 is finished" in printed


class MAE(Callback):
    """Metrics of the user's own, whose names do not say whether more is better."""

    def on_test_epoch_end(self, trainer, pl_module):
        pl_module.log("test/MAE", 1 / trainer.callback_metrics["test/loss"])

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/score", -trainer.callback_metrics["val/loss"])


BY_SCORE = ["callbacks.best_checkpoint.monitor=val/score", "callbacks.best_checkpoint.mode=max"]


@pytest.mark.parametrize("monitor", [[], BY_SCORE], ids=["val/loss", "val/score"])
def test_order_is_that_of_the_best_checkpoint(train, tmp_path, capfd, monitor):
    own = "+callbacks.mae._target_=test_multirun.MAE"
    train("-m", *QUICK, *monitor, own, "optimizer=adam,sgd", "hydra.sweep.dir=s")
    results = [json.loads((tmp_path / f"s/{number}/results.json").read_text()) for number in "01"]
    best = [result["monitored"]["value"] for result in results]
    better = (max if monitor else min)(best)
    found = rows(capfd.readouterr().out)
    assert list(found) == (["0", "1"] if best[0] == better else ["1", "0"])
    assert results[1]["metrics"]["test/MAE"] > results[0]["metrics"]["test/MAE"], "which would turn the order round"
    for number, value in zip("01", best, strict=True):
        assert f"{value:.4f}" in found[number]
