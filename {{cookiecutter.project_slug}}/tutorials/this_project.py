"""The project around the chapters: its root, the folder for their output, and its commands."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

# A search, because tutorials/vi/weave.py copies this module.
ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "train.py").exists())
OUTPUTS = ROOT / "outputs/tutorials"
OUTPUTS.mkdir(parents=True, exist_ok=True)

# For chapters that load a run in Python.
sys.path.append(str(ROOT))
torch_starter = importlib.import_module("torch_starter")


def run(*command: object) -> str:
    """Run `python COMMAND` in the root of the project and return what it prints.

    Raises:
        subprocess.CalledProcessError: if the command fails; its error message appears above.
    """
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    environment.pop("FORCE_COLOR", None)  # Jupyter sets it; the progress bar would print a line per step
    arguments = [sys.executable, *map(str, command)]
    result = subprocess.run(arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return result.stdout
