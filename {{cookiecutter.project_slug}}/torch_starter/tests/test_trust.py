"""Untrusted run folders cannot execute code, write or send data elsewhere, or control the terminal."""

import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from project_for_tests import PACKAGE, ROOT, environment
from torch_starter import trust

CANARY = {"_target_": "os.mkdir", "path": "canary"}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tmp_path_factory.mktemp("original") / "run"


@pytest.fixture
def run(original, train, tmp_path):
    """A copy of a run, which is trained once because training takes longer than most tests."""
    if not original.exists():
        shutil.copytree(train("trainer.max_epochs=3")[0], original)
    return shutil.copytree(original, tmp_path / "run")


def change(run, **changes):
    path = run / ".hydra/config.yaml"
    config = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        OmegaConf.update(config := OmegaConf.create(config), key.replace("__", "."), value, force_add=True)
        config = OmegaConf.to_container(config)
    path.write_text(yaml.safe_dump(config))


TARGETS = [
    "os.mkdir",
    "posix.mkdir",
    "pathlib.os.mkdir",
    "builtins.exec",
    "subprocess.run",
    "torch.os.mkdir",
    "torch.utils.collect_env.run",
    "torch.hub.load",
    "torch.load",
    "torch.nn.Module.apply",
    "torch.nn.modules.module.functools.partial",
    "torchvision.datasets.utils.os.mkdir",
    "lightning.pytorch.trainer.connectors.signal_connector.call",
    "lightning.pytorch.utilities.model_registry.os.mkdir",
    "lightning.pytorch.cli.LightningCLI",
    "lightning.pytorch.loggers.MLFlowLogger",
    "lightning.pytorch.loggers.WandbLogger",
    "lightning.pytorch.profilers.XLAProfiler",
    "lightning.pytorch.strategies.DeepSpeedStrategy",
    "torchmetrics.text.WordErrorRate",
    "torchmetrics.image.UniversalImageQualityIndex",
    "torch.utils.data.datapipes.iter.FileOpener",
    "torch_starter.data.images.fit",
    "torch_starter.data.download.download",
    "hydra.utils.instantiate",
    "hydra.utils.call",
    "hydra._internal.utils._locate",
    "antigravity.webbrowser.open",
    ["os.mkdir"],
]


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_disallowed_target_is_named_and_not_executed(run, script, tmp_path, target):
    place = OmegaConf.create(
        {"deep": [{"in": {"a": ["list", {"_target_": target, "path": "canary", "cmd": "mkdir canary"}]}}]}
    )
    change(run, callbacks__evil={"_target_": "lightning.pytorch.callbacks.Callback", "argument": place})
    for verb in ("evaluate.py", "resume.py", "export.py"):
        if not (ROOT / verb).exists():
            continue
        with pytest.raises(SystemExit) as exit_:
            script(verb, run)
        assert str(target) in exit_.value.code
        assert "refused" in exit_.value.code
    assert not (tmp_path / "canary").exists()


def test_interpolated_target_is_refused(run, script, tmp_path):
    change(run, name="os.mkdir", data={"_target_": "${name}", "path": "canary"})
    with pytest.raises(SystemExit, match=r"data\._target_ of the run's config is os\.mkdir"):
        script("evaluate.py", run)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "value", ["${canary:1}", "x ${ canary: 1 }", "${oc.env:HOME}", "${${name}:1}", "${a.${canary:1}}"]
)
def test_resolvers_are_not_called(run, script, value):
    called = []
    OmegaConf.register_new_resolver("canary", lambda *args: called.append(args) or 1, replace=True)
    try:
        change(run, name="canary", data__noise=value)
        for verb in ("evaluate.py", "resume.py"):
            with pytest.raises(SystemExit, match=r"data\.noise of the run's config is .*refused\. Set data\.noise="):
                script(verb, run)
        script("evaluate.py", run, "data.noise=1")
    finally:
        OmegaConf.clear_resolver("canary")
    assert not called


