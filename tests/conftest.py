"""Fixtures that generate projects from the template."""

import subprocess
from pathlib import Path

import pytest
from cookiecutter.main import cookiecutter

TEMPLATE = Path(__file__).parents[1]


def commit(folder: Path, message: str) -> None:
    """Initialize a git repository in a folder if needed, and commit all of its files."""
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "-A"], [*identity, "commit", "-qm", message]):
        subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="session")
def bake(tmp_path_factory):
    """A function that generates a project from answers, with defaults for the others, in a new folder by default."""

    def bake(folder: Path | None = None, **answers: str) -> Path:
        output_dir = folder or tmp_path_factory.mktemp("baked")
        return Path(
            cookiecutter(
                str(TEMPLATE),
                no_input=True,
                extra_context=answers,
                output_dir=str(output_dir),
                default_config=True,
            )
        )

    return bake


@pytest.fixture
def project(bake) -> Path:
    """A project generated from the default answers; a test may modify it."""
    return bake()
