"""Checks the imports between modules and the list of modules in README.md of this package."""

import ast
import re
import sys
from pathlib import Path

import pytest

from project_for_tests import COMMANDS, LIBRARY

PROJECT = LIBRARY.parent
MODULES = sorted(path for path in LIBRARY.rglob("*.py") if "tests" not in path.relative_to(LIBRARY).parts)
YOURS = sorted(
    path
    for package in PROJECT.glob("*/__init__.py")
    if package.parent != LIBRARY
    for path in package.parent.rglob("*.py")
)
FRAMEWORKS = "filelock hydra lightning matplotlib numpy omegaconf optuna PIL polars rich tensorboard torch"
FRAMEWORKS += " torchmetrics torchvision yaml onnxruntime onnxscript IPython wandb gradio"
# Names of keys of OmegaConf and Hydra.
KEYS = ("_target_", "_partial_")


def name_of(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, types: bool = True) -> set[str]:
    """Return all modules that a file imports; without those under TYPE_CHECKING if ``types`` is False."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not types:
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        ]
    package = name_of(path).split(".") if path.name == "__init__.py" else name_of(path).split(".")[:-1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def tops(path: Path) -> set[str]:
    return {module.partition(".")[0] for module in imports(path)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_imports_only_frameworks_and_this_package(path):
    assert tops(path) <= {"torch_starter", *FRAMEWORKS.split(), *sys.stdlib_module_names}


def test_modules_import_each_other_in_one_direction():
    names = {name_of(path) for path in MODULES}
    graph = {name_of(path): (imports(path, types=False) & names) - {"torch_starter"} for path in MODULES}
    done: set[str] = set()
    while left := {name for name in graph if name not in done}:
        ready = {name for name in left if graph[name] - {name} <= done}
        assert ready, f"circular imports among {sorted(left)}"
        done |= ready


def test_module_does_not_name_project_package():
    for package in {path.relative_to(PROJECT).parts[0] for path in YOURS}:
        for path in MODULES:
            assert package not in tops(path), path
            assert not re.search(rf"[\"']{package}\.\w", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("command", COMMANDS)
def test_command_imports_only_this_package_and_train(command):
    path = PROJECT / f"{command}.py"
    allowed = {"torch_starter", "hydra", "lightning", "omegaconf", *sys.stdlib_module_names}
    assert tops(path) - allowed <= ({"train"} if command in ("resume", "sweep") else set())
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


def test_project_imports_no_command():
    for path in YOURS:
        assert not tops(path) & set(COMMANDS), path


@pytest.mark.parametrize("path", [*MODULES, *YOURS, *PROJECT.glob("*.py")], ids=name_of)
def test_only_compat_uses_foreign_private_names(path):
    """Names of `self`, of this module and of its classes are not foreign."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
    foreign = {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and re.fullmatch(r"_[a-zA-Z]\w*", node.attr)
        and node.attr not in (*own, *KEYS)
    }
    imported = {name for name in imports(path) if re.search(r"\._[a-zA-Z]", name)}
    if path.name != "compat.py":
        assert foreign | imported == set()


def test_readme_lists_all_modules_and_existing_tests():
    page = (LIBRARY / "README.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:4] for line in page.splitlines() if line.startswith("| `")]
    listed = [name for cell, *_ in rows for name in re.findall(r"`([\w/]+(?:\.py|/))`", cell)]
    for path in MODULES:
        name = path.relative_to(LIBRARY).as_posix()
        if path.name != "__init__.py":
            folder, _, file = name.rpartition("/")
            assert name in listed or f"{folder}/" in listed or file in listed, name
    for _, _, cell in rows:
        tests = re.findall(r"`(?:tests/)?(test_\w+\.py)`", cell)
        assert tests
        for name in tests:
            assert (Path(__file__).parent / name).exists() or "project's" in cell, name
