"""The project that the chapters lie in: its root, a folder for what they write, its commands."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUTPUTS = ROOT / "outputs/tutorials"
OUTPUTS.mkdir(parents=True, exist_ok=True)

# For chapters that look at a run in Python.
sys.path.append(str(ROOT))
torch_starter = importlib.import_module("torch_starter")


def run(*command: object) -> str:
    """What `python COMMAND` prints, typed in the root of the project.

    Raises:
        subprocess.CalledProcessError: if it fails; why, stands above.
    """
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    environment.pop("FORCE_COLOR", None)  # Jupyter sets it, and then a progress bar is drawn, a line for each step
    arguments = [sys.executable, *map(str, command)]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return done.stdout
