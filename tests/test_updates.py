"""Test replaying, overwriting, updating and cloning a generated project."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import TEMPLATE, commit
from test_generation import AWKWARD, files


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """Use an empty home folder, so that the settings of cookiecutter and git are neither read nor changed."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    (tmp_path / "home").mkdir()


def run(*command, cwd: Path, status: int = 0) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, encoding="utf-8")
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def git(*arguments, cwd: Path) -> str:
    return run("git", *arguments, cwd=cwd)


def cookiecutter(*arguments, cwd: Path) -> None:
    run(sys.executable, "-m", "cookiecutter", *arguments, cwd=cwd)


def cruft(*arguments, cwd: Path, status: int = 0) -> str:
    return run(sys.executable, "-m", "cruft", *arguments, cwd=cwd, status=status)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in files(folder).items() if not name.startswith(".git/")}


@pytest.fixture
def template(tmp_path) -> Path:
    """A copy of this template in a separate repository."""
    unwanted = shutil.ignore_patterns(".git", ".venv", ".tools", "build", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(TEMPLATE, tmp_path / "template", ignore=unwanted)
    commit(tmp_path / "template", "Template")
    return tmp_path / "template"


def change(folder: Path, path: str, old: str, new: str) -> None:
    """Replace a string that must be in a file."""
    text = (folder / path).read_text(encoding="utf-8")
    assert old in text
    (folder / path).write_text(text.replace(old, new), encoding="utf-8")


def test_replay_generates_identical_project(tmp_path):
    answers = [f"{name}={value}" for name, value in AWKWARD.items()]
    cookiecutter(TEMPLATE, "--no-input", *answers, "--output-dir", "first", cwd=tmp_path)
    cookiecutter(TEMPLATE, "--replay", "--output-dir", "second", cwd=tmp_path)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_overwriting_restores_template_files_and_keeps_user_files(bake, tmp_path):
    project = bake(tmp_path / "here")
    before = contents(project)
    (project / "train.py").write_text("broken")
    (project / "mine.py").write_text("mine")
    cookiecutter(TEMPLATE, "--no-input", "-f", "--output-dir", tmp_path / "here", cwd=tmp_path)
    assert contents(project) == before | {"mine.py": b"mine"}


@pytest.fixture
def mine(template, tmp_path) -> Path:
    """A project that cruft created from the template, with a user's own network, config and setting."""
    context = json.dumps(AWKWARD)
    cruft("create", template, "--no-input", "--extra-context", context, cwd=tmp_path)
    project = tmp_path / "best_net"
    commit(project, "Generated")
    (project / "best_net/models/mine.py").write_text("from torch import nn\n", encoding="utf-8")
    (project / "configs/model/mine.yaml").write_text("_target_: best_net.models.mine.Mine\n", encoding="utf-8")
    change(project, "configs/train.yaml", "seed: 42", "seed: 7")
    commit(project, "Mine")
    return project


def test_update_merges_template_changes_and_keeps_user_changes(template, mine):
    assert "up to date" in cruft("check", cwd=mine)
    before = contents(mine)
    folder = "{{cookiecutter.project_slug}}"
    change(template, f"{folder}/configs/train.yaml", "# Run or checkpoint that", "# New: run or checkpoint that")
    change(template, f"{folder}/{folder}/models/mlp.py", '"""', '"""New. ')
    (template / folder / "configs/optimizer/new.yaml").write_text("_target_: torch.optim.NAdam\n", encoding="utf-8")
    (template / folder / "configs/optimizer/adagrad.yaml").unlink()
    figures = template / folder / "tutorials/figures"
    (figures / "loop.png").write_bytes((figures / "digits.png").read_bytes())
    commit(template, "Improvements")

    cruft("check", cwd=mine, status=1)
    cruft("update", "--skip-apply-ask", cwd=mine)
    after = contents(mine)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    mlp, train, figure = "best_net/models/mlp.py", "configs/train.yaml", "tutorials/figures/loop.png"
    optimizers = {"configs/optimizer/new.yaml", "configs/optimizer/adagrad.yaml"}
    assert changed == {train, mlp, figure, *optimizers, ".cruft.json"}
    assert after[figure] == before["tutorials/figures/digits.png"]
    assert b"New. " in after[mlp]
    assert b"seed: 7" in after[train]
    assert b"# New: run or checkpoint" in after[train]
    assert "configs/optimizer/adagrad.yaml" not in after
    assert not [name for name in after if name.endswith((".rej", ".orig"))]
    assert "up to date" in cruft("check", cwd=mine)


# The last commit without `torch_starter/`.
BEFORE_THE_SEAM = "25ac9d0ca6709f7631bb295ad5d48b6a603a85cb"

# A data module as README.md described it then.
MODULE = """
from lightning import LightningDataModule

from .batches import BatchLoader, TensorBatches
from .linear import LinearDataModule


class Mine(LinearDataModule):
    pass
"""


@pytest.mark.slow
def test_update_from_before_the_seam_keeps_runs_working(tmp_path):
    known = subprocess.run(["git", "cat-file", "-e", BEFORE_THE_SEAM], cwd=TEMPLATE, capture_output=True)
    if known.returncode != 0:
        pytest.skip("needs the history of the repository: git fetch --unshallow")
    template = tmp_path / "template"
    git("clone", "-q", "--no-checkout", TEMPLATE, template, cwd=tmp_path)
    git("checkout", "-q", "-B", "main", BEFORE_THE_SEAM, cwd=template)
    cruft("create", template, "--no-input", "--extra-context", json.dumps(AWKWARD), cwd=tmp_path)
    project = tmp_path / "best_net"
    commit(project, "Generated")
    (project / "best_net/data/mine.py").write_text(MODULE, encoding="utf-8")
    text = (project / "configs/data/linear.yaml").read_text(encoding="utf-8")
    text = text.replace("best_net.data.linear.LinearDataModule", "best_net.data.mine.Mine")
    (project / "configs/data/mine.yaml").write_text(text, encoding="utf-8")
    change(project, "configs/train.yaml", "seed: 42", "seed: 7")
    commit(project, "Mine")
    quick = ["trainer.max_epochs=20", "callbacks.regression_figures.times=1"]
    run(sys.executable, "train.py", *quick, "data=mine", "hydra.run.dir=outputs/old", cwd=project)
    before = run(sys.executable, "evaluate.py", "outputs/old", "--json", cwd=project)

    shutil.rmtree(template / "{{cookiecutter.project_slug}}")
    unwanted = shutil.ignore_patterns(".git", ".venv", ".tools", "build", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(TEMPLATE, template, ignore=unwanted, dirs_exist_ok=True)
    commit(template, "The seam")
    cruft("update", "--skip-apply-ask", cwd=project)
    assert not list(project.rglob("*.rej"))
    assert not (project / "runs.py").exists()
    assert (project / "torch_starter/run_folder.py").exists()
    text = (project / "configs/train.yaml").read_text(encoding="utf-8")
    assert "seed: 7" in text
    assert "torch_starter.multirun.Multirun" in text
    # The change to the user's own files that CHANGELOG.md describes.
    change(project, "best_net/data/mine.py", "from .batches", "from torch_starter.data.batches")
    run(sys.executable, "train.py", *quick, "data=mine", "hydra.run.dir=outputs/new", cwd=project)
    assert run(sys.executable, "evaluate.py", "outputs/old", "--json", cwd=project) == before
    run(sys.executable, "resume.py", "outputs/old", "trainer.max_epochs=30", cwd=project)
    assert json.loads((project / "outputs/old/results.json").read_text())["epochs"] == 30
    weights = [
        torch.load(project / "outputs" / name / "checkpoints/best.ckpt", weights_only=True) for name in ("old", "new")
    ]
    assert weights[0]["state_dict"].keys() == weights[1]["state_dict"].keys()


def test_update_does_not_restore_declined_tutorials(template, tmp_path):
    cruft("create", template, "--no-input", "--extra-context", '{"tutorials": "no"}', cwd=tmp_path)
    project = tmp_path / "my_project"
    commit(project, "Generated")
    change(template, "{{cookiecutter.project_slug}}/tutorials/1_tensors.py", "# # 1. ", "# # New 1. ")
    change(template, "{{cookiecutter.project_slug}}/configs/train.yaml", "seed: 42", "seed: 43")
    commit(template, "Improvements")
    before = contents(project)
    cruft("update", "--skip-apply-ask", cwd=project)
    after = contents(project)
    assert before.keys() == after.keys()
    assert not [name for name in after if "tutorials" in name]
    assert b"seed: 43" in after["configs/train.yaml"]


def test_update_marks_conflicting_lines(template, mine):
    change(template, "{{cookiecutter.project_slug}}/configs/train.yaml", "seed: 42", "seed: 43")
    commit(template, "Another seed")
    cruft("update", "--skip-apply-ask", cwd=mine)
    text = (mine / "configs/train.yaml").read_text(encoding="utf-8")
    marked = (mine / "configs/train.yaml.rej").exists() or "<<<<<<<" in text
    assert marked
    assert "seed: 7" in text


def test_update_renders_answers_exactly_once(template, mine):
    before = contents(mine)
    change(template, "{{cookiecutter.project_slug}}/README.md", "## Install\n", "## Install it\n")
    commit(template, "A heading")
    cruft("update", "--skip-apply-ask", cwd=mine)
    after = contents(mine)
    assert after["README.md"] == before["README.md"].replace(b"## Install\n", b"## Install it\n")
    assert after["pyproject.toml"] == before["pyproject.toml"]
    assert after["LICENSE"] == before["LICENSE"]


def test_clone_on_windows_has_no_carriage_returns(template, bake, tmp_path):
    """Check a clone of the template, whose files cookiecutter renders as they are, and a clone of a project."""
    windows = ["-c", "core.autocrlf=true", "-c", "core.eol=crlf"]
    git(*windows, "clone", "-q", template, "on_windows", cwd=tmp_path)
    assert not [name for name, content in text_files(tmp_path / "on_windows") if b"\r" in content]
    cookiecutter(tmp_path / "on_windows", "--no-input", cwd=tmp_path)
    commit(tmp_path / "my_project", "Generated")
    git(*windows, "clone", "-q", tmp_path / "my_project", "again", cwd=tmp_path)
    assert not [name for name, content in text_files(tmp_path / "again") if b"\r" in content]
    assert contents(tmp_path / "again") == contents(tmp_path / "my_project")


def text_files(folder: Path) -> list[tuple[str, bytes]]:
    return [(name, content) for name, content in contents(folder).items() if not name.endswith((".png", ".gif"))]
