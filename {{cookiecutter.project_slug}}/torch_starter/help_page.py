"""Print the help page of `python train.py --help`: `configs/help.txt` with the config groups and their choices.

Hydra's own help page takes most of a second, because it searches all the configs that Hydra ships.
"""

import functools
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from . import project


def has_help_page(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate ``main`` to print the help page, and do nothing else, for ``--help`` or ``-h``."""

    @functools.wraps(main)
    def main_with_help(*args: Any) -> Any:
        if not {"--help", "-h"} & set(sys.argv[1:]):
            return main(*args)
        lines = [f"{group}: {', '.join(choices)}" for group, choices in project.groups().items()]
        groups = "\n".join(textwrap.fill(line, 110, subsequent_indent="  ") for line in lines)
        print((project.CONFIGS / "help.txt").read_text(encoding="utf-8").replace("{groups}", groups), end="")

    return main_with_help
