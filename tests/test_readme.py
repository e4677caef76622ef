"""Test that README.md and README.vi.md match, and that the links of all pages resolve."""

import json
import re
from urllib.parse import unquote

import pytest

from conftest import TEMPLATE

PAGES = {name: (TEMPLATE / name).read_text(encoding="utf-8") for name in ("README.md", "README.vi.md")}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)", BLOCK.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def outline(page: str) -> dict[str, list[str]]:
    """Return what both languages share: commands, headings, rows, numbers, code, and images."""
    blocks = BLOCK.findall(page)
    text = BLOCK.sub("", page)
    return {
        "commands": [re.sub(r" +#.*", "", block) for kind, block in blocks if kind == "sh"],
        "names in the tree": [name for _, block in blocks for name in re.findall(r"[├└]── (\S+)", block)],
        "headings": re.findall(r"^#+(?= )", text, re.MULTILINE),
        "cells": [line.count("|") for line in text.splitlines() if line.startswith("|")],
        "code": sorted(re.findall(r"`[^`]+`", text)),
        "figures": sorted(re.findall(r"\d+[.,]\d+", text)),
        "images": re.findall(r"!\[.*?\]\((.*?)\)", text),
    }


def test_readmes_in_both_languages_match():
    english, vietnamese = map(outline, PAGES.values())
    assert min(map(len, english.values())) > 0
    for kind, found in english.items():
        assert vietnamese[kind] == found, kind


def test_table_of_questions_is_complete():
    page = (TEMPLATE / "docs/generating.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`: (.*?) \| (.*?) \|$", page, re.MULTILINE)
    questions = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
    assert [name for name, _, _ in rows] == [name for name in questions if not name.startswith("_")]
    for name, description, default in rows:
        answer = questions[name]
        choices = answer if isinstance(answer, list) else []
        assert all(choice in description for choice in choices), name
        if name != "project_slug":  # derived from project_name
            assert default == ((choices or [answer])[0] or "empty")


ALL_PAGES = [
    *sorted((TEMPLATE / "docs").glob("*.md")),
    *sorted((TEMPLATE / "{{cookiecutter.project_slug}}").glob("**/*.md")),
    *(TEMPLATE / name for name in (*PAGES, "benchmarks/README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
]


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(TEMPLATE)))
def test_links_resolve(page):
    links = re.findall(r"\]\((.*?)\)", BLOCK.sub("", page.read_text(encoding="utf-8")))
    targets = [target for target in links if not target.startswith("http")]
    assert len(targets) > 8 or page.name not in PAGES or page.parent != TEMPLATE
    for target in targets:
        file, _, anchor = target.partition("#")
        linked = page.parent / unquote(file) if file else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text(encoding="utf-8")), target