def test_hydra_settings_in_run_folder_are_ignored(run, script, tmp_path, monkeypatch):
    """Covers a defaults list, Hydra settings, a search path and a callback, in the config and in the overrides."""
    change(run, defaults=["/nothing"], hydra={"searchpath": ["pkg://antigravity"], "callbacks": {"evil": CANARY}})
    (tmp_path / "searched").mkdir()
    (tmp_path / "searched/__init__.py").write_text("open('canary', 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    paths = [f"{before}hydra.searchpath=[pkg://searched]" for before in ("", " ", "+", "++", "++ ")]
    overrides = ["trainer.max_epochs=3", *paths, "+callbacks.evil._target_=os.mkdir"]
    (run / ".hydra/overrides.yaml").write_text(yaml.safe_dump(overrides))
    (run / ".hydra/hydra.yaml").write_text("hydra:\n  job_logging:\n    '()': os.mkdir\n")
    with pytest.raises(SystemExit, match=r"callbacks\.evil\._target_ of the run's config is os\.mkdir"):
        script("resume.py", run)
    assert not (tmp_path / "canary").exists()


def test_yaml_that_constructs_objects_is_refused(run, script, tmp_path):
    (run / ".hydra/config.yaml").write_text("data: !!python/object/apply:os.mkdir [canary]\n")
    with pytest.raises(SystemExit, match="cannot be read"):
        script("evaluate.py", run)
    assert not (tmp_path / "canary").exists()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("canary",)


@pytest.mark.parametrize("place", ["instead", "weights", "callbacks", "old format"])
@pytest.mark.parametrize("verb", ["evaluate.py", "export.py", "resume.py", "predict.py"])
def test_checkpoint_with_pickle_is_refused(run, script, tmp_path, place, verb):
    for name in ("best", "last"):
        path = run / f"checkpoints/{name}.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        if place == "weights":
            checkpoint["state_dict"]["linear.weight"] = Evil()
        elif place == "callbacks":
            checkpoint["callbacks"]["evil"] = [Evil()]
        else:
            checkpoint = Evil()
        torch.save(checkpoint, path, _use_new_zipfile_serialization=place != "old format")
    arguments = {"predict.py": ["4"], "resume.py": ["trainer.max_epochs=4"]}.get(verb, [])
    with pytest.raises(SystemExit) as exit_:
        script(verb, run, *arguments)
    assert "mkdir" in exit_.value.code or place == "old format"
    assert not (tmp_path / "canary").exists()


def test_valid_folder_from_elsewhere_can_be_evaluated(run, script, tmp_path):
    shutil.move(run, tmp_path / "from a colleague")
    script("evaluate.py", tmp_path / "from a colleague")


def assert_refused(script, match, *arguments, verbs=("resume.py", "evaluate.py", "export.py", "predict.py")):
    """Check that each command prints a message of at most two lines and changes no file."""
    before = snapshot()
    for verb in verbs:
        if not (ROOT / verb).exists():
            continue
        with pytest.raises(SystemExit, match=match) as exit_:
            script(verb, *arguments, *(["4"] if verb == "predict.py" else []))
        assert "refused" in exit_.value.code
        assert len(exit_.value.code.splitlines()) <= 2
    assert snapshot() == before


def snapshot():
    """Return the contents of all files in the current folder, and the mode of all other entries."""
    found = {}
    for place, folders, files in os.walk("."):
        for path in (os.path.join(place, name) for name in (*folders, *files)):
            is_file = os.path.isfile(path) and not os.path.islink(path)
            found[path] = Path(path).read_bytes() if is_file else os.lstat(path).st_mode
    return found


IN_A_RUN = [
    "train.log",
    ".hydra",
    ".hydra/config.yaml",
    ".hydra/.config.yaml.unfinished",
    ".hydra/overrides.yaml",
    "checkpoints",
    "checkpoints/last.ckpt",
    "checkpoints/.last.ckpt.unfinished",
    "figures",
    "figures/.test_fitted_line.png.unfinished",
    "hparams.yaml",
    "environment.json",
    "results.json",
    ".lock",
    "error.txt",
    "csv",
    "anything/deep/down",
]


def replace_by_link(path, target):
    """Move ``path``, or an empty file, to ``target`` outside the run folder, and link to it."""
    target.parent.mkdir(exist_ok=True)
    if path.exists():
        shutil.move(path, target)
    else:
        target.write_text("")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets few people make links")
@pytest.mark.parametrize("name", IN_A_RUN)
def test_link_outside_run_folder_is_refused(run, script, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    replace_by_link(run / name, tmp_path / "elsewhere/it")
    # The folder itself may be a link, which is followed.
    (tmp_path / "link").symlink_to(run)
    assert (run / ".hydra/config.yaml").exists()
    for folder in (run, tmp_path / "link"):
        assert_refused(script, rf"{re.escape(name)} is a link to .*elsewhere/it, outside the run folder", folder)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets few people make links")
def test_resume_does_not_write_log_through_link(run, script, tmp_path):
    profile = tmp_path / "home/.bashrc"
    replace_by_link(run / "train.log", profile)
    profile.write_text("alias ll='ls -l'\n")
    with pytest.raises(SystemExit, match=r"train\.log is a link"):
        script("resume.py", run, "trainer.max_epochs=4")
    assert profile.read_text() == "alias ll='ls -l'\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets few people make links")
@pytest.mark.parametrize("name", ["train.log", ".hydra", "0/train.log", "checkpoints"])
@pytest.mark.parametrize("arguments", [["hydra.run.dir=run"], ["-m", "hydra.sweep.dir=run", "seed=1,2"]], ids=str)
def test_train_checks_links_before_hydra_writes(run, script, tmp_path, monkeypatch, arguments, name):
    monkeypatch.chdir(tmp_path)
    replace_by_link(run / name, tmp_path / "elsewhere/it")
    for more in ([], ["ckpt_path=last"]):
        assert_refused(script, "is a link to .*, outside the run folder", *arguments, *more, verbs=["train.py"])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets few people make links")
def test_study_folder_with_link_is_refused(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs/sweeps/linear_regression").mkdir(parents=True)
    replace_by_link(tmp_path / "outputs/sweeps/linear_regression/study.log", tmp_path / "elsewhere/it")
    assert_refused(script, r"study\.log is a link", "linear_regression", verbs=["sweep.py"])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_pipe_does_not_block_command(run, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (run / "train.log").unlink()
    os.mkfifo(run / "train.log")
    assert_refused(script, r"train\.log is neither a file nor a folder", run)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets few people make links")
def test_links_inside_run_folder_are_followed(run, script):
    (run / "checkpoints/epoch=2.ckpt").symlink_to("best.ckpt")
    (run / "latest").symlink_to(run / "checkpoints")
    script("evaluate.py", run)


OUTSIDE = {
    "callbacks.best_checkpoint.dirpath": [
        "/elsewhere",
        "elsewhere",
        "~/elsewhere",
        "run/../elsewhere",
        "C:\\elsewhere",
    ],
    "callbacks.best_checkpoint.filename": [
        "../../elsewhere",
        "/elsewhere",
        "a/../../elsewhere",
        "..\\elsewhere",
        "{epoch:c}{epoch:c}/x",
    ],
    "callbacks.run_description.config_path": ["/etc/passwd"],
    "callbacks.last_checkpoint.dirpath": ["${oc.env:HOME}", "$HOME"],
    "logger.tensorboard.save_dir": ["elsewhere"],
    "logger.tensorboard.name": ["../elsewhere", "/elsewhere"],
    "logger.tensorboard.version": ["../elsewhere"],
    "trainer.default_root_dir": ["elsewhere", "/elsewhere"],
    "trainer.profiler": [
        {"_target_": "lightning.pytorch.profilers.SimpleProfiler", "dirpath": "elsewhere", "filename": "x"},
        {"_target_": "lightning.pytorch.profilers.SimpleProfiler", "filename": "../elsewhere"},
    ],
    "trainer.model_registry": ["team/model"],
    "logger.csv": [{"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "https://elsewhere", "name": "x"}],
    "callbacks.other": [
        {"_target_": "lightning.pytorch.callbacks.OnExceptionCheckpoint", "dirpath": "elsewhere"},
        {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": ["elsewhere"]},
    ],
    "trainer.strategy": ["deepspeed", "deepspeed_stage_3"],
    "data.split_file": ["elsewhere", "/elsewhere"],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in OUTSIDE.items() for value in values], ids=str
)
def test_path_outside_run_folder_is_refused(run, script, tmp_path, monkeypatch, key, value):
    monkeypatch.chdir(tmp_path)
    change(run, **{key.replace(".", "__"): value})
    assert_refused(script, re.escape(key), run, verbs=["resume.py"])


@pytest.mark.parametrize("key", ["trainer.default_root_dir", "data.split_file"])
def test_all_commands_refuse_paths_outside_run_folder(run, script, tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    change(run, **{key.replace(".", "__"): "elsewhere"})
    assert_refused(script, re.escape(key), run)


def test_evaluate_ignores_replaced_callback(run, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profiler = {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": str(tmp_path / "elsewhere")}
    change(run, callbacks__known_batches=profiler)
    script("evaluate.py", run)
    assert not (tmp_path / "elsewhere").exists()


def test_initial_weights_outside_run_folder_are_refused(run, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change(run, weights=str(tmp_path / "elsewhere.ckpt"))
    script("resume.py", run)  # from its own checkpoint
    shutil.rmtree(run / "checkpoints")
    (run / "results.json").unlink()
    assert_refused(script, "weights of the run's config", run, verbs=["resume.py"])


def test_comparison_with_untrusted_config_executes_nothing(run, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change(run, model={"_target_": "os.mkdir", "path": "canary"})
    with pytest.raises(SystemExit) as exit_:
        script("train.py", "ckpt_path=run/checkpoints/last.ckpt", "model.in_features=2", "trainer.max_epochs=9")
    assert "does not fit the model" in exit_.value.code
    assert not list(tmp_path.rglob("canary"))


def test_typed_value_is_trusted(run, script, tmp_path):
    change(run, callbacks__best_checkpoint__dirpath=str(tmp_path / "elsewhere"))
    with pytest.raises(SystemExit, match=r"type it: callbacks\.best_checkpoint\.dirpath="):
        script("resume.py", run, "trainer.max_epochs=4")
    script("resume.py", run, "trainer.max_epochs=4", f"callbacks.best_checkpoint.dirpath={run}/checkpoints")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("is_resumable", [True, False])
def test_checkpoint_cannot_delete_files_elsewhere(run, script, tmp_path, is_resumable):
    """ModelCheckpoint deletes the file that its state names as the previous best, once there is a better one."""
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    folder = str(run / "checkpoints")
    (state,) = (state for key, state in last["callbacks"].items() if "'monitor': 'val/loss'" in key)
    path = f"{folder}/../../victim.txt"
    state |= {"dirpath": folder, "best_model_path": path, "kth_best_model_path": path, "kth_value": torch.tensor(1e9)}
    state["best_k_models"] = {path: torch.tensor(1e9)}
    torch.save(last, run / "checkpoints/last.ckpt")
    if not is_resumable:
        change(run, callbacks__resumable=None)
    with pytest.raises(SystemExit, match=r"victim\.txt, outside its folder"):
        script("resume.py", run, "trainer.max_epochs=6")
    assert victim.read_text() == "precious"


def test_remote_logger_is_refused_and_can_be_disabled(run, script):
    mlflow = {"_target_": "lightning.pytorch.loggers.MLFlowLogger", "tracking_uri": "http://127.0.0.1:9"}
    change(run, logger__mlflow=mlflow)
    with pytest.raises(SystemExit, match=r"MLFlowLogger(.|\n)*refused(.|\n)*logger\.mlflow=null"):
        script("resume.py", run, "trainer.max_epochs=4")
    script("evaluate.py", run)  # needs no logger
    script("resume.py", run, "trainer.max_epochs=4", "logger.mlflow=null")


ESCAPES = ["\x1b]0;title\x07", "\x9b31m", "a\rb", "\x7f", "\x00"]


@pytest.mark.parametrize("escape", ESCAPES, ids=ascii)
@pytest.mark.parametrize("place", ["value", "key", "list", "overrides"])
def test_config_with_terminal_escapes_is_refused_and_escaped(run, script, escape, place):
    if place == "overrides":
        (run / ".hydra/overrides.yaml").write_text(yaml.safe_dump([f"+name={escape}"]))
    else:
        change(run, name={"value": escape, "key": {escape: 1}, "list": [[escape]]}[place])
    with pytest.raises(SystemExit, match="control character") as exit_:
        script("evaluate.py", run)
    assert trust.printable(exit_.value.code) == exit_.value.code


@pytest.mark.slow
def test_terminal_escapes_in_messages_are_escaped(run, script, tmp_path):
    """Covers names of weights in a checkpoint, which torch prints verbatim, and a message of this package."""
    checkpoint = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    checkpoint["state_dict"]["\x1b[2Jlinear"] = torch.zeros(1)
    torch.save(checkpoint, run / "checkpoints/best.ckpt")
    command = [sys.executable, str(ROOT / "evaluate.py"), str(run)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert r"\x1b[2Jlinear" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    with pytest.raises(SystemExit) as exit_:
        script("evaluate.py", run, "data.\x1b[2Jslope=3")
    assert "\x1b" not in exit_.value.code


def test_terminal_escapes_do_not_reach_table_or_log(train, tmp_path, capfd):
    with pytest.raises(SystemExit):
        train("-m", "data.batch_size=0,100", "trainer.max_epochs=1", "+callbacks.escape._target_=test_trust.LogEscape")
    printed = capfd.readouterr()
    assert r"\x1b[2J" in printed.out
    assert "\x1b[2J" not in printed.out + printed.err
    for log in tmp_path.glob("outputs/*/*/*/train.log"):
        assert "\x1b[2J" not in log.read_text()


class LogEscape(import_module("lightning").Callback):
    """Logs a terminal escape, which a class name from a folder could contain."""

    def on_train_end(self, trainer, pl_module):
        import_module("logging").getLogger(__name__).info("class \x1b[2J")


def allowed_classes():
    """Yield the classes of Lightning that a run folder may use."""
    for name in trust.CLASSES_OF:
        if not name.startswith("lightning."):
            continue
        module = import_module(name)
        modules = [module]
        for found in pkgutil.walk_packages(getattr(module, "__path__", []), f"{name}."):
            modules.append(import_module(found.name))
        for module in modules:
            for _, class_ in inspect.getmembers(module, inspect.isclass):
                if class_.__module__ == module.__name__:
                    yield class_


def test_lightning_path_arguments_are_known():
    """Detects new arguments of Lightning; if one is a path, PATHS in trust.py must match it."""
    words = "dir|dirpath|path|file|filename|folder|root|url|uri|host|port|address|command|entity|endpoint|bucket"
    suspicious = re.compile(rf"(^|_)({words}|model_registry)s?(_|$)")
    harmless = {"filename", "model_registry"}  # joined to dirpath; refused by name

    def arguments_of(class_):
        try:
            return inspect.signature(class_).parameters
        except ValueError:  # a subclass of dict
            return ()

    classes = list(allowed_classes())
    assert len(classes) > 30
    unknown = {
        f"{class_.__name__}.{name}"
        for class_ in classes
        for name in arguments_of(class_)
        if suspicious.search(name) and not trust.PATHS.fullmatch(name) and name not in harmless
    }
    assert unknown == set()


def test_page_lists_all_allowed_modules():
    page = (ROOT / "torch_starter/untrusted_run_folders.md").read_text(encoding="utf-8")
    for name in trust.ALLOWED:
        assert f"`{name.replace(PACKAGE, 'PACKAGE')}`" in page, name
