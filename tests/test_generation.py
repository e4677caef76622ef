"""Test the generated files, and which slugs are refused."""

import contextlib
import json
import keyword
import re
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import PureWindowsPath

import pytest
import yaml
from cookiecutter.exceptions import FailedHookException, OutputDirExistsException
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import TEMPLATE

QUESTIONS = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))

AWKWARD = {
    "project_name": 'Jürgen\'s "best" Net',
    "project_slug": "best_net",
    "description": 'Learns "C:\\temp\\new", ${x}, 100 % and {braces}: yes # really 🙂\nand another line',
    "author": "Nguyễn Thị Ánh O'Connor \\ 山田",
    "email": "anh@example.org",
}

FILES = """
    .gitattributes
    .github/workflows/ci.yml
    .gitignore
    .pre-commit-config.yaml
    LICENSE
    README.md
    compare.py
    configs/callbacks/default.yaml
    configs/callbacks/early_stopping.yaml
    configs/callbacks/ema.yaml
    configs/data/cifar10.yaml
    configs/data/fashion_mnist.yaml
    configs/data/image_folder.yaml
    configs/data/kmnist.yaml
    configs/data/linear.yaml
    configs/data/mnist.yaml
    configs/data/table.yaml
    configs/data/torchvision.yaml
    configs/experiment/affine.yaml
    configs/experiment/cifar10.yaml
    configs/experiment/debug.yaml
    configs/experiment/fashion_mnist.yaml
    configs/experiment/linear_regression.yaml
    configs/experiment/mnist.yaml
    configs/experiment/mnist_augmented.yaml
    configs/experiment/mnist_quick.yaml
    configs/experiment/table.yaml
    configs/experiment/transfer.yaml
    configs/help.txt
    configs/logger/csv.yaml
    configs/logger/mlflow.yaml
    configs/logger/tensorboard.yaml
    configs/logger/wandb.yaml
    configs/loss/by_target.yaml
    configs/loss/cross_entropy.yaml
    configs/loss/huber.yaml
    configs/loss/mae.yaml
    configs/loss/mse.yaml
    configs/metrics/accuracy.yaml
    configs/metrics/auroc.yaml
    configs/metrics/by_target.yaml
    configs/metrics/confusion.yaml
    configs/metrics/f1.yaml
    configs/metrics/iou.yaml
    configs/metrics/mae.yaml
    configs/metrics/precision.yaml
    configs/metrics/r2.yaml
    configs/metrics/recall.yaml
    configs/metrics/rmse.yaml
    configs/metrics/top5.yaml
    configs/model/cnn.yaml
    configs/model/cnn_wide.yaml
    configs/model/dynamic.yaml
    configs/model/for/last_epoch.yaml
    configs/model/for/none.yaml
    configs/model/for/slow.yaml
    configs/model/for/table_linear_regression.yaml
    configs/model/for/table_mlp.yaml
    configs/model/image_classifier.yaml
    configs/model/linear_regression.yaml
    configs/model/logistic_regression.yaml
    configs/model/mlp.yaml
    configs/model/mobilenet_v3_small.yaml
    configs/model/resnet18.yaml
    configs/model/table_mlp.yaml
    configs/model/table_model.yaml
    configs/model/timm.yaml
    configs/model/torchvision.yaml
    configs/model/vgg11.yaml
    configs/optimizer/adagrad.yaml
    configs/optimizer/adam.yaml
    configs/optimizer/adamw.yaml
    configs/optimizer/muon.yaml
    configs/optimizer/rmsprop.yaml
    configs/optimizer/sgd.yaml
    configs/scheduler/constant.yaml
    configs/scheduler/cosine.yaml
    configs/scheduler/one_cycle.yaml
    configs/scheduler/plateau.yaml
    configs/scheduler/step.yaml
    configs/scheduler/warmup_cosine.yaml
    configs/sweep/linear_regression.yaml
    configs/sweep/mnist.yaml
    configs/train.yaml
    configs/trainer/auto.yaml
    configs/trainer/cpu.yaml
    configs/trainer/ddp.yaml
    configs/trainer/fsdp.yaml
    configs/trainer/gpu.yaml
    configs/trainer/mps.yaml
    demo.py
    AGENTS.md
    docs/commands.md
    docs/compare.png
    docs/configuration.md
    docs/deleting.md
    docs/demo.png
    docs/figures.png
    docs/hparams.png
    docs/recipes.md
    docs/runs.md
    docs/scaling.md
    evaluate.py
    export.py
    my_project/__init__.py
    my_project/data/__init__.py
    my_project/data/image.py
    my_project/data/image_folder.py
    my_project/data/linear.py
    my_project/data/table.py
    my_project/figures/__init__.py
    my_project/figures/classifier.py
    my_project/figures/regression.py
    my_project/figures/table.py
    my_project/models/__init__.py
    my_project/models/cnn.py
    my_project/models/cross_entropy.py
    my_project/models/dynamic.py
    my_project/models/image_classifier.py
    my_project/models/linear_regression.py
    my_project/models/mlp.py
    my_project/models/pretrained_classifier.py
    my_project/models/table_model.py
    my_project/models/timm_classifier.py
    my_project/models/torchvision_classifier.py
    predict.py
    pyproject.toml
    resume.py
    scripts/train.slurm
    sweep.py
    tests/conftest.py
    tests/data/galaxies.csv
    tests/test_configs.py
    tests/test_data.py
    tests/test_image_classifier.py
    tests/test_image_folder.py
    tests/test_linear_regression.py
    tests/test_matrix.py
    tests/test_readme.py
    tests/test_resuming.py
    tests/test_table.py
    tests/test_tensorboard.py
    tests/test_timm.py
    tests/test_torchvision.py
    torch_starter/README.md
    torch_starter/__init__.py
    torch_starter/callbacks/__init__.py
    torch_starter/callbacks/curves.py
    torch_starter/callbacks/device_data.py
    torch_starter/callbacks/ema.py
    torch_starter/callbacks/epoch_metrics.py
    torch_starter/callbacks/fine_tuning.py
    torch_starter/callbacks/finite_loss.py
    torch_starter/callbacks/global_batch.py
    torch_starter/callbacks/known_batches.py
    torch_starter/callbacks/known_monitors.py
    torch_starter/callbacks/last_checkpoint.py
    torch_starter/callbacks/progress.py
    torch_starter/callbacks/rate_range.py
    torch_starter/callbacks/resumable.py
    torch_starter/callbacks/run_description.py
    torch_starter/callbacks/sparse_logging.py
    torch_starter/callbacks/within_epoch.py
    torch_starter/checkpoints.py
    torch_starter/comparison/__init__.py
    torch_starter/comparison/curves.py
    torch_starter/comparison/runs.py
    torch_starter/comparison/settings.py
    torch_starter/comparison/table.py
    torch_starter/compat.py
    torch_starter/data/__init__.py
    torch_starter/data/augmentation.py
    torch_starter/data/batch_augmentation.py
    torch_starter/data/batches.py
    torch_starter/data/download.py
    torch_starter/data/evaluation.py
    torch_starter/data/drawing.py
    torch_starter/data/image_files.py
    torch_starter/data/images.py
    torch_starter/data/splits.py
    torch_starter/data/tables.py
    torch_starter/demo/__init__.py
    torch_starter/demo/display.py
    torch_starter/demo/examples.py
    torch_starter/demo/images.py
    torch_starter/demo/line.py
    torch_starter/demo/page.css
    torch_starter/demo/page.py
    torch_starter/demo/predictor.py
    torch_starter/demo/serving.py
    torch_starter/demo/sketchpad.js
    torch_starter/demo/table.py
    torch_starter/environment.py
    torch_starter/explanations.py
    torch_starter/export.py
    torch_starter/figures.py
    torch_starter/files.py
    torch_starter/help_page.py
    torch_starter/job.py
    torch_starter/learning_rate.py
    torch_starter/loaded_run.py
    torch_starter/metrics.py
    torch_starter/mistakes.py
    torch_starter/multirun.py
    torch_starter/muon.py
    torch_starter/optimization.py
    torch_starter/prediction.py
    torch_starter/prediction_output.py
    torch_starter/processes.py
    torch_starter/project.py
    torch_starter/protocols.py
    torch_starter/quiet.py
    torch_starter/resolvers.py
    torch_starter/results.py
    torch_starter/run_folder.py
    torch_starter/run_lookup.py
    torch_starter/saved_config.py
    torch_starter/schedulers.py
    torch_starter/search/__init__.py
    torch_starter/search/report.py
    torch_starter/search/space.py
    torch_starter/search/study.py
    torch_starter/search/trial.py
    torch_starter/tests/conftest.py
    torch_starter/tests/project_for_tests.py
    torch_starter/tests/small_project/configs/callbacks/default.yaml
    torch_starter/tests/small_project/configs/callbacks/early_stopping.yaml
    torch_starter/tests/small_project/configs/callbacks/ema.yaml
    torch_starter/tests/small_project/configs/data/image_folder.yaml
    torch_starter/tests/small_project/configs/data/linear.yaml
    torch_starter/tests/small_project/configs/data/mnist.yaml
    torch_starter/tests/small_project/configs/experiment/linear_regression.yaml
    torch_starter/tests/small_project/configs/experiment/mnist.yaml
    torch_starter/tests/small_project/configs/help.txt
    torch_starter/tests/small_project/configs/logger/csv.yaml
    torch_starter/tests/small_project/configs/logger/mlflow.yaml
    torch_starter/tests/small_project/configs/logger/tensorboard.yaml
    torch_starter/tests/small_project/configs/logger/wandb.yaml
    torch_starter/tests/small_project/configs/model/cnn.yaml
    torch_starter/tests/small_project/configs/model/linear_regression.yaml
    torch_starter/tests/small_project/configs/model/mlp.yaml
    torch_starter/tests/small_project/configs/optimizer/adam.yaml
    torch_starter/tests/small_project/configs/optimizer/adamw.yaml
    torch_starter/tests/small_project/configs/optimizer/muon.yaml
    torch_starter/tests/small_project/configs/optimizer/rmsprop.yaml
    torch_starter/tests/small_project/configs/optimizer/sgd.yaml
    torch_starter/tests/small_project/configs/scheduler/constant.yaml
    torch_starter/tests/small_project/configs/scheduler/cosine.yaml
    torch_starter/tests/small_project/configs/scheduler/one_cycle.yaml
    torch_starter/tests/small_project/configs/scheduler/plateau.yaml
    torch_starter/tests/small_project/configs/scheduler/step.yaml
    torch_starter/tests/small_project/configs/scheduler/warmup_cosine.yaml
    torch_starter/tests/small_project/configs/sweep/linear_regression.yaml
    torch_starter/tests/small_project/configs/sweep/mnist.yaml
    torch_starter/tests/small_project/configs/train.yaml
    torch_starter/tests/small_project/configs/trainer/auto.yaml
    torch_starter/tests/small_project/configs/trainer/ddp.yaml
    torch_starter/tests/small_project/configs/trainer/fsdp.yaml
    torch_starter/tests/small_project/configs/trainer/gpu.yaml
    torch_starter/tests/small_project/configs/trainer/mps.yaml
    torch_starter/tests/small_project/small_task/__init__.py
    torch_starter/tests/small_project/small_task/digits.py
    torch_starter/tests/small_project/small_task/image_folder.py
    torch_starter/tests/small_project/small_task/points.py
    torch_starter/tests/test_batch_augmentation.py
    torch_starter/tests/test_batches.py
    torch_starter/tests/test_comparison.py
    torch_starter/tests/test_compat.py
    torch_starter/tests/test_demo.py
    torch_starter/tests/test_device_data.py
    torch_starter/tests/test_download.py
    torch_starter/tests/test_evaluation.py
    torch_starter/tests/test_export.py
    torch_starter/tests/test_image_drawing.py
    torch_starter/tests/test_image_folder.py
    torch_starter/tests/test_logging.py
    torch_starter/tests/test_metrics.py
    torch_starter/tests/test_mistakes.py
    torch_starter/tests/test_multirun.py
    torch_starter/tests/test_own_data.py
    torch_starter/tests/test_processes.py
    torch_starter/tests/test_python.py
    torch_starter/tests/test_recipes.py
    torch_starter/tests/test_remedies.py
    torch_starter/tests/test_restored.py
    torch_starter/tests/test_resume.py
    torch_starter/tests/test_run_folder.py
    torch_starter/tests/test_seam.py
    torch_starter/tests/test_surroundings.py
    torch_starter/tests/test_sweep.py
    torch_starter/tests/test_tables.py
    torch_starter/tests/test_tracking.py
    torch_starter/tests/test_train.py
    torch_starter/tests/test_trust.py
    torch_starter/tests/test_verbs.py
    torch_starter/tests/test_within_epoch.py
    torch_starter/tracking.py
    torch_starter/trust.py
    torch_starter/untrusted_run_folders.md
    train.py
"""


