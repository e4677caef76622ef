"""A mistake that the user can mend: a short message with the value, the reason and the remedy."""

import difflib
import logging
import os
import unicodedata
from collections.abc import Iterable

FULL_ERROR = "HYDRA_FULL_ERROR"
IS_FULL = os.environ.get(FULL_ERROR) == "1"  # as the user set it; ``explained`` sets it for Hydra


class UserError(Exception):
    """Something that the user can mend; its text says what is wrong, with the value, and what to do."""


def printable(text: str) -> str:
    """Returns ``text`` with its control characters, but not line breaks and tabs, as Python writes them.

    A terminal would obey them, and what is printed may come from an untrusted run folder.
    """
    return "".join(
        ascii(character)[1:-1] if unicodedata.category(character) == "Cc" and character not in "\n\t" else character
        for character in text
    )


class PrintableFormatter(logging.Formatter):
    """Writes log records without control characters; configs/train.yaml gives it to the console and to train.log."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def first_line(error: object) -> str:
    """The first line of what an error says; torch and polars add paragraphs."""
    return str(error).strip().partition("\n")[0]


def nearest(word: str, words: Iterable[str]) -> str:
    """Which of ``words`` is meant by ``word``, perhaps, and all of them: for the end of a message."""
    choices = sorted(words)
    if not choices:
        return ""
    return "".join(f" Did you mean {name}?" for name in close_to(word, choices)) + f"\nChoices: {', '.join(choices)}"


def close_to(word: str, words: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """Up to ``count`` of ``words`` that are spelled much like ``word``, by difflib's ratio, the closest first."""
    return difflib.get_close_matches(word, sorted(words), count, cutoff)
