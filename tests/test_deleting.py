"""What the generated README says may be deleted, deleted as it says; the rest works on, and so do its tests."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from conftest import TEMPLATE, commit
from test_generated_project import run

SECTION = (TEMPLATE / "{{cookiecutter.project_slug}}/README.md").read_text(encoding="utf-8")
SECTION = SECTION.partition("## What you may delete\n")[2].partition("\n## ")[0]
SECTION = re.sub(r"{%.*?%}", "", SECTION)
# Of each part its name, its commands, and what else there is to change.
PARTS = re.findall(r"\*\*(.+?):?\*\*.*?```sh\n(.*?)```\n(.*?)(?=\n\*\*|\Z)", SECTION, re.DOTALL)
CHANGE = re.compile(r"- `(?P<file>.+?)`: (the entry `(?P<entry>.+)` goes|`(?P<old>.+)` becomes `(?P<new>.+)`)")


def without_entry(text: str, beginning: str) -> str:
    """``text`` without the lines that begin so, and what is indented below each of them."""
    kept, indentation = [], None
    for line in text.splitlines(keepends=True):
        indented = len(line) - len(line.lstrip())
        if indentation is not None and (indented > indentation and line.strip()):
            continue
        indentation = indented if line.lstrip().startswith(beginning) else None
        if indentation is None:
            kept.append(line)
    return "".join(kept)


def delete(project: Path, commands: str, changes: str) -> None:
    """Does what the README says, to the letter."""
    commands = commands.replace("{{ cookiecutter.project_slug }}", project.name)
    for command in commands.splitlines():
        subprocess.run(shlex.split(command), cwd=project, check=True, capture_output=True)
    for line in changes.strip().splitlines():
        change = CHANGE.fullmatch(line)
        assert change, line
        path = project / change["file"]
        text = path.read_text(encoding="utf-8")
        if change["entry"]:
            changed = without_entry(text, change["entry"])
        else:
            changed = text.replace(change["old"], change["new"])
        assert changed != text, line
        path.write_text(changed, encoding="utf-8")


@pytest.fixture
def repository(project):
    """A generated project in its first commit."""
    commit(project, "Generated")
    return project


def test_there_is_something_to_delete():
    names = ["Linear regression", "Images", "The search", "Export", "The tutorials"]
    assert [name.partition(",")[0] for name, _, _ in PARTS] == names


EVERY_PART = pytest.mark.parametrize(("name", "commands", "changes"), PARTS, ids=[name for name, _, _ in PARTS])


@EVERY_PART
def test_what_is_deleted_is_not_missed(repository, name, commands, changes):
    """By the linter, the type checker, the import of every test, and the tests of all configs and commands."""
    delete(repository, commands, changes)
    run("-m", "ruff", "check", "--no-cache", cwd=repository)
    run("-m", "pyrefly", "check", cwd=repository)
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "composes", cwd=repository)


@pytest.mark.slow
@EVERY_PART
def test_all_other_tests_pass(repository, name, commands, changes):
    delete(repository, commands, changes)
    print(run("-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", cwd=repository).splitlines()[-1])


@pytest.mark.slow
def test_all_of_it_can_be_deleted_but_one_task(repository):
    for _, commands, changes in PARTS[1:]:
        delete(repository, commands, changes)
    print(run("-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", cwd=repository).splitlines()[-1])