# The files that the hook removes if the answer is `no`.
TUTORIALS = re.findall(
    r"^    (\S*tutorials\S*)$", (TEMPLATE / "hooks/post_gen_project.py").read_text(encoding="utf-8"), re.M
)


def files(folder):
    """Return the path of each file below a folder by its relative POSIX name."""
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def packages_of(project):
    """Return the names of all distributions that a project requires, with its extras and transitive dependencies."""
    metadata = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [
        *metadata["dependencies"],
        *(word for extra in metadata["optional-dependencies"].values() for word in extra),
    ]
    found = set()
    while needed:
        requirement = Requirement(needed.pop())
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in found:
            continue
        found.add(key)
        with contextlib.suppress(PackageNotFoundError):
            for word in distribution(key[0]).requires or []:
                marker = Requirement(word).marker
                if marker is None or any(marker.evaluate({"extra": extra}) for extra in key[1] or {""}):
                    needed.append(word)
    return {name for name, _ in found}


def test_at_most_eight_questions_each_have_a_prompt():
    questions = [name for name in QUESTIONS if not name.startswith("_")]
    assert len(questions) <= 8
    assert set(questions) == set(QUESTIONS["__prompts__"])


def test_project_has_exactly_these_files(project):
    assert project.name == "my_project"
    assert sorted(files(project)) == sorted([*FILES.split(), *TUTORIALS])


