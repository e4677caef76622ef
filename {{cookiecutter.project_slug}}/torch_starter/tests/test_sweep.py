"""Test that sweep.py finds the best trial, even if other trials fail or its process is killed."""

import itertools
import json
import multiprocessing
import os
import random
import re
import runpy
import shlex
import signal
import sys

import pytest
import torch

from project_for_tests import ROOT, weights

optuna = pytest.importorskip("optuna", reason='Optuna is not installed: pip install -e ".[sweep]"')

from torch_starter import saved_config  # noqa: E402

SHORT = "trainer.max_epochs=5"
# Figures and the graph take longer than five epochs of linear regression.
QUICK = [SHORT, "callbacks.regression_figures=null", "callbacks.run_description=null"]
LINE = """
space:
  optimizer: [sgd, adam]
  optimizer.lr: {low: 1e-3, high: 1e-1, log: true}
  data.batch_size: {low: 20, high: 100, step: 20}
"""
needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="a fork after torch is imported is safe on Linux only")


@pytest.fixture
def space(tmp_path):
    """Return a function that writes a search space and returns its path."""

    def space(text: str = LINE) -> str:
        (tmp_path / "space.yaml").write_text(text, encoding="utf-8")
        return "space.yaml"

    return space


@pytest.fixture
def sweep(script):
    """Return a function that runs `python sweep.py ARGUMENTS` with few epochs."""

    def sweep(*arguments: object) -> None:
        script("sweep.py", *arguments, *QUICK)

    return sweep


def trials_of(folder):
    """Return the trials of a study, read by Optuna."""
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "study.log")))
    (study,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=study.study_name, storage=storage).trials


def states(folder):
    return [trial.state.name for trial in trials_of(folder)]


def results(run):
    found = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return {key: found[key] for key in ("metrics", "best_checkpoint", "epochs", "steps")}


def assert_same_run(run, other):
    assert results(run) == results(other)
    assert all(map(torch.equal, weights(run).values(), weights(other).values()))


