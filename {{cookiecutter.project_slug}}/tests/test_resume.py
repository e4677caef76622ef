"""A run that was stopped in whatever way and resumed ends as if it had never been stopped."""

import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import sys
import tomllib

import pytest
import torch
from hydra.utils import get_object
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import ROOT

PACKAGE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither fork nor SIGKILL")


def in_child(arguments, output, sent, at, limit, calls):
    """`python ARGUMENTS`, in a process that gets a signal at its ``at``-th function call."""
    sys.stdout = sys.stderr = os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "w", buffering=1)
    sys.argv = arguments
    if limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    def profile(frame, event, argument):
        calls.value += 1
        if calls.value == at:
            os.kill(os.getpid(), sent)

    sys.setprofile(profile)
    try:
        runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
    finally:
        sys.setprofile(None)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A process of its own: `start("resume.py", RUN)` returns its exit status and the function calls that it made.

    A fork of this one, so that importing torch once is enough. ``at`` is the moment for the signal ``sent``;
    ``limit`` is the size in bytes at which the disk is full.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def start(*arguments, sent=signal.SIGKILL, at=-1, limit=0):
        context = multiprocessing.get_context("fork")
        calls = context.Value("q", 0, lock=False)
        arguments = ([str(argument) for argument in arguments], tmp_path / "output.txt", sent, at, limit, calls)
        process = context.Process(target=in_child, args=arguments)
        process.start()
        process.join()
        return process.exitcode, calls.value

    return start


@pytest.fixture
def command(digits, monkeypatch):
    """A run with all that draws random numbers: dropout, shuffling, augmentation; and a scheduler for each step."""
    module = get_object(f"{PACKAGE}.data.ImageDataModule")
    batches = get_object(f"{PACKAGE}.data.batches.TensorBatches")
    plain_loader, plain_items = module.train_dataloader, batches.__getitems__

    def augmenting_loader(self):
        loader = plain_loader(self)
        loader.dataset.augments = True
        return loader

    def augmented_items(self, indices):
        images, labels = plain_items(self, indices)
        if hasattr(self, "augments"):
            images = images.roll(int(torch.randint(-2, 3, ())), dims=-1)
        return images, labels

    monkeypatch.setattr(module, "train_dataloader", augmenting_loader)
    monkeypatch.setattr(batches, "__getitems__", augmented_items)
    mnist = ["experiment=mnist", "model=mlp", "model.network.dropout=0.5", f"data.root={digits}"]
    return ["train.py", *mnist, "data.num_val=100", "data.batch_size=50", "trainer.max_epochs=5"]


def state(run):
    """Everything that must be equal to the bit."""
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    results = json.loads((run / "results.json").read_text())
    events = EventAccumulator(str(run)).Reload()
    return {
        "weights": last["state_dict"],
        "optimizer": last["optimizer_states"],
        "scheduler": last["lr_schedulers"],
        "best": (best["epoch"], best["state_dict"]),
        "results": {key: results[key] for key in ("metrics", "best_checkpoint", "epochs", "steps")},
        "curves": {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in ("train/loss", "val/loss", "val/acc")},
    }


def assert_same(found, expected, where="state"):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for i, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    elif isinstance(expected, torch.Tensor):
        assert found.equal(expected), where
    else:
        assert found == expected, where


@pytest.fixture
def uninterrupted(start, command, tmp_path):
    """Final state and number of function calls of a run that nothing interrupted."""
    status, calls = start(*command, "hydra.run.dir=uninterrupted")
    assert status == 0, (tmp_path / "output.txt").read_text()
    return state(tmp_path / "uninterrupted"), calls


