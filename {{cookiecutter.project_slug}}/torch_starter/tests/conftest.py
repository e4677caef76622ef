import multiprocessing
import os
import runpy
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from project_for_tests import (  # imported first because it selects the torch_starter under test
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
def _limit_to_one_thread():
    """Make results independent of the number of cores; small tensors are not slower."""
    torch.set_num_threads(1)


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Return a function that runs `python SCRIPT ARGUMENTS` in a temporary folder, in this process."""

    def script(name: str, *arguments: object) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / name), run_name="__main__")

    return script


@pytest.fixture
def train(tmp_path, script):
    """Return a function that runs `python train.py ARGUMENTS` in a temporary folder and returns the new run folders."""

    def train(*arguments: str) -> list[Path]:
        before = set(tmp_path.glob("outputs/**/.hydra"))
        script("train.py", *arguments)
        return sorted(folder.parent for folder in set(tmp_path.glob("outputs/**/.hydra")) - before)

    return train


@pytest.fixture
def own_project(tmp_path, monkeypatch):
    """Copy the project into the current folder, and return a function that runs `python SCRIPT ARGUMENTS` there.

    Scripts run in this process, without modules of a project that were imported before.
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
    # Unload the modules of the copy; monkeypatch restores those imported before.
    for module in list(sys.modules):
        if module.partition(".")[0] in tops:
            del sys.modules[module]


@pytest.fixture
def line(train):
    """Return the folder of a linear regression run."""
    return train("trainer.max_epochs=60", "optimizer.lr=0.1")[0]


@pytest.fixture
def classifier(train, digits):
    """Return the run folder of a classifier of digits."""
    small = ["data.num_val=100", "data.batch_size=50", "trainer.max_epochs=4"]
    return train("experiment=mnist", f"data.root={digits}", *small)[0]


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """Return a data root with small files in MNIST's format."""
    root = tmp_path_factory.mktemp("digits")
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    write_idx_pair(folder, "train", 600, seed=0)
    write_idx_pair(folder, "t10k", 200, seed=1)
    return root


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Return a folder of small images of different sizes, with one subfolder per color."""
    write_images(tmp_path / "images", 30, seed=0)
    return tmp_path / "images"


def _in_child(arguments, output, sent, at, limit, calls):
    """Run `python ARGUMENTS`, and send this process a signal at the ``at``-th function call after training began."""
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
    """Change to a temporary folder for the runs of a module."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("resume")
        patch.chdir(folder)
        patch.delenv("HYDRA_FULL_ERROR", raising=False)
        yield folder


@pytest.fixture(scope="module")
def start(folder):
    """Return a function that runs a command in a new process.

    `start("resume.py", RUN)` returns exit status, output and number of function calls. The process is forked, so that
    torch is imported only once. It receives the signal ``sent`` at function call ``at``. ``limit`` is the file size in
    bytes at which the disk is full.
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
