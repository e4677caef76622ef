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

# They make a text look like another one (https://trojansource.codes), or begin a file.
REORDERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"

# JSON has no ' here, for Jinja writes it as an escape.
answers = json.loads(r"""{{ cookiecutter | tojson }}""")
# The names that the default slug avoids too, which no hook could tell it: cookiecutter.json has them.
by_python, by_packages, by_project, by_windows = (
    " ".join(answers[f"_taken_by_{what}"]).split() for what in ("python", "packages", "project", "windows")
)


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
if keyword.iskeyword(suggestion) or suggestion in (*by_python, *by_packages, *by_project, *by_windows):
    suggestion = f"{suggestion}_project"
lowered = slug.lower()  # macOS and Windows do not tell upper from lower case

reason = None
if not re.fullmatch(r"[a-zA-Z]([a-zA-Z0-9_]*[a-zA-Z0-9])?", slug):
    reason = "a Python package needs a name of letters a to z, digits and _, with a letter first and no _ at the ends"
elif keyword.iskeyword(slug) or keyword.iskeyword(lowered):
    reason = "it is a keyword of Python"
elif lowered in by_python or lowered in {name.lower() for name in sys.stdlib_module_names}:
    reason = "Python's standard library has a module of that name, which the package would hide"
elif lowered in (*by_packages, *by_project):
    reason = "the project already has or imports something of that name"
elif lowered in by_windows:
    reason = "Windows keeps that name for a device"

if reason:
    if suggestion == lowered:
        suggestion = f"{suggestion}_project"
    refuse("project_slug", f"{reason}. Try {suggestion!r}.")
