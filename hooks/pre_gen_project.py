"""Refuses, with the reason and a suggestion, a name that could not be a package of a working project.

cookiecutter runs this in the folder that it has just made, and takes the folder away again on exit status 1.
"""

import keyword
import re
import sys

# Names that the project imports, and the files and folders at its root.
TAKEN = """
    cookiecutter filelock hydra hydra_plugins lightning lightning_utilities matplotlib numpy omegaconf onnx
    onnxruntime onnxscript optuna PIL pip pytest pytorch_lightning rich setuptools tensorboard torch
    torchmetrics torchvision wandb mlflow yaml benchmarks build configs data dist docs errors evaluate export help_page
    outputs predict processes resume runs scripts sweep tests train trust tutorials
""".split()
# Windows cannot have files of these names.
RESERVED = "aux con nul prn".split() + [f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)]

slug = {{ cookiecutter.project_slug | tojson }}
suggestion = re.sub(r"\W+", "_", slug, flags=re.ASCII).strip("_").lower() or "my_project"
if suggestion[0].isdigit():
    suggestion = f"project_{suggestion}"
lowered = slug.lower()  # macOS and Windows do not tell upper from lower case

reason = None
if not re.fullmatch(r"[a-zA-Z]([a-zA-Z0-9_]*[a-zA-Z0-9])?", slug):
    reason = "a Python package needs a name of letters a to z, digits and _, with a letter first and no _ at the ends"
elif keyword.iskeyword(slug) or keyword.iskeyword(lowered):
    reason = "it is a keyword of Python"
elif lowered in {name.lower() for name in sys.stdlib_module_names}:
    reason = "Python's standard library has a module of that name, which the package would hide"
elif lowered in {name.lower() for name in TAKEN}:
    reason = "the project already has or imports something of that name"
elif lowered in RESERVED:
    reason = "Windows keeps that name for a device"

if reason:
    if suggestion == lowered:
        suggestion = f"{suggestion}_project"
    sys.exit(f"project_slug is {slug!r}: {reason}. Try {suggestion!r}.")
