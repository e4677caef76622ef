import multiprocessing
import os
import runpy
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from project_for_tests import (  # first: it chooses which torch_starter is tested
    COMMANDS,
    PACKAGE,
    ROOT,
    write_idx_pair,
    write_images,
)

import torch_starter  # isort: skip
from torch_starter import environment  # isort: skip

assert Path(torch_starter.__file__).is_relative_to(ROOT)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small tensors do not gain from more, and so no result depends on how many cores a machine has."""
    torch.set_num_threads(1)


@pytest.fixture
def script(tmp_path, monkeypatch):
    """`python SCRIPT ARGUMENTS` in a folder of its own, in this process."""

    def script(name: str, *arguments: object) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / name), run_name="__main__")

    return script


@pytest.fixture
def train(tmp_path, script):
    """`python train.py ARGUMENTS` in a folder of its own; returns the run folders that it made, sorted."""

    def train(*arguments: str) -> list[Path]:
        before = set(tmp_path.glob("outputs/**/.hydra"))
        script("train.py", *arguments)
        return sorted(folder.parent for folder in set(tmp_path.glob("outputs/**/.hydra")) - before)

    return train


@pytest.fixture
def own_project(tmp_path, monkeypatch):
    """A copy of the project, the current folder, to add files to; returns `python SCRIPT ARGUMENTS` in it.

    Its scripts run in this process, as if that were new: nothing of a project is imported yet.
    """
    shutil.copytree(ROOT, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    tops = (PACKAGE, "torch_starter", *COMMANDS)
    for module in list(sys.modules):
        if module.partition(".")[0] in tops:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(name: str, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(name, run_name="__main__")

    yield run
    # Of the copy nothing stays; monkeypatch brings back what was imported before.
    for module in list(sys.modules):
        if module.partition(".")[0] in tops:
            del sys.modules[module]


@pytest.fixture
def line(train):
    """A run of linear regression."""
    return train("trainer.max_epochs=60", "optimizer.lr=0.1")[0]


@pytest.fixture
def classifier(train, digits):
    """A run on small digits."""
    small = ["data.num_val=100", "data.batch_size=50", "trainer.max_epochs=4"]
    return train("experiment=mnist", f"data.root={digits}", *small)[0]


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """A data root with small files in MNIST's own format, which torchvision reads as it reads MNIST's."""
    root = tmp_path_factory.mktemp("digits")
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    write_idx_pair(folder, "train", 600, seed=0)
    write_idx_pair(folder, "t10k", 200, seed=1)
    return root


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """A folder of small pictures of all sizes, one subfolder per colour."""
    write_images(tmp_path / "images", 30, seed=0)
    return tmp_path / "images"


def _in_child(arguments, output, sent, at, limit, calls):
    """`python ARGUMENTS`, in a process that gets a signal at the ``at``-th function call since training began."""
    sys.stdout = sys.stderr = os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "w", buffering=1)
    sys.argv = arguments
    if limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    def profile(frame, event, argument):
        calls.value += 1
        if calls.value == at:
            os.kill(os.getpid(), sent)

    def record_and_count(*args):
        record(*args)
        sys.setprofile(profile)

    record, environment.record = environment.record, record_and_count
    try:
        runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
    finally:
        sys.setprofile(None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the runs of this module are."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("resume")
        patch.chdir(folder)
        patch.delenv("HYDRA_FULL_ERROR", raising=False)
        yield folder


@pytest.fixture(scope="module")
def start(folder):
    """A process of its own: `start("resume.py", RUN)` returns its exit status, what it printed, and its function calls.

    A fork of this one, so that importing torch once is enough. ``at`` is the moment for the signal ``sent``;
    ``limit`` is the size in bytes at which the disk is full.
    """

    def start(*arguments, sent=signal.SIGKILL, at=-1, limit=0):
        output = folder / "output.txt"
        output.unlink(missing_ok=True)
        context = multiprocessing.get_context("fork")
        calls = context.Value("q", 0, lock=False)
        arguments = ([str(argument) for argument in arguments], output, sent, at, limit, calls)
        process = context.Process(target=_in_child, args=arguments)
        process.start()
        process.join()
        return process.exitcode, output.read_text(), calls.value

    return start
