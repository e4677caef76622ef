"""Tests that an interrupted and resumed run matches an uninterrupted one."""

import json
import random
import re
import runpy
import shutil
import signal
import sys

import pytest
import torch
from lightning import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from project_for_tests import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a fork after torch is imported is safe on Linux only")


@pytest.fixture(scope="module")
def command(digits):
    """Return the command of a run with dropout, shuffling, augmentation, and a scheduler that steps in each batch."""
    mnist = ["experiment=mnist", "model=mlp", "model.network.dropout=0.5", f"data.root={digits}"]
    crop = "+data.augmentation.crop={_target_:torchvision.transforms.v2.RandomCrop,size:28,padding:2}"
    quick = ["data.num_workers=0", "trainer.max_epochs=5"]
    return ["train.py", *mnist, crop, "data.num_val=100", "data.batch_size=50", *quick]


def state(run):
    """Return everything that must be bit-identical."""
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
        "curves": {
            tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in ("train/loss", "val/loss", "val/acc")
        },
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


@pytest.fixture(scope="module")
def uninterrupted(start, command, folder):
    """Return the final state and the number of function calls of an uninterrupted run."""
    with pytest.MonkeyPatch.context() as patch:  # One run in this process imports everything before the forks.
        patch.setattr(sys, "argv", [*command, "hydra.run.dir=first"])
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    status, printed, calls = start(*command, "hydra.run.dir=uninterrupted")
    assert status == 0, printed
    return state(folder / "uninterrupted"), calls


@pytest.mark.slow
@pytest.mark.parametrize("every", ["null", "1", "3"])
def test_resume_after_random_kills_matches_uninterrupted_run(start, command, uninterrupted, folder, every):
    expected, calls = uninterrupted
    moments = random.Random(0)
    kills = runs_killed = 0
    command = [*command, f"callbacks.last_checkpoint.every={every}"]
    while kills < 10:
        run = folder / f"killed-{every}-{runs_killed}"
        runs_killed += 1

        status, printed, _ = start(*command, f"hydra.run.dir={run}", at=moments.randrange(calls))
        while status == -signal.SIGKILL:
            kills += 1
            status, printed, _ = start("resume.py", run, at=moments.randrange(calls))
        assert status == 0, printed
        assert_same(state(run), expected)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