def test_killed_at_random_moments(start, command, uninterrupted, tmp_path):
    expected, calls = uninterrupted
    moments = random.Random(0)
    kills = 0
    for number in range(4):
        run = tmp_path / f"killed{number}"
        status, _ = start(*command, f"hydra.run.dir={run}", at=moments.randrange(calls))
        for _ in range(3):
            kills += status == -signal.SIGKILL
            if (run / ".hydra/config.yaml").exists():
                status, _ = start("resume.py", run, at=moments.randrange(calls))
            else:  # before there was anything to resume
                status, _ = start(*command, f"hydra.run.dir={run}", at=moments.randrange(calls))
        kills += status == -signal.SIGKILL
        status, _ = start("resume.py", run)
        assert status == 0, (tmp_path / "output.txt").read_text()
        assert_same(state(run), expected)
    assert kills >= 10


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
def test_a_signal_ends_with_one_line_that_says_how_to_go_on(start, command, uninterrupted, tmp_path, sent):
    expected, calls = uninterrupted
    (tmp_path / "output.txt").unlink()
    status, _ = start(*command, "hydra.run.dir=stopped", sent=sent, at=calls // 2)
    assert status == 128 + sent
    printed = (tmp_path / "output.txt").read_text()
    assert printed.count("python resume.py stopped\n") == 1
    assert printed.endswith("python resume.py stopped\n")
    assert "Traceback" not in printed
    assert start("resume.py", "stopped")[0] == 0
    assert_same(state(tmp_path / "stopped"), expected)


def test_a_full_disk_leaves_the_former_checkpoint(start, command, uninterrupted, tmp_path):
    expected, calls = uninterrupted
    start(*command, "hydra.run.dir=full", at=calls // 2)
    before = (tmp_path / "full/checkpoints/last.ckpt").read_bytes()
    status, _ = start("resume.py", "full", limit=len(before) // 2)
    assert status == 1
    printed = (tmp_path / "output.txt").read_text()
    assert "could not be written" in printed
    assert "Traceback" not in printed
    assert (tmp_path / "full/checkpoints/last.ckpt").read_bytes() == before
    assert start("resume.py", "full")[0] == 0
    assert_same(state(tmp_path / "full"), expected)


def test_half_a_last_checkpoint_falls_back_to_the_best(start, command, uninterrupted, tmp_path):
    expected, calls = uninterrupted
    start(*command, "hydra.run.dir=half", at=calls * 3 // 4)
    for name in ("last", "best"):
        checkpoint = tmp_path / f"half/checkpoints/{name}.ckpt"
        whole = checkpoint.read_bytes()
        checkpoint.write_bytes(whole[: len(whole) // 2])
        if name == "last":
            copy = shutil.copytree(tmp_path / "half", tmp_path / "copy")
    assert start("resume.py", "half")[0] == 1
    assert "No checkpoint in" in (tmp_path / "output.txt").read_text()
    assert start("resume.py", copy)[0] == 0
    assert "last.ckpt is damaged" in (copy / "train.log").read_text()
    assert_same(state(copy), expected)


def test_killed_after_the_last_epoch_it_has_the_same_results(start, command, uninterrupted, tmp_path):
    run = tmp_path / "uninterrupted"
    (run / "results.json").unlink()
    assert start("resume.py", run)[0] == 0
    assert_same(state(run), uninterrupted[0])


def test_the_same_command_again_goes_on_and_then_does_nothing(start, command, uninterrupted, tmp_path):
    expected, calls = uninterrupted
    again = [*command, "hydra.run.dir=requeued", "ckpt_path=last"]
    assert start(*again, at=calls // 2)[0] == -signal.SIGKILL
    assert start(*again)[0] == 0
    assert_same(state(tmp_path / "requeued"), expected)
    before = (tmp_path / "requeued/results.json").read_bytes()
    assert start(*again)[0] == 0
    assert (tmp_path / "output.txt").read_text().rstrip().splitlines()[-1].startswith("requeued is finished.")
    assert (tmp_path / "requeued/results.json").read_bytes() == before


@pytest.mark.parametrize("scheduler", ["constant", "step", "cosine", "plateau"])
def test_every_scheduler_goes_on_where_it_was(train, script, scheduler, tmp_path):
    decay = {"step": ["scheduler.step_size=3"], "plateau": ["scheduler.patience=0", "scheduler.mode=max"]}
    options = [f"scheduler={scheduler}", "data.batch_size=25", *decay.get(scheduler, [])]
    train(*options, "trainer.max_epochs=8", "hydra.run.dir=whole")
    # A run that only ends early has another cosine, which depends on the number of steps.
    train(*options, "trainer.max_epochs=8", "hydra.run.dir=parts", "+trainer.max_steps=20")
    script("resume.py", "parts", "trainer.max_steps=-1")
    assert_same(state_of_line(tmp_path / "parts"), state_of_line(tmp_path / "whole"))


def state_of_line(run):
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    metrics = json.loads((run / "results.json").read_text())["metrics"]
    return [last["state_dict"], last["optimizer_states"], last["lr_schedulers"], metrics]


def test_a_moved_run_keeps_its_best_checkpoint(train, script, tmp_path):
    train("optimizer.lr=0.1", "trainer.max_epochs=100", "hydra.run.dir=here")
    best = torch.load(tmp_path / "here/checkpoints/best.ckpt", weights_only=True)
    (tmp_path / "there").mkdir()
    moved = shutil.move(tmp_path / "here", tmp_path / "there/a run, x=1")
    # So large a step that nothing after it is better.
    script("resume.py", moved, "trainer.max_epochs=105", "trainer.detect_anomaly=false", "optimizer.lr=0.1")
    results = json.loads((tmp_path / "there/a run, x=1/results.json").read_text())
    assert results["epochs"] == 105
    found = torch.load(tmp_path / "there/a run, x=1" / results["best_checkpoint"], weights_only=True)
    score = {key: value for key, value in found["callbacks"].items() if "val/loss" in key}
    former = {key: value for key, value in best["callbacks"].items() if "val/loss" in key}
    assert next(iter(score.values()))["best_model_score"] <= next(iter(former.values()))["best_model_score"]


def test_longer_and_the_change_is_kept(train, script, tmp_path, capfd):
    (run,) = train("trainer.max_epochs=10")
    script("resume.py", "trainer.max_epochs=15")
    assert json.loads((run / "results.json").read_text())["epochs"] == 15
    capfd.readouterr()
    script("resume.py")
    assert "is finished" in capfd.readouterr().out
    assert len(json.loads((run / "environment.json").read_text())) == 2
    assert (run / "train.log").read_text().count("goes on after epoch 10") == 1


def test_a_change_that_does_not_work_is_not_kept(train, script, tmp_path):
    (run,) = train("trainer.max_epochs=10")
    before = {path: path.read_bytes() for path in (run / ".hydra").iterdir()}
    for mistake, message in {
        "optimizer.lr=-1": "Invalid learning rate",
        "trainer.max_epoch=20": "Did you mean max_epochs",
        "optimizer=sgd": "keeps the choices",
        "nowhere": "no run folder",
    }.items():
        with pytest.raises(SystemExit, match=message):
            script("resume.py", run, mistake)
    assert {path: path.read_bytes() for path in (run / ".hydra").iterdir()} == before
