import subprocess
from pathlib import Path

import pytest
from cookiecutter.main import cookiecutter

TEMPLATE = Path(__file__).parents[1]


def commit(folder: Path, message: str) -> None:
    """Commits all that is in a folder, which is a repository from then on."""
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "-A"], [*identity, "commit", "-qm", message]):
        subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="session")
def bake(tmp_path_factory):
    """Generates a project from some answers and defaults for the rest, in a folder of its own."""

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
    """A project of the default answers, to do with as a test likes."""
    return bake()
