"""What comes out of the questions, and which answers are refused."""

import json
import re
import subprocess
import sys
import tomllib
from datetime import UTC, datetime

import pytest
import yaml
from cookiecutter.exceptions import FailedHookException, OutputDirExistsException

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
    .github/workflows/ci.yml
    .gitignore
    .pre-commit-config.yaml
    LICENSE
    README.md
    configs/callbacks/default.yaml
    configs/callbacks/early_stopping.yaml
    configs/data/cifar10.yaml
    configs/data/fashion_mnist.yaml
    configs/data/image_folder.yaml
    configs/data/kmnist.yaml
    configs/data/linear.yaml
    configs/data/mnist.yaml
    configs/data/torchvision.yaml
    configs/experiment/cifar10.yaml
    configs/experiment/fashion_mnist.yaml
    configs/experiment/linear_regression.yaml
    configs/experiment/mnist.yaml
    configs/experiment/transfer.yaml
    configs/logger/csv.yaml
    configs/logger/tensorboard.yaml
    configs/model/cnn.yaml
    configs/model/cnn_wide.yaml
    configs/model/dynamic.yaml
    configs/model/linear_regression.yaml
    configs/model/mlp.yaml
    configs/model/mobilenet_v3_small.yaml
    configs/model/resnet18.yaml
    configs/model/torchvision.yaml
    configs/model/vgg11.yaml
    configs/optimizer/adagrad.yaml
    configs/optimizer/adam.yaml
    configs/optimizer/adamw.yaml
    configs/optimizer/rmsprop.yaml
    configs/optimizer/sgd.yaml
    configs/scheduler/constant.yaml
    configs/scheduler/cosine.yaml
    configs/scheduler/one_cycle.yaml
    configs/scheduler/plateau.yaml
    configs/scheduler/step.yaml
    configs/sweep/linear_regression.yaml
    configs/sweep/mnist.yaml
    configs/train.yaml
    configs/trainer/auto.yaml
    configs/trainer/cpu.yaml
    configs/trainer/ddp.yaml
    configs/trainer/fsdp.yaml
    configs/trainer/gpu.yaml
    configs/trainer/mps.yaml
    docs/hparams.png
    errors.py
    evaluate.py
    export.py
    help_page.py
    my_project/__init__.py
    my_project/callbacks/__init__.py
    my_project/callbacks/classifier_figures.py
    my_project/callbacks/curves.py
    my_project/callbacks/figures.py
    my_project/callbacks/fine_tuning.py
    my_project/callbacks/global_batch.py
    my_project/callbacks/last_checkpoint.py
    my_project/callbacks/progress.py
    my_project/callbacks/regression_figures.py
    my_project/callbacks/resumable.py
    my_project/callbacks/run_description.py
    my_project/data/__init__.py
    my_project/data/augmentation.py
    my_project/data/batches.py
    my_project/data/download.py
    my_project/data/image.py
    my_project/data/image_folder.py
    my_project/data/linear.py
    my_project/data/pictures.py
    my_project/models/__init__.py
    my_project/models/cnn.py
    my_project/models/dynamic.py
    my_project/models/image_classifier.py
    my_project/models/linear_regression.py
    my_project/models/mlp.py
    my_project/models/optimization.py
    my_project/models/torchvision_classifier.py
    predict.py
    processes.py
    pyproject.toml
    resume.py
    runs.py
    scripts/train.slurm
    sweep.py
    tests/conftest.py
    tests/test_configs.py
    tests/test_data.py
    tests/test_image_classifier.py
    tests/test_image_folder.py
    tests/test_linear_regression.py
    tests/test_matrix.py
    tests/test_mistakes.py
    tests/test_processes.py
    tests/test_readme.py
    tests/test_resume.py
    tests/test_sweep.py
    tests/test_tensorboard.py
    tests/test_torchvision.py
    tests/test_train.py
    tests/test_trust.py
    tests/test_verbs.py
    train.py
    trust.py
