"""Refuse answers that cannot become a working project, with the reason and a remedy.

cookiecutter runs this hook in the new folder, and removes the folder on exit status 1.
"""

import json
import keyword
import re
import sys
import unicodedata
from email.errors import MessageError
from email.headerregistry import Address

# Bidirectional controls make text look like other text (https://trojansource.codes); U+FEFF marks the start of a file.
REORDERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"

# Valid JSON never contains three consecutive quotation marks, so it fits into this string.
answers = json.loads(r"""{{ cookiecutter | tojson }}""")
# Reserved names are in cookiecutter.json because the default slug, which is computed before any hook, avoids them too.
by_python, by_packages, by_project, by_windows = (
    " ".join(answers[f"_taken_by_{what}"]).split() for what in ("python", "packages", "project", "windows")
)


def refuse(name: str, reason: str) -> None:
    """Exit with the question, its answer, and the reason."""
    sys.exit(f"{name} is {answers[name]!r}: {reason}")


for name in ("project_name", "description", "author", "email"):
    answer = answers[name]
    for delimiter in ("{" * 2, "{" + "%", "{" + "#"):
        if delimiter in answer:
            refuse(name, f"it contains {delimiter}, which Jinja would execute, now or at an update. Remove it.")
    for character in answer:
        if character in "\t\n\r":
            continue
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in REORDERING:
            refuse(name, f"it contains the invisible character U+{ord(character):04X}. Retype the answer.")
    if name != "description" and len(answer.splitlines()) > 1:
        refuse(name, "it must be a single line.")
for name in ("project_name", "author"):
    if not answers[name].strip():
        refuse(name, "it must not be empty, because README.md or LICENSE begins with it.")
if answers["email"]:
    try:
        Address(addr_spec=answers["email"])
    except (ValueError, MessageError) as error:
        refuse("email", f"it is not a valid address ({error}). Correct it or leave it empty.")

slug = answers["project_slug"]
suggestion = re.sub(r"\W+", "_", slug, flags=re.ASCII).strip("_").lower() or "my_project"
if suggestion[0].isdigit():
    suggestion = f"project_{suggestion}"
if keyword.iskeyword(suggestion) or suggestion in (*by_python, *by_packages, *by_project, *by_windows):
    suggestion = f"{suggestion}_project"
lowered = slug.lower()  # file names on macOS and Windows are case-insensitive

reason = None
if not re.fullmatch(r"[a-zA-Z]([a-zA-Z0-9_]*[a-zA-Z0-9])?", slug):
    reason = "a package name consists of the letters a to z, digits and _, begins with a letter and does not end with _"
elif keyword.iskeyword(slug) or keyword.iskeyword(lowered):
    reason = "it is a Python keyword"
elif lowered in by_python or lowered in {name.lower() for name in sys.stdlib_module_names}:
    reason = "the package would hide the module of the same name in Python's standard library"
elif lowered in (*by_packages, *by_project):
    reason = "the project already has or imports a module of that name"
elif lowered in by_windows:
    reason = "Windows reserves that name for a device"

if reason:
    if suggestion == lowered:
        suggestion = f"{suggestion}_project"
    refuse("project_slug", f"{reason}. Try {suggestion!r}.")
