"""Report errors that the user can fix: a short message with the value, the reason and the remedy."""

import difflib
import logging
import os
import unicodedata
from collections.abc import Iterable

FULL_ERROR = "HYDRA_FULL_ERROR"
IS_FULL = os.environ.get(FULL_ERROR) == "1"  # read before ``explain_errors`` sets it for Hydra


class UserError(Exception):
    """An error that the user can fix; its text says what is wrong, with the value, and what to do."""


def printable(text: str) -> str:
    """Return ``text`` with control characters escaped as in Python literals, except line breaks and tabs.

    A terminal would execute them, and the text may come from an untrusted run folder.
    """
    return "".join(
        ascii(character)[1:-1] if unicodedata.category(character) == "Cc" and character not in "\n\t" else character
        for character in text
    )


class PrintableFormatter(logging.Formatter):
    """A formatter that escapes control characters; configs/train.yaml uses it for the console and train.log."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def first_line(error: object) -> str:
    """Return the first line of an error message; torch and polars add paragraphs."""
    return str(error).strip().partition("\n")[0]


def nearest(word: str, words: Iterable[str]) -> str:
    """Return the end of a message: the word in ``words`` that ``word`` may be a typo of, and all choices."""
    choices = sorted(words)
    if not choices:
        return ""
    return "".join(f" Did you mean {name}?" for name in close_to(word, choices)) + f"\nChoices: {', '.join(choices)}"


def close_to(word: str, words: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return up to ``count`` of ``words`` that are spelled like ``word``, by difflib's ratio, closest first."""
    return difflib.get_close_matches(word, sorted(words), count, cutoff)
