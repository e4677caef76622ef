"""MLflow and Weights & Biases track one run per run folder, with its status, at the user's destination."""

import json
import multiprocessing
import os
import signal
import struct
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from project_for_tests import ROOT
from torch_starter.resolvers import run_group, run_label

QUICK = ["trainer.max_epochs=4", "trainer.log_every_n_steps=1", "optimizer.lr=0.1"]
GRID = ["-m", *QUICK[:2], "optimizer=sgd", "optimizer.lr=0.1,1e30", "hydra.sweep.dir=outputs/line/s"]
NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("folder", "label"),
    [
        ("/home/me/outputs/mnist/2026-12-01", "mnist/2026-12-01"),
        ("/outputs/mnist/outputs/mnist/2026-12-01/3", "mnist/2026-12-01/3"),
        ("/scratch/runs/one", "runs/one"),
    ],
)
def test_label_and_group_come_from_path(folder, label):
    assert run_label(folder) == label
    assert run_group(folder) == label.rpartition("/")[0]


@pytest.mark.parametrize(("logger", "package"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_missing_package_names_install_command(script, tmp_path, monkeypatch, logger, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match=rf'{package}, which is not installed: pip install -e "\.\[{package}\]"'):
        script("train.py", f"logger={logger}")
    assert not list(tmp_path.glob("outputs/*/*"))


@pytest.mark.slow
def test_invalid_ids_in_run_folder_are_refused(train, script):
    run = train(*QUICK)[0]
    for ids in ({"mlflow": "../x"}, {"mlflow": 3}, {"mlflow": "a" * 65}, ["a"], "a"):
        (run / "tracking.json").write_text(json.dumps(ids))
        with pytest.raises(SystemExit, match=r"tracking\.json has invalid ids"):
            script("resume.py", run, "trainer.max_epochs=5")
    (run / "tracking.json").unlink()
    (run / "wandb").mkdir()
    (run / "wandb/settings").write_text(f"[default]\nbase_url = {NOWHERE}\n")
    with pytest.raises(SystemExit, match=r"wandb.settings could send runs elsewhere"):
        script("resume.py", run, "trainer.max_epochs=5")


# MLflow


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of a file store, shared by all tests because creating a store takes seconds."""
    pytest.importorskip("mlflow", reason='mlflow is not installed: pip install -e ".[mlflow]"')
    from mlflow.tracking import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    client.create_experiment("small_task", (folder / "artifacts").as_uri())
    return client


@pytest.fixture
def tracked(client, train, monkeypatch):
    """Return a function that runs `python train.py logger=mlflow ARGUMENTS` and returns its run folders."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    return lambda *arguments: train("logger=[tensorboard,mlflow]", *QUICK, *arguments)


def id_of(folder):
    return json.loads((folder / "tracking.json").read_text())["mlflow"]


def run_of(client, folder):
    return client.get_run(id_of(folder))


def count(client):
    return len(client.search_runs([client.get_experiment_by_name("small_task").experiment_id]))


def steps(client, folder, name):
    return [point.step for point in client.get_metric_history(id_of(folder), name)]


def artifacts(client, folder, path=None):
    return [found.path for found in client.list_artifacts(id_of(folder), path)]


@pytest.mark.slow
def test_each_multirun_job_has_its_own_tracked_run(client, train, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    before = count(client)
    with pytest.raises(SystemExit, match="1 of 2 runs failed"):
        train(*GRID, "logger=mlflow")
    assert count(client) == before + 2
    good, bad = Path("outputs/line/s/0"), Path("outputs/line/s/1")
    assert [run_of(client, folder).info.status for folder in (good, bad)] == ["FINISHED", "FAILED"]
    run = run_of(client, good)
    assert run.info.run_name == "line/s/0"
    assert run.data.tags["group"] == "line/s"
    assert run.data.params["optimizer.lr"] == "0.1"
    assert run.data.params["optimizer"] == "SGD"
    metrics = json.loads((good / "results.json").read_text())["metrics"]
    assert run.data.metrics["test/loss"] == pytest.approx(metrics["test/loss"])
    assert steps(client, good, "val/loss") == [0, 1, 2, 3]
    assert "config.yaml" in artifacts(client, good)
    drawn = {path.name for path in (good / "figures").glob("*.png")}
    assert drawn
    assert {Path(path).name for path in artifacts(client, good, "figures")} == drawn
    assert artifacts(client, good, "images"), "one image per step in which the figure was drawn"


@pytest.mark.slow
def test_resumed_run_continues_its_tracked_run(client, tracked, script):
    (folder,) = tracked()
    before, config = count(client), (folder / ".hydra/config.yaml").read_text()
    assert "MLFLOW_TRACKING_URI" in config, "the name of the variable, because its value may contain a password"
    script("evaluate.py", folder)
    script("resume.py", folder)  # it is finished
    assert steps(client, folder, "val/loss") == [0, 1, 2, 3]
    script("resume.py", folder, "trainer.max_epochs=6")
    assert count(client) == before
    assert steps(client, folder, "val/loss") == [0, 1, 2, 3, 4, 5]
    run = run_of(client, folder)
    assert run.info.status == "FINISHED"
    assert run.data.tags["resumed.trainer.max_epochs"] == "6"
    (other,) = tracked(f"weights={folder}/checkpoints/last.ckpt")
    (third,) = tracked(f"ckpt_path={folder}/checkpoints/last.ckpt", "trainer.max_epochs=7")
    assert len({id_of(one) for one in (folder, other, third)}) == 3


@pytest.mark.slow
def test_each_trial_has_its_own_tracked_run(client, script, monkeypatch, tmp_path):
    pytest.importorskip("optuna", reason='optuna is not installed: pip install -e ".[sweep]"')
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    before = count(client)
    script("sweep.py", "linear_regression", "--trials", 2, "logger=mlflow", "trainer.max_epochs=2")
    assert count(client) == before + 2
    for number in range(2):
        run = run_of(client, tmp_path / f"outputs/sweeps/linear_regression/{number}")
        assert run.info.status == "FINISHED"
        assert run.data.tags["group"] == "sweeps/linear_regression"


@pytest.mark.slow
def test_fast_dev_run_and_refused_resume_track_nothing(client, tracked, script, tmp_path):
    before = count(client)
    tracked("trainer.fast_dev_run=true")
    assert count(client) == before
    assert not list(tmp_path.glob("outputs/*/*/tracking.json"))
    (folder,) = tracked()
    with pytest.raises(SystemExit, match="val/nothing"):
        script("resume.py", folder, "trainer.max_epochs=5", "callbacks.best_checkpoint.monitor=val/nothing")
    assert run_of(client, folder).info.status == "FINISHED"
    assert steps(client, folder, "val/loss") == [0, 1, 2, 3]


def test_unreachable_server_prints_one_message(tracked, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    with pytest.raises(SystemExit, match=r"mlflow: .*127\.0\.0\.1(.|\n)*logger\.mlflow=null") as exit_:
        tracked()
    assert len(exit_.value.code.splitlines()) == 2
    assert not list(tmp_path.glob("outputs/*/*"))


def train_in_child(arguments):
    import runpy

    sys.argv = ["train.py", *arguments]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.slow
def test_interrupted_run_is_killed_and_resumes(client, tracked, script, tmp_path):
    tracked()  # so that everything is imported before the fork
    interrupted = ["hydra.run.dir=outputs/line/interrupted", "+callbacks.stop._target_=test_tracking.Interrupts"]
    arguments = ["logger=mlflow", *QUICK, *interrupted]
    process = multiprocessing.get_context("fork").Process(target=train_in_child, args=(arguments,))
    process.start()
    process.join()
    assert process.exitcode == 128 + signal.SIGINT
    folder = tmp_path / "outputs/line/interrupted"
    assert run_of(client, folder).info.status == "KILLED"
    script("train.py", *arguments, "ckpt_path=last")
    assert run_of(client, folder).info.status == "FINISHED"
    assert sorted(set(steps(client, folder, "val/loss"))) == [0, 1, 2, 3]


class Interrupts(pytest.importorskip("lightning").Callback):
    """Sends SIGINT in the third epoch of the first start."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2 and trainer.ckpt_path is None:
            os.kill(os.getpid(), signal.SIGINT)


# Trust


def change(run, key, value):
    path = run / ".hydra/config.yaml"
    config = OmegaConf.create(yaml.safe_load(path.read_text()))
    OmegaConf.update(config, key, value, force_add=True)
    path.write_text(yaml.safe_dump(OmegaConf.to_container(config)))


ELSEWHERE = [
    ("tracking_uri", NOWHERE),
    ("tracking_uri", "${elsewhere}"),
    ("experiment_name", "other"),
    ("artifact_location", "/tmp/elsewhere"),
    ("run_id", "0" * 32),
    ("run_name", "${oc.env:HOME}"),
    ("tags.user", "${oc.env:HOME}"),
    ("tags.user", {"_target_": "shutil.copyfile", "src": "train.py", "dst": "copied"}),
    ("run_name", {"_target_": "shutil.copyfile", "src": "train.py", "dst": "copied"}),
    ("run_name", [{"_target_": "shutil.copyfile", "src": "train.py", "dst": "copied"}]),
]


def test_run_folder_cannot_choose_destination(client, tracked, script):
    (folder,) = tracked()
    before, config = count(client), (folder / ".hydra/config.yaml").read_text()
    for key, value in ELSEWHERE:
        (folder / ".hydra/config.yaml").write_text(config)
        change(folder, "elsewhere", NOWHERE)
        change(folder, f"logger.mlflow.{key}", value)
        with pytest.raises(SystemExit, match=rf"logger\.mlflow\.{key}(.|\n)*refused"):
            script("resume.py", folder, "trainer.max_epochs=5")
    (folder / ".hydra/config.yaml").write_text(config)
    change(folder, "logger.mlflow.tracking_uri", NOWHERE)
    script("evaluate.py", folder)
    script("resume.py", folder, "trainer.max_epochs=5", "logger.mlflow=null")
    assert count(client) == before
    assert steps(client, folder, "val/loss") == [0, 1, 2, 3]


@pytest.mark.slow
def test_overrides_in_run_folder_cannot_choose_destination(client, tracked, script):
    (folder,) = tracked("logger.mlflow.experiment_name=mine", "logger.mlflow.run_name=called so")
    assert run_of(client, folder).info.run_name == "called so"
    with pytest.raises(SystemExit, match=r"experiment_name of the run's config is mine, and small_task(.|\n)*type it"):
        script("resume.py", folder, "trainer.max_epochs=5")
    script("resume.py", folder, "trainer.max_epochs=5", "logger.mlflow.experiment_name=mine")
    assert steps(client, folder, "val/loss") == [0, 1, 2, 3, 4]


def test_tracker_outside_project_config_is_refused(train, script):
    (folder,) = train(*QUICK)
    mlflow = {"_target_": "lightning.pytorch.loggers.MLFlowLogger", "tracking_uri": NOWHERE}
    change(folder, "logger.mlflow", mlflow)
    with pytest.raises(SystemExit, match=r"MLFlowLogger(.|\n)*refused(.|\n)*logger\.mlflow=null"):
        script("resume.py", folder, "trainer.max_epochs=5")


# Weights & Biases


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """wandb with a temporary home folder without a login; its service process is stopped afterwards."""
    wandb = pytest.importorskip("wandb", reason='wandb is not installed: pip install -e ".[wandb]"')
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    yield wandb
    wandb.teardown()


def records(path):
    """Yield the protobuf records of a .wandb file: a LevelDB log after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield Record.FromString(parts)
            parts = b""


def read_wandb(folder):
    """Yield id, name, group, project, config, history and exit code for each start of a run."""
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        found = {"config": {}, "history": [], "exit": None, "files": path.parent / "files"}
        for record in records(path):
            if record.HasField("run"):
                run = record.run
                found |= {"id": run.run_id, "name": run.display_name, "group": run.run_group, "project": run.project}
            if record.HasField("config"):
                items = record.config.update
                found["config"] |= {
                    "/".join([item.key, *item.nested_key]).strip("/"): item.value_json for item in items
                }
            if record.HasField("history"):
                items = record.history.item
                names = ["/".join(item.nested_key) or item.key for item in items]
                found["history"].append(dict(zip(names, [json.loads(item.value_json) for item in items], strict=True)))
            if record.HasField("exit"):
                found["exit"] = record.exit.exit_code
        yield found


def curve(start, name):
    """Return the (step, value) pairs of a curve."""
    return [(row["trainer/global_step"], row[name]) for row in start["history"] if name in row]


def test_wandb_tracks_each_job_and_resumes_it(wandb, train, script, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(SystemExit, match="1 of 2 runs failed"):
        train(*GRID, "logger=wandb")
    assert wandb.run is None
    good, bad = (tmp_path / f"outputs/line/s/{number}" for number in range(2))
    script("resume.py", good, "trainer.max_epochs=6")
    wandb.teardown()  # wait until all records are written
    (first, resumed), (failed,) = read_wandb(good), read_wandb(bad)
    assert [first["exit"], resumed["exit"], failed["exit"]] == [0, 0, 1]
    assert first["id"] == resumed["id"] != failed["id"]
    assert (first["project"], first["name"], first["group"]) == ("small_task", "line/s/0", "line/s")
    assert first["config"]["optimizer.lr"] == "0.1"
    assert [step for step, _ in curve(first, "val/loss")] == [0, 1, 2, 3]
    assert [step for step, _ in curve(resumed, "val/loss")] == [4, 5]
    metrics = json.loads((good / "results.json").read_text())["metrics"]
    ((_, value),) = curve(resumed, "test/loss")
    assert value == pytest.approx(metrics["test/loss"])
    assert list(first["files"].glob("media/images/**/*.png"))
    assert "optimizer:" in (first["files"] / "hydra_config.yaml").read_text()
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]
    assert {path.name for path in tmp_path.iterdir()} <= {"outputs", "home"}


def test_wandb_without_login_prints_one_message(wandb, script, tmp_path):
    with pytest.raises(SystemExit, match=r"wandb is not logged in(.|\n)*wandb login(.|\n)*WANDB_MODE=offline"):
        script("train.py", "logger=wandb", *QUICK)
    assert not list(tmp_path.glob("outputs/*/*"))


@pytest.mark.slow
def test_wandb_without_network_prints_one_message(wandb, script, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", NOWHERE)
    with pytest.raises(SystemExit, match=r"wandb: (.|\n)*WANDB_MODE=offline") as exit_:
        script("train.py", "logger=wandb", "logger.wandb.settings.init_timeout=3", *QUICK)
    assert len(exit_.value.code.splitlines()) == 2
    assert not list(tmp_path.glob("outputs/*/*"))
