"""Test that answers generate a project that parses and builds, or are refused before a file is written."""

import contextlib
import os
import subprocess
import sys
import tomllib
from email import message_from_string, policy
from pathlib import Path

import pytest
import yaml
from cookiecutter.exceptions import CookiecutterException
from hatchling.build import prepare_metadata_for_build_wheel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from conftest import TEMPLATE
from test_generation import QUESTIONS, files

NAMES = [
    "Nguyễn Thị Ánh",
    "O'Connor",
    'Jürgen "JJ" Groß',
    "山田",
    "山田 太郎",
    "محمد علي",
    "Παπαδόπουλος, Γιώργος",
    "Ødegård & Sons <team>",
    "C:\\Users\\anh",
    "Smith, Jr.",
    "x" * 500,
    "👩‍🔬 Ada",
    "%s %(name)s {0} ${x}",
    "'''",
    '"""',
    "# no comment",
    "- a: b",
    "*",
    "  spaces  around  ",
    "tab\tbetween",
    "e\u0301 decomposed",
    "null",
    "3.10",
    "yes",
]
DESCRIPTIONS = [
    'Learns "C:\\temp\\new", ${x}, 100 % and {braces}: yes # really 🙂\nand another line',
    "ends with a backslash \\",
    'ends with three """',
    "{a} {} }} {",
    "$(rm -rf /) `ls` $HOME ${HOME} %PATH% !important",
    "key: value, - item, [list], {map: 1}, &anchor, *alias, !tag, |, >, ?",
    "a\r\nb\nc\rd",
    "\ttab and  double  spaces ",
    "<script>alert(1)</script> & &amp;",
    "🙂" * 200,
    "words " * 83,
    "l" * 500,
    "",
    " ",
    "# heading",
    "---",
    "\\u0041 \\x41 \\n \\t",
    "Größe, naïveté, 数据, данные, بيانات",
    "a | b | c",
    "[link](https://example.org) ![image](x.png)",
    "trailing comma,",
    "=1+1",
    "@property",
    "a'b''c'''d",
]
EMAILS = [
    "",
    "anh@example.org",
    "o'connor@example.org",
    "first.last+tag@sub.example.co.uk",
    "a@b",
    '"odd one"@example.org',
]
SLUGS = ["net", "Net2", "match", "a", "x" * 60, "my_net_2", "A1_b2_C3", "type", "print_net", "test_net", "self"]

# Refused answers, and a part of the message.
REFUSED = [
    ({"description": "{{ x }}"}, None),  # with --no-input Jinja itself fails
    ({"description": "{% x %}"}, None),
    ({"author": "bell \a"}, "invisible character U+0007"),
    ({"author": "\u202eevil"}, "invisible character U+202E"),
    ({"description": "null \0"}, "invisible character U+0000"),
    ({"description": "escape \x1b[31m"}, "invisible character U+001B"),
    ({"description": "half a pair \ud83d"}, "invisible character U+D83D"),
    ({"project_name": "a separator \u2028"}, "invisible character U+2028"),
    ({"project_name": "two\nlines"}, "a single line"),
    ({"author": "two\nlines"}, "a single line"),
    ({"author": ""}, "must not be empty"),
    ({"author": "  "}, "must not be empty"),
    ({"project_name": "", "project_slug": "net"}, "must not be empty"),
    ({"project_slug": "x" * 61}, None),
    ({"email": "nobody"}, "not a valid address"),
    ({"email": "a b@example.org"}, "not a valid address"),
    ({"email": "a,b@example.org"}, "not a valid address"),
    ({"email": "müller@example.org"}, "not a valid address"),
    ({"email": "a@b@c"}, "not a valid address"),
    ({"email": "@example.org"}, "not a valid address"),
]

# Raised by the hook, or by Jinja, which also renders answers with --no-input.
REFUSAL = (CookiecutterException, TemplateError)
text = st.text(max_size=500)
ANSWERS = st.fixed_dictionaries(
    {},
    optional={
        "project_name": text | st.sampled_from(NAMES),
        "description": text | st.sampled_from(DESCRIPTIONS),
        "author": text | st.sampled_from(NAMES),
        "email": st.sampled_from(EMAILS) | st.emails() | text,
        "license": st.sampled_from(QUESTIONS["license"]),
        "minimum_python": st.sampled_from(QUESTIONS["minimum_python"]),
        "tutorials": st.sampled_from(QUESTIONS["tutorials"]),
        "project_slug": st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True) | text,
    },
)


