"""README.md and README.vi.md: that they keep in step, and that their links lead somewhere."""

import re
from urllib.parse import unquote

import pytest

from conftest import TEMPLATE

PAGES = {name: (TEMPLATE / name).read_text(encoding="utf-8") for name in ("README.md", "README.vi.md")}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def outline(page: str) -> dict[str, list[str]]:
    """What two languages have in common: commands, headings, rows, numbers, code, pictures."""
    blocks = BLOCK.findall(page)
    text = BLOCK.sub("", page)
    return {
        "commands": [re.sub(r" +#.*", "", block) for kind, block in blocks if kind == "sh"],
        "names in the tree": [name for _, block in blocks for name in re.findall(r"[├└]── (\S+)", block)],
        "headings": re.findall(r"^#+(?= )", text, re.MULTILINE),
        "cells": [line.count("|") for line in text.splitlines() if line.startswith("|")],
        "code": sorted(re.findall(r"`[^`]+`", text)),
        "figures": sorted(re.findall(r"\d+[.,]\d+", text)),
        "pictures": re.findall(r"!\[.*?\]\((.*?)\)", text),
    }


def test_both_languages_say_the_same():
    english, vietnamese = map(outline, PAGES.values())
    assert min(map(len, english.values())) > 0
    for kind, found in english.items():
        assert vietnamese[kind] == found, kind


@pytest.mark.parametrize("name", PAGES)
def test_its_links_lead_somewhere(name):
    anchors = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)", PAGES[name], re.M)
    }
    targets = [target for target in re.findall(r"\]\((.*?)\)", PAGES[name]) if not target.startswith("http")]
    assert len(targets) > 8
    for target in targets:
        file, _, anchor = target.partition("#")
        assert (TEMPLATE / unquote(file)).exists(), target
        assert not anchor or anchor in anchors, target
