"""User errors end with one short message that says how to fix them."""

import re
import subprocess
import sys

import pytest
import torch

from project_for_tests import ROOT, environment

MNIST = ["experiment=mnist", "data.num_val=100"]


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["trainer.max_epoch=1"], ["trainer.max_epoch", "Did you mean max_epochs?"]),
        (["trainer.logger=false"], ["trainer.logger", "logger=…"]),
        (["optimizer.amsgrad=true"], ["torch.optim.Adam takes it. Add it:", "+optimizer.amsgrad=…"]),
        (["callbacks.best_checkpoint.save_top_k=3"], ["+callbacks.best_checkpoint.save_top_k=…"]),
        (["optimizer.nesterov=true"], ["optimizer.nesterov: there is no such key", "betas"]),
        (["hydra.run.dri=x"], ["hydra.run.dri", "Did you mean dir?"]),
        (["optmizer=adam"], ["optmizer", "Did you mean optimizer?"]),
        (["optimizer=adamm"], ["optimizer=adamm", "Did you mean adam?", "adam, adamw, muon, rmsprop, sgd"]),
        (["data.batchsize=3"], ["data.batchsize", "Did you mean batch_size?"]),
        (["experiment=linear_regresion"], ["experiment=linear_regresion", "Did you mean linear_regression?"]),
        (["logger=null"], ["~logger"]),
        (["experiment=null"], ["experiment is already null by default; leave it out"]),
        (["scheduler=null"], ["scheduler=constant"]),
        (["callbacks=null"], ["~callbacks"]),
        (["data=null"], ["data must be the name of a choice", "mnist"]),
        (["+callbacks.best_checkpoint.save_top_k=3"], ["best.ckpt", "filename=\"'best-{epoch}'\""]),
        (["optimizer=sgd,adam"], ["optimizer=sgd,adam", "--multirun"]),
        (["trainer.max_epochs=ten"], ["trainer.max_epochs=ten", "not a number", "500"]),
        (["optimizer.lr=fast"], ["optimizer.lr=fast", "not a number"]),
        (["data.batch_size=many"], ["data.batch_size=many", "not a number"]),
        (["seed=x"], ["seed=x", "not a number"]),
        (["trainer.fast_dev_run=treu"], ["trainer.fast_dev_run=treu", "not true or false"]),
        (["data.batch_size=0"], ["data.batch_size is 0", "positive integer"]),
        (["seed=-1"], ["seed", "-1", "from 0"]),
        (["optimizer.lr=-1"], ["Invalid learning rate: -1"]),
        (["+optimizer.dampening=1"], ["optimizer", "dampening"]),
        (["ckpt_path=nowhere.ckpt"], ["nowhere.ckpt"]),
        (["ckpt_path=~/Größe 山"], ["only in quotes", "ckpt_path='~/Größe 山'"]),
        (["model=cnn"], ["data.image_shape", "another data= or model="]),
        ([*MNIST, "data.batch_size=-1"], ["data.batch_size is -1"]),
        (
            [*MNIST, "model=linear_regression"],
            ["LinearRegression expects: x float32 (N, 1)", "another data= or model="],
        ),
    ],
    ids=lambda value: value[-1] if value[0] in MNIST or "=" in value[0] else "",
)
def test_message_names_value_and_remedy(script, request, arguments, messages, tmp_path):
    data = [f"data.root={request.getfixturevalue('digits')}"] if MNIST[0] in arguments else []
    with pytest.raises(SystemExit) as exit_:
        script("train.py", *arguments, *data)
    message = exit_.value.code  # a string: printed to standard error, with exit status 1
    for expected in messages:
        assert expected in message
    assert len(message.splitlines()) <= 4
    assert not list(tmp_path.rglob("*.ckpt"))


