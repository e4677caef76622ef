"""Tests that a run killed within an epoch resumes at the next batch and matches an uninterrupted run."""

import json
import os
import random
import re
import signal
import sys

import numpy
import pytest
import torch
from lightning import Callback, LightningDataModule
from torch.utils.data import DataLoader, Dataset

from project_for_tests import write_images
from test_resume import assert_same, state

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a fork after torch is imported is safe on Linux only")

CROP = "+data.augmentation.crop={_target_:torchvision.transforms.v2.RandomCrop,size:28,padding:2}"
BATCH_AFFINE = "+data.augmentation.affine={_target_:torch_starter.data.batch_augmentation.RandomAffine,degrees:10}"
MLP = ["experiment=mnist", "model=mlp", "model.network.dropout=0.5", CROP, "data.num_val=100", "data.batch_size=50"]
QUICK = ["trainer.max_epochs=2", "callbacks.run_description=null", "+callbacks.sums._target_=test_within_epoch.Sums"]
EVERY = "callbacks.last_checkpoint.every="


class Interrupt(Callback):
    """Sends a signal to this process after a step or during the validation that follows."""

    def __init__(self, signal, step, while_validating=False):
        self.signal = signal
        self.step = step
        self.while_validating = while_validating

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step and not self.while_validating:
            os.kill(os.getpid(), self.signal)

    def on_validation_batch_start(self, trainer, *args):
        if trainer.global_step == self.step and self.while_validating:
            os.kill(os.getpid(), self.signal)


