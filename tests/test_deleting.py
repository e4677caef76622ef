"""What the generated README says may be deleted, deleted as it says; the rest works on, and so do its tests."""

import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import TEMPLATE, commit
from test_generated_project import run

PAGE = (TEMPLATE / "{{cookiecutter.project_slug}}/docs/deleting.md").read_text(encoding="utf-8")
PAGE = re.sub(r"{%.*?%}", "", PAGE)
# Of each part its name, its commands, and what else there is to change.
PARTS = re.findall(r"\*\*(.+?):?\*\*.*?```sh\n(.*?)```\n(.*?)(?=\n\*\*|\Z)", PAGE, re.DOTALL)
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
def without(bake):
    """A generated project in its first commit, and some of its parts deleted since."""

    def without(*parts):
        repository = bake()
        commit(repository, "Generated")
        for _, commands, changes in parts:
            delete(repository, commands, changes)
        return repository

    return without


def test_there_is_something_to_delete():
    names = ["Linear regression", "Images", "Tables", "The tutorials"]
    assert [name.partition(",")[0] for name, _, _ in PARTS] == names


@pytest.mark.slow
def test_what_is_deleted_is_not_missed(without):
    """By the linter, the type checker, the import of every test, and the tests of all configs and commands."""

    def check(repository):
        run("-m", "ruff", "check", "--no-cache", cwd=repository)
        run("-m", "pyrefly", "check", cwd=repository)
        run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "composes", cwd=repository)

    repositories = [without(part) for part in PARTS]
    with ThreadPoolExecutor(2) as pool:  # each check keeps one core busy
        checks = [pool.submit(check, repository) for repository in repositories]
    failures = {part[0]: str(done.exception()) for part, done in zip(PARTS, checks, strict=True) if done.exception()}
    assert not failures


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS, ids=[name for name, _, _ in PARTS])
def test_all_other_tests_pass(without, part):
    print(run("-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", cwd=without(part)).splitlines()[-1])


@pytest.mark.slow
def test_all_of_it_can_be_deleted_but_one_task(without):
    print(run("-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", cwd=without(*PARTS[1:])).splitlines()[-1])
