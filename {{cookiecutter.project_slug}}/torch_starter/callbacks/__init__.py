"""Callbacks of the trainer."""

from .. import quiet  # noqa: F401  (before Lightning prints anything)
