"""A run folder from somebody else cannot run code."""

import os
import shutil

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from conftest import ROOT

CANARY = {"_target_": "os.mkdir", "path": "canary"}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tmp_path_factory.mktemp("original") / "run"


@pytest.fixture
def run(original, train, tmp_path):
    """A copy for each test of a run that is trained once, which takes longer than most tests."""
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
    "hydra.utils.instantiate",
    "hydra.utils.call",
    "hydra._internal.utils._locate",
    "antigravity.webbrowser.open",
    ["os.mkdir"],
]


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_target_that_is_not_allowed_is_named_and_nothing_is_run(run, script, tmp_path, target):
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


def test_a_target_by_interpolation_is_found(run, script, tmp_path):
    change(run, name="os.mkdir", data={"_target_": "${name}", "path": "canary"})
    with pytest.raises(SystemExit, match=r"data\._target_ of the run's config is os\.mkdir"):
        script("evaluate.py", run)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "value", ["${canary:1}", "x ${ canary: 1 }", "${oc.env:HOME}", "${${name}:1}", "${a.${canary:1}}"]
)
def test_resolvers_run_nothing(run, script, value):
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


def test_what_hydra_would_act_on_is_not_acted_on(run, script, tmp_path, monkeypatch):
    """A defaults list, Hydra's own settings, a search path and a callback, in the config and in the overrides."""
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


def test_yaml_that_makes_objects_is_not_read(run, script, tmp_path):
    (run / ".hydra/config.yaml").write_text("data: !!python/object/apply:os.mkdir [canary]\n")
    with pytest.raises(SystemExit, match="cannot be read"):
        script("evaluate.py", run)
    assert not (tmp_path / "canary").exists()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("canary",)


@pytest.mark.parametrize("place", ["instead", "weights", "callbacks", "old format"])
@pytest.mark.parametrize("verb", ["evaluate.py", "export.py", "resume.py", "predict.py"])
def test_a_checkpoint_with_a_pickle_in_it_is_refused(run, script, tmp_path, place, verb):
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


def test_an_honest_folder_from_elsewhere_works(run, script, tmp_path):
    shutil.move(run, tmp_path / "from a friend")
    script("evaluate.py", tmp_path / "from a friend")
