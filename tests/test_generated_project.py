"""Run a generated project: its own tests, and two experiments with five optimizers."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path, PureWindowsPath

import pytest

from test_generation import AWKWARD, is_legal_on_windows


def environment():
    """Return the environment of this process without its Hydra and pytest variables, for a subprocess."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("HYDRA", "PYTEST"))}
    # pyrefly looks for the packages of the python on PATH.
    ours["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), ours["PATH"]])
    return ours | {"OMP_NUM_THREADS": "1"}  # two tests run at a time; more threads than cores would block each other


def run(*command, cwd):
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


def write_digits(project):
    """Write small files in MNIST's format into the project's data folder, with a helper of the project's own tests."""
    code = (
        "import sys; sys.path.append('tests'); from pathlib import Path; from conftest import write_idx_pair;"
        "folder = Path('data/MNIST/raw'); folder.mkdir(parents=True);"
        "write_idx_pair(folder, 'train', 600, seed=0); write_idx_pair(folder, 't10k', 200, seed=1)"
    )
    run("-c", code, cwd=project)


@pytest.fixture
def awkward(bake, tmp_path):
    """A project with difficult answers in a folder with spaces and non-ASCII characters."""
    (tmp_path / "Ordner für 山田").mkdir()
    return bake(tmp_path / "Ordner für 山田", **AWKWARD)


SUITE = ["-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", "-p", "no:cacheprovider", "-rs"]


def test_project_tests_pass(awkward):
    printed = run(*SUITE, cwd=awkward)
    assert " passed" in printed
    skipped = re.search("there is no|does not exist", printed)
    assert not skipped, "a test was skipped because a part of the project seems to be deleted"


def test_torch_starter_tests_pass_in_unrelated_project(awkward):
    for folder in ("best_net", "configs", "tests", "tutorials"):
        shutil.rmtree(awkward / folder)
    for name, text in {
        "other/__init__.py": "",
        "other/model.py": "from torch_starter.optimization import optimizer_and_scheduler\n",
        "configs/train.yaml": "model:\n  _target_: other.model.Model\n",
        "tests/test_other.py": "def test_other():\n    pass\n",
    }.items():
        (awkward / name).parent.mkdir(exist_ok=True)
        (awkward / name).write_text(text, encoding="utf-8")
    assert " passed" in run(*SUITE, "torch_starter", cwd=awkward)


@pytest.mark.slow
def test_slow_project_tests_pass(project):
    """Include the tests of README.md, of figures and of the user's own images."""
    for suite in ("tests", "torch_starter"):
        run("-m", "pytest", "-q", "-m", "slow", "-p", "no:cacheprovider", suite, cwd=project)


@pytest.mark.parametrize("experiment", ["linear_regression", "mnist"])
def test_fast_dev_run_works_with_every_optimizer(project, experiment):
    data = []
    if experiment == "mnist":
        write_digits(project)
        data = ["data.num_val=100"]
    optimizers = ["sgd", "adam", "adamw", "rmsprop", "adagrad"]
    overrides = [f"experiment={experiment}", f"optimizer={','.join(optimizers)}", "trainer.fast_dev_run=true", *data]
    table = run("train.py", "-m", *overrides, cwd=project).rpartition("overrides")[2]
    for optimizer in optimizers:
        assert f"optimizer={optimizer}" in table
    results = list(project.glob(f"outputs/{experiment}/*/*/results.json"))
    assert len(results) == len(optimizers)
    assert {json.loads(path.read_text())["steps"] for path in results} == {1}
    for path in (project / "outputs").rglob("*"):
        assert is_legal_on_windows(PureWindowsPath(path.relative_to(project))), path


def test_commands_in_agents_md_work(project):
    """Run all commands except `pytest`, which test_project_tests_pass runs."""
    (block,) = re.findall(r"```sh\n(.*?)```", (project / "AGENTS.md").read_text(encoding="utf-8"), re.DOTALL)
    commands = [shlex.split(line) for line in block.splitlines()]
    assert ["pytest", "-x", "-q", "tests"] in commands
    for program, *arguments in commands:
        if program != "pytest":
            run(*([] if program == "python" else ["-m", program]), *arguments, cwd=project)


def test_agents_md_is_short(project):
    assert len((project / "AGENTS.md").read_text(encoding="utf-8").splitlines()) < 60


def test_train_py_has_at_most_60_lines(project):
    assert len((project / "train.py").read_text().splitlines()) <= 60