def files_mentioning(project, words):
    """Return the names of files outside the tutorials that match a regular expression."""
    texts = {name: path for name, path in files(project).items() if path.suffix != ".png" and "tutorials" not in name}
    return [name for name in sorted(texts) if re.search(words, texts[name].read_text(encoding="utf-8"), re.IGNORECASE)]


def test_declined_tutorials_leave_no_trace(bake, tmp_path):
    project = bake(tmp_path, tutorials="no")
    assert sorted(files(project)) == sorted(FILES.split())
    assert not (project / "tutorials").exists()
    assert files_mentioning(project, "tutorial|chapter") == []
    assert files_mentioning(bake(), "tutorial|chapter") == ["README.md", "docs/deleting.md", "pyproject.toml"]


def test_regenerating_without_tutorials_keeps_user_files(bake, tmp_path):
    mine = bake(tmp_path, tutorials="no") / "tutorials/mine.py"
    mine.parent.mkdir()
    mine.write_text("mine")
    command = [sys.executable, "-m", "cookiecutter", str(TEMPLATE), "--no-input", "-f", "tutorials=no"]
    subprocess.run([*command, "--default-config", "--output-dir", str(tmp_path)], check=True, capture_output=True)
    assert [path.name for path in mine.parent.iterdir()] == ["mine.py"]
    assert mine.read_text() == "mine"