OUT_OF_RANGE = [
    ["trainer.log_every_n_steps=0"],
    ["trainer.check_val_every_n_epoch=0"],
    ["trainer.max_epochs=1.5"],
    ["trainer.max_epochs=0"],
    ["trainer.max_steps=0"],
    ["trainer.val_check_interval=3"],
    ["trainer.val_check_interval=0"],
    ["trainer.accumulate_grad_batches=0"],
    ["trainer.limit_train_batches=-1"],
    ["trainer.limit_val_batches=1.5"],
    ["trainer.limit_val_batches=0"],
    ["trainer.limit_train_batches=0"],
    ["trainer.overfit_batches=2.5"],
    ["trainer.gradient_clip_algorithm=foo"],
    ["trainer.gradient_clip_val=-1"],
    ["trainer.precision=foo"],
    ["trainer.devices=0"],
    ["trainer.num_sanity_val_steps=-2"],
    ["trainer.min_epochs=9"],
    ["trainer.max_time=soon"],
    ["trainer.profiler=foo"],
    ["optimizer.betas=[1,2]"],
    ["optimizer.betas=0.9"],
    ["optimizer.weight_decay=-1"],
    ["scheduler=step", "scheduler.step_size=0"],
    ["scheduler=plateau", "scheduler.patience=-1"],
    ["scheduler=plateau", "scheduler.factor=2"],
    ["scheduler=plateau", "trainer.check_val_every_n_epoch=2"],
    ["scheduler=plateau", "trainer.val_check_interval=1"],
    ["scheduler=one_cycle", "trainer.max_epochs=-1", "trainer.max_time=00:00:00:01"],
    ["scheduler=cosine", "trainer.max_epochs=-1", "trainer.max_time=00:00:00:01"],
    ["scheduler=one_cycle", "scheduler.pct_start=2"],
    ["data.noise=-1"],
    ["callbacks.progress.lines=0"],
    ["callbacks.last_checkpoint.times=0"],
    ["callbacks.regression_figures.times=0"],
    ["callbacks=early_stopping", "callbacks.early_stopping.patience=-1"],
    ["callbacks=early_stopping", "callbacks.early_stopping.mode=most"],
    ["callbacks.best_checkpoint.mode=most"],
    ["callbacks=early_stopping", "callbacks.early_stopping.monitor=loss"],
    ["callbacks.early_stopping=true"],
    ["trainer.max_steps=null"],
    ["optimizer.betas=[0.9]"],
    ["scheduler=one_cycle", "scheduler.total_steps=1"],
    ["ckpt_path=1"],
    ["weights=1"],
]


@pytest.mark.parametrize("arguments", OUT_OF_RANGE, ids=" ".join)
def test_value_out_of_range_works_or_gives_one_message(script, arguments):
    message = ""
    try:
        script("train.py", "trainer.max_epochs=3", "~logger", *arguments)
    except SystemExit as exit_:
        message = exit_.code
    assert isinstance(message, str)
    assert len(message.splitlines()) <= 5
    assert "Traceback" not in message


@pytest.mark.parametrize(
    "typed",
    ["callbacks.progress.lines=null", "callbacks.best_checkpoint.dirpath=0", "trainer.detect_anomaly=7", "seed=null"],
)
def test_value_of_wrong_type_is_named(train, tmp_path, typed):
    key, value = typed.split("=")
    with pytest.raises(SystemExit, match=rf"^{re.escape(typed)}: {value} is not .*\. The default is {re.escape(key)}="):
        train("trainer.max_epochs=3", typed)
    if "progress" in key:
        assert not list(tmp_path.glob("outputs/*/*")), "it is refused before the run starts"


def test_last_of_repeated_overrides_is_named(train):
    with pytest.raises(SystemExit, match=r"^trainer\.max_epochs=0\.5 does not work"):
        train("trainer.max_epochs=3", "trainer.max_epochs=0.5")


def test_words_that_lightning_accepts_are_not_blamed(train):
    with pytest.raises(SystemExit, match=r"^optimizer\.lr=much: much is not a number"):
        train("trainer.devices=auto", "trainer.deterministic=warn", "optimizer.lr=much")


@pytest.mark.parametrize(
    "argument", ["trainer=gpu", "trainer=mps", "trainer.accelerator=gpu", "trainer.accelerator=tpu"]
)
def test_missing_accelerator_lists_available_ones(train, argument):
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("a GPU is available")
    with pytest.raises(SystemExit, match=r"trainer\.accelerator can be: auto, cpu\."):
        train(argument)


@pytest.mark.parametrize("argument", ["data.batch_size=0", "trainer.accelerator=tpu", "optimizer.lr=-1"])
def test_nothing_is_printed_before_the_message(script, capfd, argument):
    with pytest.raises(SystemExit) as exit_:
        script("train.py", argument)
    assert isinstance(exit_.value.code, str)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("full", [False, True])
def test_exit_status_is_1_and_traceback_is_optional(tmp_path, full):
    variables = environment() | ({"HYDRA_FULL_ERROR": "1"} if full else {})
    command = [sys.executable, str(ROOT / "train.py"), "optimizer=adamm"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) == full
    if not full:
        assert done.stderr.startswith("optimizer=adamm: there is no such choice. Did you mean adam?\n")


def test_bug_keeps_its_traceback(train, monkeypatch):
    from torch import optim

    def broken(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(optim.Adam, "step", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        train("trainer.max_epochs=1")