"""


def files(folder):
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def test_every_question_has_a_prompt_and_there_are_at_most_eight():
    questions = [name for name in QUESTIONS if not name.startswith("_")]
    assert len(questions) <= 8
    assert set(questions) == set(QUESTIONS["__prompts__"])


def test_the_files_are_exactly_these(project):
    assert project.name == "my_project"
    assert sorted(files(project)) == sorted(FILES.split())


def test_there_is_no_jinja_in_python():
    """So that a project's Python is the template's, and can be read, linted and run as it stands."""
    for name, path in files(TEMPLATE / "{{cookiecutter.project_slug}}").items():
        if path.suffix == ".py":
            assert not re.search(r"cookiecutter|{%|{#", path.read_text(encoding="utf-8")), name


@pytest.mark.parametrize("answers", [{}, AWKWARD], ids=["default", "awkward"])
def test_nothing_is_left_unrendered(bake, answers):
    for name, path in files(bake(**answers)).items():
        text = "" if path.suffix == ".png" else path.read_text(encoding="utf-8")
        assert not re.search(r"cookiecutter|{%", name + text), name
        assert "{{" not in name
        assert "{{" not in re.sub(r"\${{.*?}}", "", text) or path.suffix == ".py", name


@pytest.mark.parametrize("licence", QUESTIONS["license"])
@pytest.mark.parametrize("answers", [{}, AWKWARD], ids=["default", "awkward"])
def test_every_file_parses_and_says_what_was_answered(bake, answers, licence):
    project = bake(license=licence, **answers)
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
    assert metadata["license"] == ("LicenseRef-Proprietary" if licence == "Proprietary" else licence)

    text = (project / "LICENSE").read_text(encoding="utf-8")
    assert {"MIT": "MIT License", "BSD-3-Clause": "BSD 3-Clause", "Apache-2.0": "Apache License"}.get(
        licence, "All rights reserved"
    ) in text
    assert str(datetime.now(UTC).year) in text
    assert author in text
    readme = (project / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# {answers.get('project_name', 'My Project')}\n")
    assert answers.get("description", QUESTIONS["description"]) in readme


def test_the_slug_follows_from_the_name(bake):
    assert bake(project_name="Nguyễn's 2nd Net!").name == "nguyen_s_2nd_net"


@pytest.mark.parametrize("answers", [{}, AWKWARD], ids=["default", "awkward"])
def test_the_output_is_linted_and_formatted(bake, answers):
    project = bake(**answers)
    for command in (["check"], ["format", "--check", "--diff"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."], cwd=project, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


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
        ("runs", "already has", "runs_project"),
        ("errors", "already has", "errors_project"),
        ("tests", "already has", "tests_project"),
        ("configs", "already has", "configs_project"),
        ("outputs", "already has", "outputs_project"),
        ("con", "Windows", "con_project"),
    ],
)
def test_a_bad_slug_is_refused_with_a_reason_and_a_suggestion(bake, tmp_path, capfd, slug, reason, suggestion):
    with pytest.raises(FailedHookException):
        bake(tmp_path, project_slug=slug)
    assert not list(tmp_path.iterdir())
    message = capfd.readouterr().err
    assert repr(slug) in message
    assert reason in message
    assert repr(suggestion) in message
    bake(tmp_path, project_slug=suggestion)


@pytest.mark.parametrize("slug", ["", ".", "..", "a/b", "../up", "a\\b"])
def test_a_slug_that_is_no_folder_is_refused_before_a_folder_is_made(tmp_path, slug):
    command = [sys.executable, "-m", "cookiecutter", str(TEMPLATE), "--no-input", f"project_slug={slug}"]
    (tmp_path / "here").mkdir()
    done = subprocess.run(command, cwd=tmp_path / "here", capture_output=True, text=True)
    assert done.returncode == 1
    assert "it must be the name of one folder. Try my_project." in done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


@pytest.mark.parametrize("slug", ["net", "Net2", "match", "a"])
def test_a_good_slug_is_taken(bake, slug):
    assert (bake(project_slug=slug) / slug / "__init__.py").exists()


def test_an_existing_folder_is_left_alone(bake, tmp_path):
    mine = tmp_path / "my_project/train.py"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(OutputDirExistsException):
        bake(tmp_path)
    assert mine.read_text() == "mine"
    assert [path.name for path in tmp_path.rglob("*")] == ["my_project", "train.py"]