def test_python_files_contain_no_jinja():
    """The template's Python files must be readable, lintable and runnable without rendering."""
    for name, path in files(TEMPLATE / "{{cookiecutter.project_slug}}").items():
        if path.suffix == ".py":
            assert not re.search(r"cookiecutter|{%|{#", path.read_text(encoding="utf-8")), name


@pytest.mark.parametrize("answers", [{}, AWKWARD, {"tutorials": "no"}], ids=["default", "awkward", "no tutorials"])
def test_every_file_is_fully_rendered(bake, answers):
    for name, path in files(bake(**answers)).items():
        text = "" if path.suffix == ".png" else path.read_text(encoding="utf-8")
        assert not re.search(r"cookiecutter|{%", name + text), name
        assert "{{" not in name
        assert "{{" not in re.sub(r"\${{.*?}}", "", text) or path.suffix == ".py", name


@pytest.mark.parametrize("license", QUESTIONS["license"])
@pytest.mark.parametrize("answers", [{}, AWKWARD], ids=["default", "awkward"])
def test_every_file_parses_and_contains_answers(bake, answers, license):
    project = bake(license=license, **answers)
    assert project.name == answers.get("project_slug", "my_project")
    for name, path in files(project).items():
        if path.suffix in (".yaml", ".yml"):
            assert yaml.safe_load(path.read_text(encoding="utf-8")), name
    metadata = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata["name"] == project.name
    author = answers.get("author", QUESTIONS["author"])
    assert metadata["authors"][0]["name"] == author
    assert metadata["authors"][0].get("email", "") == answers.get("email", "")
    assert metadata["description"] == " ".join(answers.get("description", QUESTIONS["description"]).split())
    assert metadata["requires-python"] == ">=3.11"
    assert metadata["license"] == ("LicenseRef-Proprietary" if license == "Proprietary" else license)

    text = (project / "LICENSE").read_text(encoding="utf-8")
    assert {"MIT": "MIT License", "BSD-3-Clause": "BSD 3-Clause", "Apache-2.0": "Apache License"}.get(
        license, "All rights reserved"
    ) in text
    assert str(datetime.now(UTC).year) in text
    assert author in text
    readme = (project / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# {answers.get('project_name', 'My Project')}\n")
    assert answers.get("description", QUESTIONS["description"]) in readme


def test_default_slug_derives_from_name(bake):
    assert bake(project_name="Nguyễn's 2nd Net!").name == "nguyen_s_2nd_net"


@pytest.mark.parametrize("minimum_python", QUESTIONS["minimum_python"])
@pytest.mark.parametrize("answers", [{}, AWKWARD, {"tutorials": "no"}], ids=["default", "awkward", "no tutorials"])
def test_project_is_linted_and_formatted(bake, answers, minimum_python):
    project = bake(minimum_python=minimum_python, **answers)
    for command in (["check"], ["format", "--check", "--diff"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."], cwd=project, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def type_errors(project, *arguments):
    command = [sys.executable, "-m", "pyrefly", "check", "--output-format", "min-text", *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if line.startswith("ERROR")]


def test_types_are_correct(project):
    assert type_errors(project) == []
    (project / "mistake.py").write_text("from torch_starter import results\n\nresults.report(1)\n")
    assert len(type_errors(project)) == 2, "the type checker missed deliberate errors"


def test_project_uses_nothing_missing_on_windows(project):
    """The type checker must find no attribute that is missing on Windows, such as os.fork or signal.SIGKILL."""
    windows, linux = (
        type_errors(project, "--error", "missing-attribute", "--python-platform", platform)
        for platform in ("win32", "linux")
    )
    assert windows == linux
    (project / "mistake.py").write_text("import os\n\nos.fork()\n")
    assert len(type_errors(project, "--error", "missing-attribute", "--python-platform", "win32")) == len(linux) + 1


@pytest.mark.parametrize("answers", [{}, AWKWARD], ids=["default", "awkward"])
def test_file_names_are_legal_on_windows_and_macos(bake, answers):
    for folder in (TEMPLATE / "{{cookiecutter.project_slug}}", bake(**answers)):
        names = [PureWindowsPath(name) for name in files(folder)]
        assert len({str(name).lower() for name in names}) == len(names)
        for name in names:
            assert is_legal_on_windows(name), name


def is_legal_on_windows(path: PureWindowsPath) -> bool:
    """Return whether Windows allows a path (https://learn.microsoft.com/windows/win32/fileio/naming-a-file)."""
    return not path.is_reserved() and not any(re.search(r'[<>:"|?*\x00-\x1f]|[. ]$', part) for part in path.parts)


@pytest.mark.parametrize(
    ("slug", "reason", "suggestion"),
    [
        ("my-net", "letters a to z", "my_net"),
        ("3d_net", "letters a to z", "project_3d_net"),
        ("_net", "letters a to z", "net"),
        ("net_", "letters a to z", "net"),
        ("my net", "letters a to z", "my_net"),
        ("山田", "letters a to z", "my_project"),
        ('a"b', "letters a to z", "a_b"),
        ("class", "keyword", "class_project"),
        ("None", "keyword", "none_project"),
        ("json", "standard library", "json_project"),
        ("Random", "standard library", "random_project"),
        ("torch", "imports", "torch_project"),
        ("torchvision", "imports", "torchvision_project"),
        ("lightning", "imports", "lightning_project"),
        ("hydra", "imports", "hydra_project"),
        ("omegaconf", "imports", "omegaconf_project"),
        ("train", "already has", "train_project"),
        ("resume", "already has", "resume_project"),
        ("torch_starter", "already has", "torch_starter_project"),
        ("tests", "already has", "tests_project"),
        ("configs", "already has", "configs_project"),
        ("outputs", "already has", "outputs_project"),
        ("con", "Windows", "con_project"),
    ],
)
def test_invalid_slug_is_refused_with_reason_and_suggestion(bake, tmp_path, capfd, slug, reason, suggestion):
    with pytest.raises(FailedHookException):
        bake(tmp_path, project_slug=slug)
    assert not list(tmp_path.iterdir())
    message = capfd.readouterr().err
    assert repr(slug) in message
    assert reason in message
    assert repr(suggestion) in message
    bake(tmp_path, project_slug=suggestion)


def test_slug_cannot_hide_required_module(bake, tmp_path):
    """Check the project's own scripts, tests and folders, and every module of every package it requires."""
    project = bake(tmp_path)
    folders = (project, project / "tests", project / "torch_starter/tests")
    names = {path.stem for folder in folders for path in folder.iterdir() if path.stem != project.name}
    needed = packages_of(project)
    for module, distributions in packages_distributions().items():
        if needed & {canonicalize_name(name) for name in distributions}:
            names.add(module)
    names = {name for name in names if name.isidentifier() and not name.startswith("_")}
    assert {"train", "conftest", "torch", "sympy", "configs"} <= names
    taken = set(" ".join(QUESTIONS["_taken_by_packages"] + QUESTIONS["_taken_by_project"]).split())
    assert sorted({name.lower() for name in names} - taken) == []


def test_default_slug_avoids_python_modules_and_keywords():
    names = {name.lower() for name in sys.stdlib_module_names if not name.startswith("_")}
    names |= {name for name in keyword.kwlist if name.islower()}
    assert sorted(names - set(" ".join(QUESTIONS["_taken_by_python"]).split())) == []


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("3D Vision", "project_3d_vision"),
        ("class", "class_project"),
        ("torch", "torch_project"),
        ("Train", "train_project"),
        ("JSON", "json_project"),
        ("PIL", "pil_project"),
        ("Con", "con_project"),
        ("torch starter", "torch_starter_project"),
        ("Test data", "test_data_project"),
        ("word " * 14, "word_word_word_word_word_word_word_word_word_word"),
        ("x" * 70, "x" * 50),
        ("日本", "ri_ben"),
        ("…", "my_project"),
        ("!!!", "my_project"),
    ],
)
def test_default_slug_is_valid_for_any_name(bake, name, slug):
    assert bake(project_name=name).name == slug


@pytest.mark.parametrize("slug", ["", ".", "..", "a/b", "../up", "a\\b"])
def test_slug_that_is_not_a_folder_name_creates_nothing(tmp_path, slug):
    command = [sys.executable, "-m", "cookiecutter", str(TEMPLATE), "--no-input", f"project_slug={slug}"]
    (tmp_path / "here").mkdir()
    done = subprocess.run(command, cwd=tmp_path / "here", capture_output=True, text=True)
    assert done.returncode == 1
    assert "it must be the name of one folder. Try my_project." in done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


@pytest.mark.parametrize("slug", ["net", "Net2", "match", "a"])
def test_valid_slug_is_accepted(bake, slug):
    assert (bake(project_slug=slug) / slug / "__init__.py").exists()


def test_existing_folder_is_unchanged(bake, tmp_path):
    mine = tmp_path / "my_project/train.py"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(OutputDirExistsException):
        bake(tmp_path)
    assert mine.read_text() == "mine"
    assert [path.name for path in tmp_path.rglob("*")] == ["my_project", "train.py"]
