"""Hydra 1.3 and 1.4 alike, and Python 3.14."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

import compat

ROOT = Path(__file__).parents[1]


def test_a_start_prints_no_deprecation_warning(tmp_path):
    command = [sys.executable, "-W", "always::DeprecationWarning:hydra", str(ROOT / "train.py"), "trainer.max_epochs=1"]
    run = subprocess.run([*command, "hydra.run.dir=run"], cwd=tmp_path, capture_output=True, encoding="utf-8")
    resumed = [sys.executable, str(ROOT / "resume.py"), "run", "trainer.max_epochs=2"]
    resume = subprocess.run(resumed, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert run.returncode == resume.returncode == 0, run.stderr + resume.stderr
    for word in ("version_base", "whitelist", "already registered", "badly formed help"):
        assert word not in run.stderr + resume.stderr


def test_argparse_checks_help_texts_again_once_hydra_has_its_parser():
    if not hasattr(argparse._ActionsContainer, "_check_help"):
        pytest.skip("Python before 3.14 checks no help texts")
    parser = sys.modules["hydra.main"].get_args_parser()
    assert parser.parse_args(["seed=1"]).overrides == ["seed=1"]
    with pytest.raises(ValueError, match="badly formed help"):
        argparse.ArgumentParser().add_argument("--mine", help="%(missing)s")


@pytest.mark.skipif(compat.IS_HYDRA_1_3, reason="Hydra 1.3 has no whitelist")
def test_a_run_folder_instantiates_only_what_its_checked_config_names():
    checked = OmegaConf.create({"optimizer": {"_target_": "torch.optim.SGD", "_partial_": True}})
    added = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}
    with compat.instantiate_only_targets_of(checked):
        assert instantiate(checked.optimizer)
        with pytest.raises(InstantiationException, match="whitelist"):
            instantiate(added)
    assert instantiate(added)


def test_what_you_compose_may_use_any_class():
    assert instantiate({"_target_": "collections.Counter"}) == {}