def test_signal_stops_the_run_and_prints_the_resume_command(start, command, uninterrupted, folder, sent):
    expected, calls = uninterrupted
    status, printed, _ = start(*command, f"hydra.run.dir={sent.name}", sent=sent, at=calls // 2)
    assert status == 128 + sent
    assert printed.count("python resume.py") == 1
    assert printed.rstrip().endswith(f"python resume.py {sent.name}")
    assert "Traceback" not in printed
    assert start("resume.py", sent.name)[0] == 0
    assert_same(state(folder / sent.name), expected)


def test_full_disk_keeps_the_previous_checkpoint(start, command, uninterrupted, folder):
    expected, calls = uninterrupted
    start(*command, "hydra.run.dir=full", at=calls * 3 // 4)
    before = (folder / "full/checkpoints/last.ckpt").read_bytes()
    status, printed, _ = start("resume.py", "full", limit=len(before) // 2)
    assert status == 1
    assert "could not be written" in printed
    assert "Traceback" not in printed
    assert (folder / "full/checkpoints/last.ckpt").read_bytes() == before
    assert start("resume.py", "full")[0] == 0
    assert_same(state(folder / "full"), expected)


@pytest.mark.slow
def test_truncated_last_checkpoint_falls_back_to_best(start, command, uninterrupted, folder):
    expected, calls = uninterrupted
    start(*command, "hydra.run.dir=half", at=calls * 3 // 4)
    for name in ("last", "best"):
        checkpoint = folder / f"half/checkpoints/{name}.ckpt"
        whole = checkpoint.read_bytes()
        checkpoint.write_bytes(whole[: len(whole) // 2])
        if name == "last":
            copy = shutil.copytree(folder / "half", folder / "copy")
    status, printed, _ = start("resume.py", "half")
    assert status == 1
    assert "No checkpoint in" in printed
    status, printed, _ = start("resume.py", copy)
    assert status == 0
    assert "last.ckpt is damaged" in printed
    assert_same(state(copy), expected)


def test_run_killed_after_last_epoch_keeps_its_results(start, uninterrupted, folder):
    run = shutil.copytree(folder / "uninterrupted", folder / "tested")
    (run / "results.json").unlink()
    assert start("resume.py", run)[0] == 0
    assert_same(state(run), uninterrupted[0])


EACH = ["trainer.check_val_every_n_epoch=1", "callbacks.last_checkpoint.times=null"]
# With this min_delta, the metric never improves.
EARLY = ["callbacks=early_stopping", "+callbacks.early_stopping.min_delta=1e9", "callbacks.early_stopping.patience=3"]
ENDS = {
    "early_stopping": [*EARLY, "callbacks.last_checkpoint.times=null", "trainer.max_epochs=30"],
    "early_stopping_of_rare_validations": EARLY,
    "early_stopping_after_min_epochs": [*EARLY, "trainer.min_epochs=80"],
    "max_time": ["trainer.max_time=00:00:00:01", "trainer.max_epochs=-1"],
    "max_time_within_an_epoch": ["trainer.max_time=00:00:00:01", "data.batch_size=1", "trainer.max_epochs=5000", *EACH],
    "max_steps": ["++trainer.max_steps=25", "trainer.max_epochs=30"],
    "max_steps_within_an_epoch": ["++trainer.max_steps=25", "data.batch_size=10", "trainer.max_epochs=-1"],
}


@pytest.mark.parametrize("end", ENDS)
def test_resuming_an_ended_run_only_tests_it(train, script, end, tmp_path, capfd):
    train(*ENDS[end], "callbacks.regression_figures=null", "hydra.run.dir=whole")
    run = shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    (run / "results.json").unlink()
    capfd.readouterr()
    script("resume.py", run)
    # An epoch cut short by max_steps is repeated and ends at the same step.
    assert ("resuming after" in capfd.readouterr().out) == (end == "max_steps_within_an_epoch")
    if end == "max_time_within_an_epoch":
        found, expected = (json.loads((run / "results.json").read_text()) for run in (run, tmp_path / "whole"))
        assert (found["metrics"], found["epochs"]) == (expected["metrics"], expected["epochs"])
        return  # The checkpoint does not contain the steps of the epoch that was cut short.
    assert_same(state_of_line(run), state_of_line(tmp_path / "whole"))
    steps = [[e.step for e in EventAccumulator(str(path)).Reload().Scalars("test/loss")] for path in (run, "whole")]
    assert set(steps[0]) == set(steps[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "end",
    [
        pytest.param("early_stopping", marks=pytest.mark.slow),
        "early_stopping_of_rare_validations",
        pytest.param("max_steps", marks=pytest.mark.slow),
    ],
)
def test_resumed_run_ends_early_at_the_same_step(start, folder, end):
    options = ["train.py", *ENDS[end], "callbacks.regression_figures=null", "callbacks.run_description=null"]
    status, printed, calls = start(*options, f"hydra.run.dir={end}")
    assert status == 0, printed
    for part in (0.3, 0.6, 0.9):
        run = folder / f"{end}-{part}"
        assert start(*options, f"hydra.run.dir={run}", at=int(calls * part))[0] == -signal.SIGKILL
        status, printed, _ = start("resume.py", run)
        assert status == 0, printed
        assert_same(state_of_line(run), state_of_line(folder / end))


@pytest.mark.parametrize("change", ["callbacks.early_stopping.patience=9", "trainer.max_epochs=40"])
def test_ended_run_trains_longer_with_new_rules(train, script, change, tmp_path):
    options = [*ENDS["early_stopping"], "callbacks.regression_figures=null"]
    train(*options, "hydra.run.dir=parts")
    train(*options, change, "hydra.run.dir=whole")
    script("resume.py", "parts", change)
    epochs = json.loads((tmp_path / "parts/results.json").read_text())["epochs"]
    if "patience" in change:
        assert_same(state_of_line(tmp_path / "parts"), state_of_line(tmp_path / "whole"))
        assert epochs == 10
    else:
        assert epochs == 5, "it still does not improve"


def test_early_stopping_counts_validations(train, tmp_path):
    train(*EARLY, "trainer.max_epochs=100", "trainer.check_val_every_n_epoch=10", "hydra.run.dir=run")
    assert json.loads((tmp_path / "run/results.json").read_text())["epochs"] == 40


def test_early_stopping_does_not_stop_an_untrained_line(train):
    """The default run validates every tenth epoch, so five validations are fifty epochs."""
    (run,) = train("callbacks=early_stopping", "callbacks.early_stopping.patience=5", "optimizer.lr=0.002")
    assert json.loads((run / "results.json").read_text())["epochs"] == 500
    steps = [event.step for event in EventAccumulator(str(run)).Reload().Scalars("val/loss")]
    assert steps == list(range(9, 500, 10))


@pytest.mark.parametrize("epochs", [1, 5, 20, 60, 101, 150])
def test_last_epoch_is_always_validated(train, epochs):
    (run,) = train(f"trainer.max_epochs={epochs}", "callbacks.regression_figures=null", "logger=csv")
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] < epochs
    assert "val/loss" in json.loads((run / "results.json").read_text())["metrics"]
    rows = (run / "csv/version_0/metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("val/loss")
    validated = [int(row.split(",")[rows[0].split(",").index("step")]) for row in rows[1:] if row.split(",")[column]]
    assert validated[-1] == epochs - 1
    assert len(validated) <= 101


# The end of an epoch

CUT = ["data.batch_size=10", "trainer.max_epochs=6", "callbacks.regression_figures=null"]


@pytest.mark.parametrize(
    "limit", [["trainer.max_steps=25"], ["+callbacks.cut._target_=test_resume.Cut", "scheduler=cosine"]]
)
def test_run_cut_within_an_epoch_resumes_from_previous_epoch(train, script, tmp_path, limit):
    train(*CUT, *limit[1:], "hydra.run.dir=whole")
    train(*CUT, *limit, "hydra.run.dir=cut")
    last = torch.load(tmp_path / "cut/checkpoints/last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (1, 20), "the third epoch is incomplete"
    results = json.loads((tmp_path / "cut/results.json").read_text())
    assert (results["epochs"], results["steps"]) == (2, 25)
    change = "trainer.max_steps=-1" if "max_steps" in limit[0] else "callbacks.cut=null"
    script("resume.py", "cut", change)
    assert_same(state_of_line(tmp_path / "cut"), state_of_line(tmp_path / "whole"))


@pytest.mark.parametrize(
    "limit", [["trainer.max_steps=5"], ["+callbacks.cut._target_=test_resume.Cut", "+callbacks.cut.step=5"]]
)
def test_run_cut_within_first_epoch_starts_over(train, script, tmp_path, limit):
    train(*CUT, "hydra.run.dir=whole")
    train(*CUT, *limit, "hydra.run.dir=cut")
    assert not (tmp_path / "cut/checkpoints/last.ckpt").exists()
    script("resume.py", "cut", "trainer.max_steps=-1" if "max_steps" in limit[0] else "callbacks.cut=null")
    assert_same(state_of_line(tmp_path / "cut"), state_of_line(tmp_path / "whole"))
    assert json.loads((tmp_path / "cut/results.json").read_text())["epochs"] == 6


class Cut(Callback):
    """Stops the run in the middle of an epoch as max_time does, by default in the third."""

    def __init__(self, step=25):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop |= trainer.global_step == self.step


def test_resume_rejects_best_checkpoint_from_within_an_epoch(train, script, tmp_path, capfd):
    train(*CUT, "trainer.val_check_interval=0.5", "optimizer.lr=1e-9", "callbacks.best_checkpoint.mode=max")
    (run,) = tmp_path.glob("outputs/*/*")  # the first validation, in the middle of the first epoch, remains the best
    with pytest.raises(SystemExit, match=r"best\.ckpt, from the middle of an epoch, .* weights="):
        train(*CUT, f"ckpt_path={run}/checkpoints/best.ckpt", "optimizer.lr=1e-9")
    (run / "checkpoints/last.ckpt").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"No checkpoint in .* from the end of an epoch"):
        script("resume.py", run, "trainer.max_epochs=9")
    assert "best.ckpt is from the middle of an epoch" in capfd.readouterr().out


# Callbacks that touch the weights


@pytest.mark.parametrize("name", ["EMAWeightAveraging", "StochasticWeightAveraging", "ModelPruning"])
def test_commands_reproduce_the_results_of_training(train, script, tmp_path, capfd, name):
    arguments = {
        "EMAWeightAveraging": {"decay": 0.8},
        "StochasticWeightAveraging": {"swa_lrs": 0.05},
        "ModelPruning": {"pruning_fn": "l1_unstructured", "amount": 0.5},
    }[name]
    options = [f"+callbacks.touch._target_=lightning.pytorch.callbacks.{name}"]
    options += [f"+callbacks.touch.{key}={value}" for key, value in arguments.items()]
    (run,) = train("trainer.max_epochs=30", "optimizer.lr=0.1", "callbacks.regression_figures=null", *options)
    expected = json.loads((run / "results.json").read_text())["metrics"]["test/loss"]
    capfd.readouterr()
    script("evaluate.py", run, "--json")
    assert json.loads("{" + capfd.readouterr().out.partition("{")[2])["metrics"]["test/loss"] == expected
    weights = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    script("predict.py", run, "7.5", "--output", "y.json")
    y = 7.5 * weights["linear.weight"].item() + weights["linear.bias"].item()
    assert json.loads((tmp_path / "y.json").read_text())[0]["y"] == pytest.approx(y, rel=1e-5)


def test_resume_restores_averaged_weights_bit_for_bit(train, script, tmp_path):
    options = ["+callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging", "+callbacks.ema.decay=0.8"]
    train("trainer.max_epochs=30", *options, "hydra.run.dir=whole")
    train("trainer.max_epochs=20", *options, "hydra.run.dir=parts")
    script("resume.py", "parts", "trainer.max_epochs=30")
    assert_same(state_of_line(tmp_path / "parts"), state_of_line(tmp_path / "whole"))


@pytest.mark.slow
def test_repeated_command_resumes_then_does_nothing(start, command, uninterrupted, folder):
    expected, calls = uninterrupted
    again = [*command, "hydra.run.dir=requeued", "ckpt_path=last"]
    assert start(*again[:-1])[0] == 0, "it is the same run without ckpt_path=last"
    assert start(*again)[1].startswith("requeued is finished.")
    shutil.rmtree("requeued")
    assert start(*again, at=calls // 2)[0] == -signal.SIGKILL
    assert start(*again)[0] == 0
    assert_same(state(folder / "requeued"), expected)
    before = (folder / "requeued/results.json").read_bytes()
    status, printed, _ = start(*again)
    assert status == 0
    assert printed.startswith("requeued is finished.")
    assert (folder / "requeued/results.json").read_bytes() == before


@pytest.mark.parametrize("scheduler", ["constant", "step", "plateau"])
def test_resume_restores_the_scheduler(train, script, scheduler, tmp_path):
    decay = {"step": ["scheduler.step_size=3"], "plateau": ["scheduler.patience=0", "scheduler.mode=max"]}
    options = [f"scheduler={scheduler}", "data.batch_size=25", *decay.get(scheduler, [])]
    train(*options, "trainer.max_epochs=8", "hydra.run.dir=whole")
    train(*options, "trainer.max_epochs=5", "hydra.run.dir=parts")
    script("resume.py", "parts", "trainer.max_epochs=8")
    assert_same(state_of_line(tmp_path / "parts"), state_of_line(tmp_path / "whole"))


def state_of_line(run):
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    results = json.loads((run / "results.json").read_text())
    counts = [results["epochs"], results["steps"]]
    return [last["state_dict"], last["optimizer_states"], last["lr_schedulers"], results["metrics"], counts]


@pytest.mark.slow
def test_short_epochs_are_validated_and_saved_at_intervals(start, folder):
    options = ["train.py", "trainer.max_epochs=120", "callbacks.regression_figures=null"]
    _, _, calls = start(*options, "hydra.run.dir=rare")
    read = EventAccumulator(str(folder / "rare"))
    read.Reload()
    steps = [point.step for point in read.Scalars("val/loss")]
    assert steps == list(range(1, 120, 2))
    assert start(*options, "hydra.run.dir=rare-killed", at=calls // 2)[0] == -signal.SIGKILL
    status, printed, _ = start("resume.py", "rare-killed")
    assert status == 0
    epoch = int(re.search(r"resuming after epoch (\d+)", printed)[1])
    assert 0 < epoch < 119
    assert_same(state_of_line(folder / "rare-killed"), state_of_line(folder / "rare"))


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["cosine", "one_cycle"])
def test_more_epochs_extend_the_schedule(train, script, scheduler, tmp_path):
    train(f"scheduler={scheduler}", "trainer.max_epochs=20", "hydra.run.dir=whole")
    train(f"scheduler={scheduler}", "trainer.max_epochs=10", "hydra.run.dir=parts")
    script("resume.py", "parts", "trainer.max_epochs=20")
    rates = []
    for run in ("whole", "parts"):
        last = torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True)
        rates.append(last["optimizer_states"][0]["param_groups"][0]["lr"])
        assert last["lr_schedulers"][0]["last_epoch"] == 20
    assert rates[1] == pytest.approx(rates[0], abs=1e-9)


@pytest.mark.slow
def test_moved_run_keeps_its_best_checkpoint(train, script, tmp_path):
    train("trainer.max_epochs=100", "hydra.run.dir=here")
    shutil.move(tmp_path / "here", tmp_path / "there, x=1")
    run = tmp_path / "there, x=1"
    path, monitor = run / "checkpoints/last.ckpt", "'monitor': 'val/loss'"
    last = torch.load(path, weights_only=True)
    (state,) = (state for key, state in last["callbacks"].items() if monitor in key)
    state["best_model_score"].fill_(1e-9)  # No later value can be better.
    torch.save(last, path)
    best = (run / "checkpoints/best.ckpt").read_bytes()
    script("resume.py", run, "trainer.max_epochs=105")
    assert json.loads((run / "results.json").read_text())["epochs"] == 105
    assert (run / "checkpoints/best.ckpt").read_bytes() == best
    script("evaluate.py", run)
    script("predict.py", run, "4")
    script("export.py", run)


def test_resume_with_more_epochs_keeps_the_change(train, script, tmp_path, capfd):
    (run,) = train("trainer.max_epochs=10")
    script("resume.py", "trainer.max_epochs=15")
    assert json.loads((run / "results.json").read_text())["epochs"] == 15
    capfd.readouterr()
    script("resume.py")
    assert "is finished" in capfd.readouterr().out
    assert len(json.loads((run / "environment.json").read_text())) == 2
    assert (run / "train.log").read_text().count("resuming after epoch 10") == 1


def test_resume_discards_an_invalid_change(train, script, tmp_path):
    (run,) = train("trainer.max_epochs=10")
    before = {path: path.read_bytes() for path in (run / ".hydra").iterdir()}
    for mistake, message in {
        "data.batch_size=0": "data.batch_size is 0",
        "optimizer.lr=0.5": "no effect",
        "trainer.max_epoch=20": "Did you mean max_epochs",
        "optimizer=sgd": "keeps the choices",
        "nowhere": "not a run folder",
    }.items():
        with pytest.raises(SystemExit, match=message):
            script("resume.py", run, mistake)
    assert {path: path.read_bytes() for path in (run / ".hydra").iterdir()} == before
