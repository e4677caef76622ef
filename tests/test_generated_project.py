"""The generated project at work: its own tests, and every experiment with every optimizer."""

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
    """For a process of its own: that of the tests, without their settings."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("HYDRA", "PYTEST"))}
    # pyrefly looks for the packages of the python on PATH.
    ours["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), ours["PATH"]])
    return ours | {"OMP_NUM_THREADS": "1"}  # two tests at a time; more threads than cores wait for each other


def run(*command, cwd):
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


def write_digits(project):
    """The files that the project's own tests write into its data folder: MNIST's format, torchvision's loader."""
    code = (
        "import sys; sys.path.append('tests'); from pathlib import Path; from conftest import write_idx_pair;"
        "folder = Path('data/MNIST/raw'); folder.mkdir(parents=True);"
        "write_idx_pair(folder, 'train', 600, seed=0); write_idx_pair(folder, 't10k', 200, seed=1)"
    )
    run("-c", code, cwd=project)


@pytest.fixture
def awkward(bake, tmp_path):
    """A project with answers, and in a folder, that are hard to live with; a later test takes the defaults."""
    (tmp_path / "Ordner für 山田").mkdir()
    return bake(tmp_path / "Ordner für 山田", **AWKWARD)


SUITE = ["-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", "-p", "no:cacheprovider", "-rs"]


def test_its_own_tests_pass(awkward):
    printed = run(*SUITE, cwd=awkward)
    assert " passed" in printed
    assert "there is no" not in printed, "a test was skipped because a choice seems to be deleted"


def test_the_tests_of_torch_starter_pass_in_a_project_that_holds_something_else(awkward):
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
def test_its_slow_tests_pass(project):
    """Also what README.md says, what is drawn, and images of one's own."""
    for suite in ("tests", "torch_starter"):
        run("-m", "pytest", "-q", "-m", "slow", "-p", "no:cacheprovider", suite, cwd=project)


@pytest.mark.parametrize("experiment", ["linear_regression", "mnist"])
def test_a_fast_dev_run_of_every_optimizer(project, experiment):
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


def test_the_commands_of_agents_md_work(project):
    """All but `pytest`, which the first test of this module runs."""
    (block,) = re.findall(r"```sh\n(.*?)```", (project / "AGENTS.md").read_text(encoding="utf-8"), re.DOTALL)
    commands = [shlex.split(line) for line in block.splitlines()]
    assert ["pytest", "-x", "-q", "tests"] in commands
    for program, *arguments in commands:
        if program != "pytest":
            run(*([] if program == "python" else ["-m", program]), *arguments, cwd=project)


def test_agents_md_is_short(project):
    assert len((project / "AGENTS.md").read_text(encoding="utf-8").splitlines()) < 60


def test_train_py_is_read_on_one_screen(project):
    assert len((project / "train.py").read_text().splitlines()) <= 60