class Sums(Callback):
    """Logs values with each of Lightning's reductions over an epoch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, *args):
        options = {"on_step": False, "on_epoch": True}
        pl_module.log("train/mean", outputs["loss"], **options)
        pl_module.log("train/most", outputs["loss"], reduce_fx=max, **options)
        pl_module.log("train/sum", outputs["loss"], reduce_fx=sum, **options)


class RandomNoise(Dataset):
    """Draws from every global generator, as custom transforms may."""

    def __len__(self):
        return 500

    def __getitem__(self, index):
        noise = torch.rand(28, 28) * (index % 10 + random.random() + numpy.random.rand())
        return (noise[None] * 20).to(torch.uint8), index % 10


class Plain(LightningDataModule):
    """A data module with nothing but DataLoaders."""

    def __init__(self, num_workers=0, **options):
        super().__init__()
        self.options = {"batch_size": 50, "num_workers": num_workers, "persistent_workers": num_workers > 0}

    def train_dataloader(self):
        return DataLoader(RandomNoise(), shuffle=True, **self.options)

    def val_dataloader(self):
        return DataLoader([(torch.zeros(1, 28, 28, dtype=torch.uint8), number) for number in range(10)])

    test_dataloader = val_dataloader


def interrupt(sent, step, **options):
    options = {"_target_": "test_within_epoch.Interrupt", "signal": int(sent), "step": step, **options}
    return [f"+callbacks.interrupt.{key}={value}" for key, value in options.items()]


EMA = "+callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging"
PLAIN = ["~data", "+data._target_=test_within_epoch.Plain", "+data.image_shape=[1,28,28]", "+data.num_classes=10"]
PLAIN += ["+data.mean=[0.5]", "+data.std=[0.5]", "model=mlp", "scheduler=constant"]
# The loaders serve from copies of the data sets, as on a GPU.
FORCED = ["callbacks.device_data._target_=test_device_data.AlwaysDeviceData"]
CASES = {
    "in_memory": ([*(BATCH_AFFINE if option is CROP else option for option in MLP), *FORCED], 15),
    "workers": ([*MLP, "data.num_workers=2"], 15),
    "folder": (["experiment=mnist", "data=image_folder", "data.image_shape=[3,16,16]", "data.num_workers=2"], 11),
    "accumulated": (
        [*MLP, "data.num_workers=0", "trainer.accumulate_grad_batches=3", "trainer.log_every_n_steps=1"],
        7,
    ),
    "validated_within_epochs": ([*MLP, "data.num_workers=0", "trainer.val_check_interval=3"], 15),
    "averaged": ([*MLP, "data.num_workers=0", EMA], 15),
    "dataloader": (PLAIN, 15),
}


WEEKLY = ("workers", "accumulated", "validated_within_epochs", "averaged", "dataloader")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in WEEKLY else case for case in CASES]
)
def test_resume_after_kill_matches_uninterrupted_run(start, folder, digits, case):
    options, step = CASES[case]
    if case == "folder":
        write_images(folder / "images", 30, seed=0)
        options = [*options, f"data.root={folder / 'images'}", "data.batch_size=8"]
    elif options is not PLAIN:
        options = [*options, f"data.root={digits}"]
    options = ["train.py", *options, *QUICK, "callbacks.last_checkpoint.times=null"]
    status, printed, _ = start(*options, f"hydra.run.dir={case}")
    assert status == 0, printed
    again = [*options, f"{EVERY}2", f"hydra.run.dir={case}-killed", "ckpt_path=last"]
    status, printed, _ = start(*again, *interrupt(signal.SIGKILL, step))
    assert status == -signal.SIGKILL, printed
    status, printed, _ = start(*again)
    assert status == 0, printed
    assert 0 < step - int(re.search(r"resuming within epoch 2, after step (\d+)", printed)[1]) <= 3
    assert_same(state(folder / f"{case}-killed"), state(folder / case))


@pytest.fixture(scope="module")
def whole(start, folder, digits):
    """Return the command of a run and its final state without an interruption."""
    command = ["train.py", *MLP, f"data.root={digits}", "data.num_workers=0", *QUICK]
    assert start(*command, "hydra.run.dir=whole")[0] == 0
    return command, state(folder / "whole")


@pytest.mark.parametrize(("step", "place"), [(15, "within epoch 2, after step 15"), (10, "after epoch 1, step 10")])
def test_sigterm_saves_the_current_step(start, folder, whole, step, place):
    command, expected = whole
    run = f"notice-{step}"
    again = [*command, f"{EVERY}1000", f"hydra.run.dir={run}", "ckpt_path=last"]
    status, printed, _ = start(*again, *interrupt(signal.SIGTERM, step))
    assert status == 128 + signal.SIGTERM
    assert printed.rstrip().endswith(f"python resume.py {run}")
    status, printed, _ = start(*again)
    assert f"resuming {place}" in printed
    assert_same(state(folder / run), expected)


@pytest.mark.slow
def test_sigterm_saves_validated_and_last_steps(start, whole):
    command, _ = whole
    for name, step, options in (("each", 3, ["trainer.val_check_interval=1"]), ("end", 15, ["trainer.max_steps=15"])):
        sent = interrupt(signal.SIGTERM, step)
        status, printed, _ = start(*command, *options, f"{EVERY}1000", f"hydra.run.dir=notice-{name}", *sent)
        assert status == 128 + signal.SIGTERM, printed
        assert printed.rstrip().endswith(f"python resume.py notice-{name}")


def test_sigterm_stops_a_validation_immediately(start, whole):
    command, _ = whole
    notice = [f"{EVERY}1000", "hydra.run.dir=validating", *interrupt(signal.SIGTERM, 10, while_validating=True)]
    status, printed, _ = start(*command, *notice)
    assert status == 128 + signal.SIGTERM
    assert "epoch 1/2" not in printed


LINE = ["data.batch_size=10", "trainer.max_epochs=6", "callbacks.regression_figures=null"]
CUT = ["+callbacks.cut._target_=test_resume.Cut"]  # after step 25, in the third epoch


@pytest.mark.parametrize("every", ["00:00:00.000001", "00:00:00:00.000001", "1"])
def test_every_saves_within_the_epoch(train, tmp_path, every):
    train(*LINE, *CUT, EVERY + every, "hydra.run.dir=run")
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 24


@pytest.mark.parametrize("every", ["0", "-1", "1.5", "True", "soon", "00:00:00", "00:30"])
def test_invalid_interval_is_rejected(train, every):
    with pytest.raises(SystemExit, match=rf"callbacks\.last_checkpoint\.every is {every}.*00:30:00"):
        train(*LINE, EVERY + every)


@pytest.mark.slow
def test_resume_within_epoch_rejects_changed_batches(train, script, tmp_path):
    train(*LINE, *CUT, f"{EVERY}2", "hydra.run.dir=run")
    before = (tmp_path / "run/checkpoints/last.ckpt").read_bytes()
    with pytest.raises(SystemExit, match="epoch of 10 batches, but the epoch now has 5"):
        script("resume.py", "run", "callbacks.cut=null", "data.batch_size=20")
    assert (tmp_path / "run/checkpoints/last.ckpt").read_bytes() == before
    for change, message in {
        "trainer.max_epochs=2": "so none are left to train",
        "callbacks.last_checkpoint=null": "Keep it enabled until the epoch has ended",
    }.items():
        with pytest.raises(SystemExit, match=message):
            script("resume.py", "run", "callbacks.cut=null", change)
    script("resume.py", "run", "callbacks.cut=null", "trainer.max_epochs=8")
    assert json.loads((tmp_path / "run/results.json").read_text())["epochs"] == 8


def test_new_run_resumes_from_within_an_epoch(train, tmp_path, capfd):
    train(*LINE, "hydra.run.dir=whole")
    train(*LINE, *CUT, f"{EVERY}2", "hydra.run.dir=cut")
    train(*LINE, "ckpt_path=cut/checkpoints/last.ckpt", "hydra.run.dir=other")
    assert "resuming within epoch 3, after step 24" in capfd.readouterr().out
    last = [torch.load(tmp_path / f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("whole", "other")]
    assert_same(last[1]["state_dict"], last[0]["state_dict"])
