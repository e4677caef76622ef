"""Test that README.md and README.vi.md match, and that their links resolve."""

import re
from urllib.parse import unquote

import pytest

from conftest import TEMPLATE

PAGES = {name: (TEMPLATE / name).read_text(encoding="utf-8") for name in ("README.md", "README.vi.md")}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def outline(page: str) -> dict[str, list[str]]:
    """Return what both languages share: commands, output, headings, rows, numbers, code, and images."""
    blocks = BLOCK.findall(page)
    text = BLOCK.sub("", page)
    return {
        "commands": [re.sub(r" +#.*", "", block) for kind, block in blocks if kind == "sh"],
        "output": [block for _, block in blocks if block.startswith("LinearRegression")],
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


@pytest.mark.parametrize("name", PAGES)
def test_links_resolve(name):
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
