"""Refuses, with the reason and a remedy, answers that could not become a working project.

cookiecutter runs this in the folder that it has just made, and takes the folder away again on exit status 1.
"""

import json
import keyword
import re
import sys
import unicodedata
from email.errors import MessageError
from email.headerregistry import Address

# The modules of what a project needs, by default and with its extras, and of what people add; a package of such a name
# would be imported in their stead.
IMPORTED = """
    absl aiohappyeyeballs aiohttp aiosignal alembic antlr4 attr attrs cfgv cloudpickle colorama coloredlogs colorlog
    commonmark contourpy cuda cycler dateutil distlib execnet filelock flatbuffers fontTools frozenlist fsspec
    functorch google greenlet grpc humanfriendly hydra hydra_plugins identify idna iniconfig isympy jinja2 joblib
    kiwisolver lightning lightning_fabric lightning_utilities mako markdown markdown_it markupsafe matplotlib mdurl
    ml_dtypes mlflow mpl_toolkits mpmath multidict networkx nodeenv numpy nvidia omegaconf onnx onnx_ir onnxruntime
    onnxscript optuna packaging pandas PIL pip pkg_resources platformdirs pluggy pre_commit pretty_errors propcache
    py pydevd_plugins pygments pylab pyparsing pyreadline3 pyrefly pytest python_discovery pytorch_lightning rich
    ruff scipy setuptools sqlalchemy sympy tensorboard tensorboard_data_server torch torchgen torchmetrics
    torchvision tqdm triton typing_extensions tzdata virtualenv wandb werkzeug xdist yaml yarl
"""
# The files and folders at the root of a project, those that come later, and the modules of its tests.
TAKEN = """
    benchmarks build configs conftest data dist docs errors evaluate export help_page license outputs predict
    processes pyproject readme resume runs scripts sweep test_configs test_data test_export test_image_classifier
    test_image_folder test_linear_regression test_matrix test_mistakes test_processes test_readme test_resume
    test_sweep test_tensorboard test_torchvision test_train test_trust test_tutorials test_verbs tests train trust
    tutorials
"""
# Windows cannot have files of these names.
RESERVED = ["aux", "con", "nul", "prn"] + [f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)]
# They make a text look like another one (https://trojansource.codes), or begin a file.
REORDERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"

# JSON has no ' here, for Jinja writes it as an escape.
answers = json.loads(r"""{{ cookiecutter | tojson }}""")


def refuse(name: str, reason: str) -> None:
    sys.exit(f"{name} is {answers[name]!r}: {reason}")


for name in ("project_name", "description", "author", "email"):
    answer = answers[name]
    for delimiter in ("{" * 2, "{" + "%", "{" + "#"):
        if delimiter in answer:
            refuse(name, f"{delimiter} would be taken for a command of the template, if not now, at an update.")
    for character in answer:
        if character in "\t\n\r":
            continue
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in REORDERING:
            refuse(name, f"it has a character that nobody can see, U+{ord(character):04X}. Type it anew.")
    if name != "description" and len(answer.splitlines()) > 1:
        refuse(name, "it must be one line.")
for name in ("project_name", "author"):
    if not answers[name].strip():
        refuse(name, "it must not be empty, for README.md or LICENSE begins with it.")
if answers["email"]:
    try:
        Address(addr_spec=answers["email"])
    except (ValueError, MessageError) as error:
        refuse("email", f"that is no address ({error}). It may be left empty.")

slug = answers["project_slug"]
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
elif lowered in (IMPORTED + TAKEN).lower().split():
    reason = "the project already has or imports something of that name"
elif lowered in RESERVED:
    reason = "Windows keeps that name for a device"

if reason:
    if suggestion == lowered:
        suggestion = f"{suggestion}_project"
    refuse("project_slug", f"{reason}. Try {suggestion!r}.")
