"""Test the workflows of the template and of a generated project without GitHub."""

import re
import shutil
import subprocess
import sysconfig

import pytest
import yaml

from conftest import TEMPLATE
from test_generation import QUESTIONS

OURS = TEMPLATE / ".github/workflows/ci.yml"
GENERATED = TEMPLATE / "{{cookiecutter.project_slug}}/.github/workflows/ci.yml"
CONTRIBUTING = (TEMPLATE / "CONTRIBUTING.md").read_text(encoding="utf-8")
COMMANDS = CONTRIBUTING.partition("## Without make")[2].partition("```sh\n")[2].partition("```")[0].splitlines()


def steps(job: dict) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_ci_runs_contributing_commands_on_every_system():
    jobs = yaml.safe_load(OURS.read_text(encoding="utf-8"))["jobs"]
    assert steps(jobs["newest"]) == COMMANDS
    assert set(steps(jobs["lowest"])) < set(COMMANDS)
    matrix = jobs["newest"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    assert matrix["python"] == QUESTIONS["minimum_python"]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_runs_contributing_commands():
    dry = ["make", "--dry-run", "--always-make", "lint", "test"]
    printed = subprocess.run(dry, cwd=TEMPLATE, capture_output=True, text=True, check=True).stdout
    printed = re.sub(r"\.tools/bin/|--quiet |--allow-existing ", "", printed).replace("'", '"')
    made = [line for line in printed.splitlines() if line.startswith(("uv ", "uvx ", "python -m pip"))]
    assert made == COMMANDS


@pytest.mark.parametrize("path", [OURS, GENERATED], ids=["ours", "generated"])
def test_actions_are_pinned_and_use_no_secrets(path):
    text = path.read_text(encoding="utf-8")
    used = re.findall(r"uses: (\S+)", text)
    assert used
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", action) for action in used)
    assert "secrets." not in text
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {}
    assert all(job["permissions"] == {"contents": "read"} for job in workflow["jobs"].values())


@pytest.mark.parametrize("path", [OURS, GENERATED], ids=["ours", "generated"])
def test_zizmor_finds_nothing(path, tmp_path):
    # zizmor expects the layout of a repository.
    (tmp_path / ".github/workflows").mkdir(parents=True)
    shutil.copy(path, tmp_path / ".github/workflows")
    zizmor = shutil.which("zizmor", path=sysconfig.get_path("scripts"))
    assert zizmor
    done = subprocess.run(
        [zizmor, "--offline", "--no-progress", "."], cwd=tmp_path, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_generated_ci_runs_generated_readme_commands():
    job = yaml.safe_load(GENERATED.read_text(encoding="utf-8"))["jobs"]["test"]
    readme = (TEMPLATE / "{{cookiecutter.project_slug}}/README.md").read_text(encoding="utf-8")
    block = readme.rpartition("## Test\n")[2].partition("```sh\n")[2].partition("```")[0]
    promised = {line.partition("#")[0].strip() for line in block.splitlines()} - {"pre-commit install"}
    run = {step.removeprefix("uv run --no-sync ").removesuffix(" -n 2") for step in steps(job) if "uv run" in step}
    assert run == promised