def test_best_command_reproduces_trial_bit_for_bit(sweep, space, train, tmp_path, capfd):
    sweep(space(), "--trials", 4)
    study = tmp_path / "outputs/sweeps/space"
    trials = trials_of(study)
    assert states(study) == ["COMPLETE"] * 4
    for trial in trials:
        run = study / str(trial.number)
        expected = {".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml", "train.log", "results.json"}
        expected |= {"environment.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
        assert expected <= {path.relative_to(run).as_posix() for path in run.rglob("*")}
        assert list(run.glob("events.out.tfevents.*"))
        assert "sweep" not in (run / ".hydra/config.yaml").read_text(encoding="utf-8")
        assert trial.params.keys() == {"optimizer", "optimizer.lr", "data.batch_size"}
        assert trial.value == min(trial.intermediate_values.values())
        assert list(trial.intermediate_values) == list(range(1, 6))
        assert saved_config.read_overrides(run) == [*QUICK, *(f"{key}={value}" for key, value in trial.params.items())]
    for name in ("history.png", "importance.png"):
        assert (study / name).read_bytes().startswith(b"\x89PNG")

    printed, warned = capfd.readouterr()
    assert warned == ""
    best = min(trials, key=lambda trial: trial.value)
    assert f"best trial    outputs/sweeps/space/{best.number}\n" in printed
    # The table, best first, without training output between the lines of the trials.
    assert re.findall(r"^ +(\d) +complete", printed, re.MULTILINE)[0] == str(best.number)
    assert printed.count("trial ") == 4 + 2
    assert "epoch 1/5" not in printed
    command = re.search(r"its command   python train.py (.*)", printed)[1]
    (again,) = train(*shlex.split(command))
    assert_same_run(study / str(best.number), again)


@pytest.mark.slow
def test_other_commands_accept_trial_as_run(sweep, space, script, capfd):
    sweep(space(), "--trials", 1)
    trial = "outputs/sweeps/space/0"
    script("resume.py", trial, "trainer.max_epochs=7")
    assert results(saved_config.Path(trial))["epochs"] == 7
    script("evaluate.py", trial)
    script("predict.py", trial, "4")
    printed, _ = capfd.readouterr()
    assert "test/loss" in printed
    assert "resuming after epoch 5" in printed


@pytest.mark.slow
def test_resumed_study_matches_uninterrupted_study(sweep, space, tmp_path):
    sweep(space(), "--trials", 4, "--study", "whole")
    sweep(space(), "--trials", 2, "--study", "parts")
    sweep(space(), "--trials", 4, "--study", "parts")
    whole, parts = (trials_of(tmp_path / "outputs/sweeps" / name) for name in ("whole", "parts"))
    assert [(trial.params, trial.value) for trial in parts] == [(trial.params, trial.value) for trial in whole]
    assert len({trial.params["optimizer.lr"] for trial in parts}) == 4


@pytest.mark.slow
def test_trials_option_is_total_of_study(sweep, tmp_path, capfd):
    sweep("linear_regression", "--trials", 2)
    study = tmp_path / "outputs/sweeps/linear_regression"
    assert results(study / "0")["epochs"] == 5, "the command line takes precedence over the overrides of the file"
    capfd.readouterr()
    sweep("linear_regression", "--trials", 2)
    printed = capfd.readouterr().out
    assert "already has 2 trials; --trials is the total number of trials" in printed
    assert "its command   python train.py" in printed
    assert len(trials_of(study)) == 2


def test_pruned_trial_can_be_evaluated_and_resumed(sweep, space, script, tmp_path, capfd):
    sweep(space("space:\n  optimizer.lr: [0.1, 1e-9]\n"), "--trials", 10)
    study = tmp_path / "outputs/sweeps/space"
    pruned = [trial for trial in trials_of(study) if trial.state.name == "PRUNED"]
    assert pruned
    assert {trial.params["optimizer.lr"] for trial in pruned} == {"1e-09"}
    for trial in pruned:
        run = study / str(trial.number)
        assert max(trial.intermediate_values) < 5
        assert not (run / "results.json").exists()
        assert f"pruned after epoch {max(trial.intermediate_values)}" in (run / "train.log").read_text(encoding="utf-8")
    assert "pruned  val/loss" in capfd.readouterr().out
    script("evaluate.py", run)
    script("resume.py", run)
    assert results(run)["epochs"] == 5


@pytest.mark.slow
def test_sweep_searches_lists_for_images(script, digits, tmp_path, capfd):
    small = [f"data.root={digits}", "data.num_val=100", "trainer.max_epochs=1"]
    script("sweep.py", "mnist", "--trials", 2, *small)
    study = tmp_path / "outputs/sweeps/mnist"
    assert states(study) == ["COMPLETE"] * 2
    printed = capfd.readouterr().out
    assert "'model.network.channels=[" in printed
    best = re.search(r"best trial    (.*)", printed)[1]
    metrics = [results(study / str(number))["metrics"]["val/acc"] for number in range(2)]
    assert results(tmp_path / best)["metrics"]["val/acc"] == max(metrics), "the highest accuracy is the best"


# Errors


@pytest.mark.slow
def test_study_continues_after_failed_trial(sweep, space, tmp_path, capfd):
    sweep(space("space:\n  optimizer.lr: [0.01, -1, 1e30]\n"), "--trials", 6)
    study = tmp_path / "outputs/sweeps/space"
    reasons = {"-1": "Invalid learning rate: -1", "1e+30": "val/loss is"}
    failed = [trial for trial in trials_of(study) if trial.params["optimizer.lr"] in reasons]
    assert {trial.params["optimizer.lr"] for trial in failed} == reasons.keys()
    assert len(failed) < 6
    for trial in failed:
        run, reason = study / str(trial.number), reasons[trial.params["optimizer.lr"]]
        assert trial.state.name == "FAIL"
        for text in (trial.user_attrs["reason"], (run / "error.txt").read_text(), (run / "train.log").read_text()):
            assert reason in text
        assert not (run / "results.json").exists()
    printed = capfd.readouterr().out
    assert f"{len(failed)} of 6 trials failed" in printed
    assert "its command   python train.py" in printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_trial_log_contains_traceback_of_bug(sweep, space, tmp_path, monkeypatch):
    from torch import optim

    def broken(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(optim.Adam, "step", broken)
    sweep(space("space:\n  optimizer: [sgd, adam]\n"), "--trials", 6)
    study = tmp_path / "outputs/sweeps/space"
    assert set(states(study)) == {"COMPLETE", "FAIL"}
    run = study / str(states(study).index("FAIL"))
    assert (run / "error.txt").read_text() == "RuntimeError: a bug\n"
    assert "Traceback" in (run / "train.log").read_text()


def test_sweep_reports_reason_if_all_trials_fail(sweep, space):
    with pytest.raises(SystemExit) as exit_:
        sweep(space("overrides: [data.batch_size=0]\nspace:\n  seed: [1, 2]\n"), "--trials", 2)
    assert "2 of 2 trials failed" in exit_.value.code
    assert "data.batch_size is 0" in exit_.value.code


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("space:\n  optimizer.lrr: [1]", ["optimizer.lrr", "Did you mean lr?"]),
        ("space:\n  optimizer: [sgd, adamm]", ["optimizer=adamm", "Did you mean adam?"]),
        (
            "space:\n  optimizer: [sgd, adam]\n  optimizer.momentum: {low: 0, high: 0.9}",
            ["optimizer.momentum: there is no such key", "with optimizer=adam"],
        ),
        ("space:\n  optimizer: {low: 1, high: 2}", ["optimizer", "a list of its choices"]),
        ("space:\n  optimizer.lr: {low: 1, high: 1e-4}", ["low is 1; it must not be above high (0.0001)"]),
        ("space:\n  optimizer.lr: {low: 0, high: 1, log: true}", ["low is 0", "above 0"]),
        ("space:\n  optimizer.lr: {low: 1, high: 2, step: 0}", ["step is 0"]),
        ("space:\n  optimizer.lr: {low: 0.1, high: 0.5, step: 0.3}", ["steps of 0.3", "do not reach high (0.5)"]),
        ("space:\n  optimizer.lr: {low: 1, high: 2, step: 1, log: true}", ["log: true and step"]),
        ("space:\n  optimizer.lr: {low: 1, hihg: 2}", ["hihg", "Did you mean high?"]),
        ("space:\n  optimizer.lr: {low: 1}", ["low and high"]),
        ("space:\n  optimizer.lr: {low: little, high: 1}", ["low is little", "a number"]),
        ("space:\n  optimizer.lr: 0.1", ["optimizer.lr: it is 0.1", "it must be a list of choices"]),
        ("space:\n  optimizer.lr: []", ["optimizer.lr", "no choices"]),
        ("space:\n  1: [2]", ["1: it must be a key"]),
        ("space:\n  callbacks.best_checkpoint.mode: [min, max]", ["the same in all trials"]),
        ("space:\n  experiment: [linear_regression, mnist]", ["max val/acc", "min val/loss", "experiment=mnist"]),
        ("overrides: [callbacks.best_checkpoint=null]\nspace:\n  seed: [1]", ["callbacks.best_checkpoint is missing"]),
        ("overrides: [seed=1]\nspace:\n  seed: [1]", ["seed is in the space", "in its overrides (seed=1)"]),
        ("overrides: seed\nspace:\n  seed: [1]", ["overrides is seed", "must be a list"]),
        ("spaces:\n  seed: [1]", ["spaces", "Did you mean space?"]),
        ("space: {}", ["has no space"]),
        ("- 1", ["has no space"]),
        ("space: [", ["space.yaml cannot be read"]),
    ],
)
def test_invalid_space_raises_error(sweep, space, tmp_path, text, messages):
    with pytest.raises(SystemExit) as exit_:
        sweep(space(text))
    for expected in messages:
        assert expected in exit_.value.code
    assert len(exit_.value.code.splitlines()) <= 4
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ([], ["python sweep.py SPACE", "linear_regression, mnist"]),
        (["mnits"], ["mnits", "Did you mean mnist?"]),
        (["linear_regression", "--trials", "0"], ["--trials is 0"]),
        (["linear_regression", "--study", "a/b"], ["a/b", "--study"]),
        (["linear_regression", "optimizer.lr=1"], ["optimizer.lr is in the space", "on the command line"]),
        (["linear_regression", "optimizer=adam"], ["optimizer is in the space", "on the command line"]),
        (["linear_regression", "trainer.max_epoch=1"], ["trainer.max_epoch", "Did you mean max_epochs?"]),
        (["linear_regression", "hydra.run.dir=here"], ["hydra.run.dir=here", "--study"]),
        (["linear_regression", "mnist"], ["mnist", "key=value"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_invalid_arguments_raise_error(script, tmp_path, arguments, messages):
    with pytest.raises(SystemExit) as exit_:
        script("sweep.py", *arguments)
    for expected in messages:
        assert expected in exit_.value.code
    assert len(exit_.value.code.splitlines()) <= 4
    assert not (tmp_path / "outputs").exists()


def test_missing_optuna_suggests_installation(script, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit, match=r'pip install -e "\.\[sweep\]"'):
        script("sweep.py", "linear_regression")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_sweep_refuses_other_newer_or_damaged_study(sweep, space, tmp_path):
    sweep(space(), "--trials", 1)
    study = tmp_path / "outputs/sweeps/space"
    described, journal = (study / "study.json").read_text(), (study / "study.log").read_bytes()

    def message(text: str = LINE, *more: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            sweep(space(text), "--trials", 2, *more)
        assert "--study NAME" in exit_.value.code
        return exit_.value.code

    assert '  optimizer: ["sgd", "adam"] in the study, ["sgd"] now' in message(LINE.replace("[sgd, adam]", "[sgd]"))
    assert "  seed: null in the study, [1] now" in message(LINE + "  seed: [1]")
    assert "seed=3" in message(LINE, "seed=3")
    for key, value, expected in (("format", 2, "format 2"), ("optuna", "99.0.0", "Optuna 99.0.0")):
        (study / "study.json").write_text(json.dumps(json.loads(described) | {key: value}))
        assert expected in message()
    (study / "study.json").write_text(described[:30])
    assert "study.json cannot be read" in message()
    (study / "study.json").write_text(described)
    for damaged in (b"{}\n", b"half a li\n", journal + b'{"op_code": 99, "worker_id": "x"}\n'):
        (study / "study.log").write_bytes(damaged)
        assert "study.log cannot be read" in message()
    (study / "study.log").unlink()
    assert "no study.log" in message()
    # An unfinished last line, such as a full disk leaves, is removed.
    (study / "study.log").write_bytes(journal + b'{"op_co')
    sweep(space(), "--trials", 2)
    assert states(study) == ["COMPLETE"] * 2


# Interrupted and concurrent processes


# When a process gets its signal: at most this many function calls after the first call of this function.
AFTER_ASK, AFTER_REPORT, AFTER_TELL = (
    (optuna.Study, "ask", 20_000),
    (optuna.Trial, "report", 400_000),
    (optuna.Study, "tell", 20_000),
)


def in_child(arguments, output, sent, moment, at):
    """Run `python sweep.py ARGUMENTS`, and send the process a signal ``at`` function calls after ``moment``."""
    sys.stdout = sys.stderr = os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "w", buffering=1)
    sys.argv = ["sweep.py", *arguments]
    owner, name, _ = moment
    function, calls = getattr(owner, name), itertools.count(1)

    def profile(frame, event, argument):
        if next(calls) == at:
            os.kill(os.getpid(), sent)

    def call_and_count(*args):
        try:
            return function(*args)
        finally:
            sys.setprofile(profile if at else None)

    setattr(owner, name, call_and_count)
    try:
        runpy.run_path(str(ROOT / "sweep.py"), run_name="__main__")
    finally:
        sys.setprofile(None)


@pytest.fixture
def start(tmp_path, sweep, space):
    """Return a function that starts `python sweep.py space.yaml ARGUMENTS` in a new process."""
    sweep(space(), "--trials", 1, "--study", "first")  # imports everything before the forks
    context = multiprocessing.get_context("fork")

    def start(*arguments, sent=signal.SIGKILL, moment=AFTER_ASK, at=0):
        words = ["space.yaml", *map(str, arguments), *QUICK]
        process = context.Process(target=in_child, args=(words, tmp_path / "output.txt", sent, moment, at))
        process.start()
        return process

    return start


@needs_fork
@pytest.mark.slow
def test_sweep_killed_at_random_resumes_same_trials(start, tmp_path):
    start("--trials", 2, "--study", "whole").join()
    folder, whole = tmp_path / "outputs/sweeps", trials_of(tmp_path / "outputs/sweeps/whole")
    generator, kills, epochs_kept = random.Random(0), 0, 0
    while kills < 12:
        study = folder / f"killed{kills}"
        while True:
            moment = generator.choice([AFTER_ASK, AFTER_REPORT, AFTER_TELL])
            process = start("--trials", 2, "--study", study.name, moment=moment, at=generator.randrange(1, moment[2]))
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL, (tmp_path / "output.txt").read_text()
            kills += 1
        trials = trials_of(study)
        assert [trial.number for trial in trials] == [0, 1]
        assert sorted(path.name for path in study.glob("[0-9]*")) == ["0", "1"]
        for trial, expected in zip(trials, whole, strict=True):
            run = study / str(trial.number)
            assert trial.state.name == "COMPLETE"
            assert list(trial.intermediate_values) == list(range(1, 6))
            log = (run / "train.log").read_text()
            epochs_kept += log.count("resuming after epoch")
            assert "already reported" not in log
            if trial.params == expected.params:  # if killed between two parameters, it may choose another value
                assert trial.intermediate_values == expected.intermediate_values
                assert_same_run(run, folder / "whole" / run.name)
    assert epochs_kept >= 2


@needs_fork
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
def test_signal_stops_sweep_immediately(start, tmp_path, sent):
    process = start("--trials", 2, "--study", "stopped", sent=sent, moment=AFTER_REPORT, at=10_000)
    process.join()
    assert process.exitcode == 128 + sent
    assert "run the same command again" in (tmp_path / "output.txt").read_text()
    assert "Traceback" not in (tmp_path / "output.txt").read_text()
    start("--trials", 2, "--study", "stopped").join()
    assert states(tmp_path / "outputs/sweeps/stopped") == ["COMPLETE"] * 2


@pytest.mark.slow
@needs_fork
def test_processes_share_study(start, tmp_path):
    processes = [start("--trials", 6, "--study", "shared") for _ in range(2)]
    for process in processes:
        process.join()
    output = (tmp_path / "output.txt").read_text()
    assert [process.exitcode for process in processes] == [0, 0], output
    study = tmp_path / "outputs/sweeps/shared"
    assert set(states(study)) <= {"COMPLETE", "PRUNED"}
    assert sorted(path.name for path in study.glob("[0-9]*")) == [str(number) for number in range(6)]
    assert sorted(re.findall(r"^trial (\d)", output, re.MULTILINE)) == [str(number) for number in range(6)]
    for run in study.glob("[0-9]*"):
        assert len(json.loads((run / "environment.json").read_text())) == 1, "each trial starts once"
