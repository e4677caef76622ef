"""What `python train.py --help` prints: `configs/help.txt`, with the groups and their choices.

Hydra's own page takes most of a second, because it looks through all the configs that Hydra itself has.
"""

import functools
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from . import project


def has_help_page(main: Callable[..., Any]) -> Callable[..., Any]:
    """``main`` prints the page and does nothing else if it is asked for by ``--help`` or ``-h``."""

    @functools.wraps(main)
    def helpful_main(*args: Any) -> Any:
        if not {"--help", "-h"} & set(sys.argv[1:]):
            return main(*args)
        lines = [f"{group}: {', '.join(choices)}" for group, choices in project.groups().items()]
        groups = "\n".join(textwrap.fill(line, 110, subsequent_indent="  ") for line in lines)
        print((project.CONFIGS / "help.txt").read_text(encoding="utf-8").replace("{groups}", groups), end="")

    return helpful_main