def check(project: Path, answers: dict[str, str]) -> None:
    """Assert that each file is UTF-8 and parses, and that the built metadata match the answers."""
    for name, path in files(project).items():
        if path.suffix in (".yaml", ".yml"):
            assert yaml.safe_load(path.read_text(encoding="utf-8")), name
        elif path.suffix == ".toml":
            tomllib.loads(path.read_text(encoding="utf-8"))
        elif path.suffix != ".png":
            assert b"\r" not in path.read_bytes(), name
            path.read_text(encoding="utf-8")
    answers = {name: answers.get(name, default) for name, default in QUESTIONS.items() if isinstance(default, str)}
    with contextlib.chdir(project):
        folder = prepare_metadata_for_build_wheel(str(project.parent))
    metadata = (project.parent / folder / "METADATA").read_text(encoding="utf-8")
    headers = message_from_string(metadata.partition("\n\n")[0], policy=policy.compat32)
    assert headers["Name"].replace("-", "_").lower() == project.name.lower()
    assert (headers["Summary"] or "") == " ".join(answers["description"].split())
    author = " ".join(answers["author"].split())
    if answers["email"]:
        assert answers["email"].strip() in headers["Author-email"]
    else:
        assert headers["Author"] == author
    readme = (project / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# {answers['project_name']}\n")
    if "roprietary" not in metadata:
        assert answers["author"] in (project / "LICENSE").read_text(encoding="utf-8")


CASES = [
    *({"project_name": name, "project_slug": "net", "author": name} for name in NAMES),
    *({"description": description} for description in DESCRIPTIONS),
    *({"email": email, "author": author} for email in EMAILS for author in ("Ánh", 'Jürgen "JJ" Groß, Jr.')),
    *({"project_slug": slug} for slug in SLUGS),
    *({"license": license, "minimum_python": "3.12", "author": 'A "B" \\ C'} for license in QUESTIONS["license"]),
]


@pytest.mark.parametrize("answers", CASES, ids=lambda answers: ascii(next(reversed(answers.values())))[:30])
def test_common_answers_generate_valid_project(bake, answers):
    check(bake(**answers), answers)


@pytest.mark.parametrize(("answers", "reason"), REFUSED, ids=lambda value: ascii(value)[:50])
def test_invalid_answers_are_refused_before_files_are_written(bake, tmp_path, capfd, answers, reason):
    with pytest.raises(REFUSAL):
        bake(tmp_path, **answers)
    assert not list(tmp_path.iterdir())
    if reason:
        assert reason in capfd.readouterr().err


def type_in(answers: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `cookiecutter TEMPLATE` and type the answers at its prompts."""
    typed = "".join(answers.get(name, "") + "\n" for name in QUESTIONS if not name.startswith("_"))
    command = [sys.executable, "-m", "cookiecutter", str(TEMPLATE), "--default-config", "--output-dir", str(folder)]
    utf8 = os.environ | {"PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, input=typed, env=utf8, cwd=folder, capture_output=True, encoding="utf-8")


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {
            "project_name": "山田's Net",
            "author": "Nguyễn Thị Ánh",
            "description": 'say "hi" \\ ${x} # 🙂',
            "license": "3",
        },
        {
            "project_name": "Ø",
            "author": "O'Connor",
            "email": "o'connor@example.org",
            "minimum_python": "3",
            "tutorials": "2",
        },
    ],
    ids=["defaults", "license", "names"],
)
def test_typed_answers_generate_valid_project(tmp_path, answers):
    done = type_in(answers, tmp_path)
    assert done.returncode == 0, done.stderr
    (project,) = tmp_path.iterdir()
    license = {"": "MIT", "3": "Apache-2.0"}[answers.get("license", "")]
    metadata = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata["license"] == license
    assert metadata["requires-python"] == {"": ">=3.11", "3": ">=3.13"}[answers.get("minimum_python", "")]
    assert (project / "tutorials").exists() == ("tutorials" not in answers)
    check(project, answers)


@pytest.mark.parametrize("answer", ["{{ x }}", "{{ cookiecutter.author }}", "{% if %}", "open {#"])
@pytest.mark.parametrize("question", ["project_name", "description", "author"])
def test_typed_jinja_is_refused(tmp_path, question, answer):
    done = type_in({question: answer, "project_slug": "net"}, tmp_path)
    assert done.returncode == 1
    assert (
        f"{question} is {answer!r}: it contains {answer.strip('open ')[:2]}, which Jinja would execute" in done.stderr
    )
    assert not list(tmp_path.iterdir())


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(answers=ANSWERS)
def test_random_answers_generate_valid_project_or_are_refused(bake, tmp_path_factory, answers):
    folder = tmp_path_factory.mktemp("any")
    try:
        project = bake(folder, **answers)
    except REFUSAL:
        assert not list(folder.iterdir())
    else:
        check(project, answers)
