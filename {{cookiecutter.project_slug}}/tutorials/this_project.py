"""The project that the chapters lie in: its root, a folder for what they write, its commands."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUTPUTS = ROOT / "outputs/tutorials"
OUTPUTS.mkdir(parents=True, exist_ok=True)


def run(*command: object) -> str:
    """What `python COMMAND` prints, typed in the root of the project.

    Raises:
        subprocess.CalledProcessError: if it fails; why, stands above.
    """
    utf8 = os.environ | {"PYTHONIOENCODING": "utf-8"}
    arguments = [sys.executable, *map(str, command)]
    done = subprocess.run(arguments, cwd=ROOT, env=utf8, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return done.stdout
