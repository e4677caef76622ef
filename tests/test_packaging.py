"""Test the wheel of a generated project in an otherwise empty environment."""

import contextlib
import re
import subprocess
import sys
import zipfile

import pytest
import yaml
from hatchling.build import build_wheel

from test_generation import AWKWARD, files


@pytest.fixture
def wheel(bake, tmp_path):
    """A project and the path of its wheel."""
    project = bake(tmp_path / "a folder", **AWKWARD)
    with contextlib.chdir(project):
        return project, tmp_path / "wheels" / build_wheel(str(tmp_path / "wheels"))


def targets(node: object) -> set[str]:
    """Return all values of ``_target_`` in the content of a YAML file."""
    if isinstance(node, list):
        return set().union(*map(targets, node))
    if isinstance(node, dict):
        return set().union(*({value} if key == "_target_" else targets(value) for key, value in node.items()))
    return set()


def test_wheel_contains_packages_and_every_config_target(wheel):
    project, path = wheel
    names = set(zipfile.ZipFile(path).namelist())
    packages = {
        f"{package}/{name}"
        for package in ("best_net", "torch_starter")
        for name in files(project / package)
        if "__pycache__" not in name and not name.startswith("tests/") and not name.endswith(".md")
    }
    assert {name for name in names if ".dist-info/" not in name} == packages
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    named = set()
    for config in (project / "configs").rglob("*.yaml"):
        named |= targets(yaml.safe_load(config.read_text(encoding="utf-8")))
    named = {target for target in named if target.startswith(("best_net.", "torch_starter."))}
    assert len(named) > 15
    for target in named:
        module, _, name = target.rpartition(".")
        file = module.replace(".", "/") + ".py"
        assert file in names, target
        assert re.search(rf"^(class|def) {name}\b", (project / file).read_text(encoding="utf-8"), re.MULTILINE), target


def uv(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "uv", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_wheel_modules_import_in_empty_environment(wheel, tmp_path):
    _, path = wheel
    environment = tmp_path / "environment"
    uv("venv", "--python", sys.executable, environment)
    uv("pip", "install", "--python", environment, path)
    assert "compatible" in uv("pip", "check", "--python", environment)
    modules = [name.removesuffix(".py").replace("/", ".") for name in zipfile.ZipFile(path).namelist()]
    modules = [
        name for name in modules if name.startswith(("best_net.", "torch_starter.")) and not name.endswith("__init__")
    ]
    # The pages of demo.py need Gradio; `serving` imports them and reports if it is missing.
    modules = [name for name in modules if not re.match(r"torch_starter\.demo\.(?!serving)", name)]
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    code = f"import importlib; [importlib.import_module(name) for name in {modules}]"
    done = subprocess.run([python, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # No module needs an extra. scipy must not be installed: torchmetrics would spend a second importing it.
    installed = uv("pip", "list", "--python", environment)
    assert not re.search(r"^(scipy|onnx|optuna|gradio|pytest) ", installed, re.MULTILINE)
