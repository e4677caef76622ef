"""Refused commands change nothing, and commands find the right run folder."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from project_for_tests import ROOT, environment
from torch_starter import run_lookup

QUICK = ["trainer.max_epochs=20", "callbacks.regression_figures=null"]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_refused_run_leaves_existing_run_unchanged(train, script, tmp_path, capfd):
    train(*QUICK, "seed=1", "hydra.run.dir=r1")
    before = contents(tmp_path)
    for changes in (["optimizer=sgd", "data.slope=-7"], ["seed=3"], [], ["trainer.fast_dev_run=true"]):
        with pytest.raises(SystemExit, match="r1 already contains a run, which was not changed"):
            train(*QUICK, *changes, "hydra.run.dir=r1")
    assert contents(tmp_path) == before
    loss = json.loads((tmp_path / "r1/results.json").read_text())["metrics"]["test/loss"]
    capfd.readouterr()
    script("evaluate.py", "r1", "--json")
    assert json.loads("{" + capfd.readouterr().out.partition("{")[2])["metrics"]["test/loss"] == loss


def test_run_without_checkpoints_is_not_overwritten(train, tmp_path):
    train(*QUICK, "callbacks.best_checkpoint=null", "callbacks.last_checkpoint=null", "hydra.run.dir=r1")
    before = contents(tmp_path)
    with pytest.raises(SystemExit, match="r1 already contains a run"):
        train(*QUICK, "seed=1", "hydra.run.dir=r1")
    assert contents(tmp_path) == before


def test_run_replaces_fast_dev_run(train, tmp_path):
    train(*QUICK, "hydra.run.dir=r1", "trainer.fast_dev_run=true")
    train(*QUICK, "hydra.run.dir=r1")
    assert json.loads((tmp_path / "r1/results.json").read_text())["epochs"] == 20


def test_invalid_command_leaves_no_folder(train, tmp_path):
    (good,) = train(*QUICK)
    before = contents(tmp_path)
    for mistake in (
        "trainer.accelerator=tpu",
        "data.batch_size=0",
        "optimizer.lr=-1",
        "ckpt_path=nowhere.ckpt",
        "callbacks.best_checkpoint.monitor=val/losss",
        "trainer.devices=99",
    ):
        for folder in ([], ["hydra.run.dir=r2"]):
            with pytest.raises(SystemExit):
                train(*QUICK, mistake, *folder)
            assert contents(tmp_path) == before
        assert not (tmp_path / "r2").exists()
        assert list(good.parent.iterdir()) == [good]


def test_invalid_command_keeps_other_files_in_folder(train, tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job/slurm-7.out").write_text("queued")
    with pytest.raises(SystemExit):
        train(*QUICK, "data.batch_size=0", "hydra.run.dir=job")
    assert [path.name for path in contents(tmp_path / "job") if path.name != ".lock"] == ["slurm-7.out"]
    train(*QUICK, "hydra.run.dir=job")


def test_refused_resume_leaves_run_unchanged(train, script, tmp_path):
    (run,) = train(*QUICK)
    before = contents(run)
    for mistake in ("data.batch_size=0", "model.linear=1", "trainer.devices=99", "trainer.accelerator=tpu"):
        with pytest.raises(SystemExit):
            script("resume.py", run, "trainer.max_epochs=40", mistake)
        after = contents(run)
        assert after.keys() == before.keys()
        assert {path.name for path in after if after[path] != before[path]} <= {"train.log"}


def test_refused_resume_does_not_change_latest_run(train, script, tmp_path, capfd):
    (first,) = train(*QUICK)
    (second,) = train(*QUICK)
    for mistake in ("trainer.devices=99", "trainer.max_epochs=5", "trainer.fast_dev_run=true"):
        with pytest.raises(SystemExit):
            script("resume.py", first, "trainer.max_epochs=40", mistake)
    capfd.readouterr()
    script("evaluate.py", "latest")
    assert second.name in capfd.readouterr().out


@pytest.mark.parametrize("mistake", ["optimizer=sgd,adamm", "trainer.max_epoch=1,2", "data=linear,nope"])
def test_refused_multirun_changes_nothing(line, tmp_path, mistake):
    """Runs in a new process, which cleans up at its end."""
    command = [sys.executable, ROOT / "train.py", "-m", *QUICK, mistake]
    (tmp_path / "there").mkdir()
    (tmp_path / "there/multirun.yaml").write_text("of a former one")
    before = {path: text for path, text in contents(tmp_path).items() if path.name != ".lock"}
    for folder in ("new/multirun", "there", line):
        done = subprocess.run(
            [*command, f"hydra.sweep.dir={folder}"], cwd=tmp_path, env=environment(), capture_output=True
        )
        assert done.returncode == 1
        assert {path: text for path, text in contents(tmp_path).items() if path.name != ".lock"} == before
    assert not (tmp_path / "new").exists()


def test_requeued_finished_run_stays_unchanged(train, image_folder, tmp_path):
    """Includes values from the data, such as the number of classes."""
    small = ["data=image_folder", "data.image_shape=[3,16,16]", "model=cnn", "data.num_workers=0"]
    command = [*small, f"data.root={image_folder}", "trainer.max_epochs=1", "hydra.run.dir=r1"]
    train(*command)
    before = contents(tmp_path / "r1/.hydra")
    train(*command, "ckpt_path=last")
    assert contents(tmp_path / "r1/.hydra") == before


def test_changed_run_does_not_resume_existing_run(train, tmp_path):
    train(*QUICK, "hydra.run.dir=r1")
    before = contents(tmp_path)
    for change in ("optimizer=sgd", "optimizer.lr=0.5", "scheduler=step", "+optimizer.amsgrad=true"):
        with pytest.raises(SystemExit, match=r"r1 holds the state of an? (optimizer|scheduler)"):
            train(*QUICK, change, "hydra.run.dir=r1", "ckpt_path=last")
        assert contents(tmp_path) == before
    train("trainer.max_epochs=30", "callbacks.regression_figures=null", "hydra.run.dir=r1", "ckpt_path=last")
    assert json.loads((tmp_path / "r1/results.json").read_text())["epochs"] == 30


def test_only_one_of_two_concurrent_commands_trains(tmp_path):
    command = [sys.executable, ROOT / "train.py", *QUICK, "hydra.run.dir=r1"]
    settings = {"cwd": tmp_path, "env": environment(), "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    both = [subprocess.Popen([*command, f"seed={seed}"], text=True, **settings) for seed in (1, 2)]
    errors = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    winner = 1 + [process.returncode for process in both].index(0)
    assert re.match("r1 (is being trained by process|already contains a run)", errors[2 - winner])
    overrides = json.loads((tmp_path / "r1/results.json").read_text())["overrides"]
    assert f"seed={winner}" in overrides


# Run lookup


def test_latest_is_latest_usable_run(train, script, tmp_path, capfd):
    (good,) = train(*QUICK)
    train(*QUICK, "trainer.fast_dev_run=true")
    for verb, arguments in {"evaluate": [], "predict": ["4"], "export": ["--format", "pt2"], "resume": []}.items():
        for latest in ([], ["latest"]) if (ROOT / f"{verb}.py").exists() else ():
            capfd.readouterr()
            script(f"{verb}.py", *latest, *arguments)
            assert str(good.relative_to(tmp_path)) in "".join(capfd.readouterr())


def test_message_names_latest_run_without_usable_run(train, script):
    (run,) = train(*QUICK, "trainer.fast_dev_run=true")
    with pytest.raises(SystemExit, match=rf"has a checkpoint; the latest is .*{run.name}"):
        script("evaluate.py")


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """Return a function that creates a run in outputs or updates its log, one second after the previous call."""
    monkeypatch.chdir(tmp_path)
    # Small limits, so that a few runs exceed them.
    monkeypatch.setattr(run_lookup, "RECENT", 3)
    monkeypatch.setattr(run_lookup, "UNKNOWN", 2)
    clock = itertools.count(1)

    def make_run(name, is_noted=True):
        run = tmp_path / "outputs" / name
        for file in (".hydra/config.yaml", "checkpoints/last.ckpt", "train.log"):
            (run / file).parent.mkdir(parents=True, exist_ok=True)
            (run / file).touch()
        seconds = next(clock)
        os.utime(run / "train.log", (seconds, seconds))
        if is_noted:
            run_lookup.record_in_journal(run)
        return run

    return make_run


def refuse_long_search(monkeypatch):
    """Fail if a search inspects more than the latest runs in the journal."""
    walk = run_lookup._walk

    def walk_known(top, known):
        assert known, "all runs are inspected"
        return walk(top, known)

    monkeypatch.setattr(run_lookup, "_walk", walk_known)


def latest():
    return (
        run_lookup.find(["latest"], run_lookup.has_checkpoint)[0].relative_to(run_lookup.OUTPUTS.resolve()).as_posix()
    )


def test_latest_of_many_runs_is_found_by_journal(make_run, monkeypatch):
    for number in range(9):
        make_run(f"a/{number}", is_noted=False)
    assert latest() == "a/8"  # all runs are in the journal now
    refuse_long_search(monkeypatch)
    assert latest() == "a/8"
    make_run("b/new")
    assert latest() == "b/new"
    make_run("a/0")  # resumed
    assert latest() == "a/0"
    make_run("a/new", is_noted=False)  # killed, or from a version without a journal
    assert latest() == "a/new"
    shutil.rmtree("outputs/a/new")
    shutil.rmtree("outputs/a/0/checkpoints")
    assert latest() == "b/new"
    os.rename("outputs/b/new", "outputs/moved")
    assert latest() == "moved"
    shutil.copytree("outputs/a/5", "outputs/b/copy")
    os.utime("outputs/b/copy/train.log", (100, 100))
    assert latest() == "b/copy"


@pytest.mark.parametrize("noted", ["none", "all", "every other"])
def test_runs_are_ordered_by_log_time_not_journal(make_run, noted):
    names = [f"{folder}/{number}" for number in range(6) for folder in ("a", "b", "sweep/1", "a/0/within", ".")]
    for number, name in enumerate(names):
        make_run(name, is_noted=noted == "all" or (noted == "every other" and number % 2 == 0))
    for name in ("a/3", "b/1"):
        make_run(name)
    shutil.rmtree("outputs/b/5")
    order = [name.removeprefix("./") for name in (*names, "a/3", "b/1") if name != "b/5"]
    expected = list(dict.fromkeys(reversed(order)))
    for _ in range(2):  # without and with the journal that the first search writes
        found = [run.relative_to("outputs").as_posix() for run in run_lookup.latest_first()]
        assert found == expected


def test_wrong_journal_does_not_change_latest_run(make_run, tmp_path):
    outside = tmp_path / "outside"
    shutil.copytree(make_run("good"), outside)
    os.utime(outside / "train.log", (1000, 1000))
    (tmp_path / "outputs/link").symlink_to(outside)
    journal = tmp_path / "outputs/.runs"
    for text in ("", "gone\n", f"../outside\n{outside}\nlink\n", "\n\n/\n.\n..\n", "good", "\udcff\x00\n"):
        journal.write_bytes(os.fsencode(text))
        assert latest() == "good"


def test_latest_is_found_without_writable_journal(make_run, monkeypatch):
    for number in range(6):
        make_run(f"a/{number}", is_noted=False)
    (run_lookup.OUTPUTS / ".runs").mkdir()  # even root cannot write a file there
    for _ in range(2):
        assert latest() == "a/5"
    run_lookup.record_in_journal((run_lookup.OUTPUTS / "a/0").resolve())


def test_resumed_run_is_latest_and_in_journal(train, script, tmp_path, monkeypatch):
    (first,) = train(*QUICK)
    for _ in range(3):
        train(*QUICK)
    train(*QUICK, "hydra.run.dir=elsewhere")
    monkeypatch.setattr(run_lookup, "RECENT", 1)
    monkeypatch.setattr(run_lookup, "UNKNOWN", 0)
    script("resume.py", first, "trainer.max_epochs=40")
    refuse_long_search(monkeypatch)
    assert run_lookup.find([], run_lookup.has_checkpoint)[0] == first
    noted = (tmp_path / "outputs/.runs").read_text().splitlines()
    assert noted[-1] == first.relative_to(tmp_path / "outputs").as_posix()
    assert not any("elsewhere" in path for path in noted)


@pytest.mark.parametrize("verb", ["evaluate", "predict", "export"])
def test_command_prints_run_and_checkpoint(line, script, tmp_path, capfd, verb):
    capfd.readouterr()
    options = ["--format", "pt2"] if verb == "export" else []
    script(f"{verb}.py", *(["4"] if verb == "predict" else []), "--checkpoint", "last", *options)
    assert f"{line.relative_to(tmp_path)}, last.ckpt\n" in "".join(capfd.readouterr())


def test_mistyped_run_is_not_treated_as_input(train, script, tmp_path):
    train(*QUICK, "hydra.run.dir=outputs/a/good")
    shutil.copytree(tmp_path / "outputs/a/good", tmp_path / "good")
    shutil.copytree(tmp_path / "good", tmp_path / "headless")
    (tmp_path / "headless/.hydra/config.yaml").unlink()
    (tmp_path / "x.jpg").touch()
    for word, meant in {
        "outputs/a/god": "outputs/a/good",
        "outpts/a/good": "outputs/a/good",
        "latets": "latest",
        "god": "good",
        "outputs/a/x.v1": "",
        "outputs/a": "",
        "outputs": "",
        "headless": "",
    }.items():
        for verb in ("predict.py", "evaluate.py"):
            with pytest.raises(SystemExit, match=rf"^{re.escape(word)} is not a run folder") as exit_:
                script(verb, word, *(["x.jpg"] if verb == "predict.py" else []))
            assert not meant or f"Did you mean {meant}?" in exit_.value.code


def test_missing_input_is_not_treated_as_run(classifier, script, tmp_path):
    """A second, readable image is predicted."""
    from PIL import Image

    Image.new("L", (28, 28)).save(tmp_path / "there.png")
    with pytest.raises(SystemExit, match=r"^gone\.png: skipped"):
        script("predict.py", "gone.png", "there.png", "--output", "x.json")
    assert len(json.loads((tmp_path / "x.json").read_text())) == 1


def test_path_inside_run_names_run(line, train, script, tmp_path):
    train(*QUICK)
    for within, checkpoint in (("checkpoints/last.ckpt", "last"), ("checkpoints", "best")):
        for verb, words in (("predict.py", ["4"]), ("evaluate.py", [])):
            with pytest.raises(SystemExit) as exit_:
                script(verb, line / within, *words)
            run, option = re.search(r"Pass that: (.*) (--\S+)", str(exit_.value.code)).groups()
            assert option == f"--checkpoint={checkpoint}"
            script(verb, run, *words, option)


def test_report_of_run_names_valid_commands(train, script, capfd):
    for folder in ([], ["hydra.run.dir=r1"]):
        train(*QUICK, *folder)
        command = re.search(r"^predict +python (predict\.py .*) INPUT…$", capfd.readouterr().out, re.MULTILINE)[1]
        script(*command.split(), "4")
    train(*QUICK, "trainer.fast_dev_run=true")
    assert "checkpoints     none was saved" in capfd.readouterr().out
