"""Commands, recipes and reference tables of README.md and docs/, compared with the code."""

import hashlib
import os
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import numpy
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torchvision.models import MobileNet_V3_Small_Weights, mobilenet_v3_small

import torch_starter
from conftest import PACKAGE, ROOT, copy_project, draw_digits, skip_if_deleted, write_idx_pair, write_images

PAGES = {
    path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
TEXT = "\n".join(text for name, text in PAGES.items() if name != "deleting.md")
CHOICES_OF_RECIPES = ("model=lenet", "data=temperature", "optimizer=nadam", "callbacks=summary", "logger=table")
CHOICES_OF_RECIPES += ("loss=weighted_sum", "metrics=[r2,pearson]", "experiment=shapes")
RECIPES = [
    (heading, text)
    for page in ("README.md", "recipes.md")
    for heading, text in re.findall(r"^### (.+?)\n(.*?)(?=^##|\Z)", PAGES[page], re.DOTALL | re.MULTILINE)
    if "```sh" in text
]
VERBS = ("resume", "evaluate", "predict", "export", "demo", "compare", "sweep")


def commands(text: str) -> list[list[str]]:
    """The arguments of each `python train.py …` in the sh blocks of a text."""
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).splitlines()
    return [shlex.split(line, comments=True)[2:] for line in lines if line.startswith("python train.py")]


@pytest.mark.parametrize("arguments", commands(TEXT), ids=" ".join)
def test_every_command_composes(arguments):
    if arguments == ["--help"]:
        return
    if "hydra/launcher=joblib" in arguments:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason='needs pip install -e ".[sweep]"')
    if "experiment=shapes" in arguments:
        return  # its keys are in the file of the recipe
    overrides = [re.sub(r",.*", "", argument) for argument in arguments if argument != "-m" and "[" not in argument]
    overrides = [override for override in overrides if override not in CHOICES_OF_RECIPES]  # those are run below
    skip_if_deleted(overrides)
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        compose("train", overrides)


def overrides(text: str) -> list[str]:
    """Return the overrides of `train.py` in the prose of a text, such as `trainer.max_epochs=10`."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", prose)
    return sorted({span for span in spans if all(re.fullmatch(r"'?[+~\w].*=.+|'~\w+'", word) for word in span.split())})


# Followed in test_processes.py, test_torchvision.py, test_image_folder.py or a recipe.
ELSEWHERE = ("trainer=", "trainer.num_nodes", "trainer.sync_batchnorm", "model", "data.dataset", "data.split_of")
ELSEWHERE += ("data.skip_broken", "data.balance", 'data.root="', "experiment=transfer", "weights_strict")
# In test_configs.py, test_tracking.py, test_multirun.py.
ELSEWHERE += ("'experiment=[mnist,debug]'", "logger=wandb", "logger=mlflow", "logger.wandb", "hydra.sweep.dir")
# No overrides of train.py.
ELSEWHERE += ("weights_only", "WANDB_MODE", "KEY=VALUE", "GROUP=CHOICE", "trainer.devices", "trainer.fast_dev_run")


# In the first column of a table of keys.
KEYS = re.findall(r"^\| `(\S+=[^`]+)` \|", PAGES["configuration.md"], re.MULTILINE)
OF_TABLES = ("data.task", "data.features", "data.ignore", "data.categories", "data.split_column", "data.shuffle")
OF_TABLES += ("data.target", "loss.weight", "'loss.weight")


@pytest.mark.slow
@pytest.mark.parametrize("span", [span for span in overrides(TEXT) if not span.startswith(ELSEWHERE)])
def test_every_override_of_the_text_trains(span, train, request, tmp_path):
    is_of_tables = span.startswith(OF_TABLES)
    of_images = ("data.", "metrics=", "'metrics=[a", "trainer.limit_train_batches", "+optimizer.no_decay")
    is_of_images = not is_of_tables and span.startswith(of_images)
    span = span.replace("val/NAME", "val/loss").replace("COLUMN", "split")
    if "RUN" in span:
        (run,) = train("trainer.max_epochs=2")
        span = span.replace("RUN", str(run))
    arguments = shlex.split(span.replace("NAME", "regression_figures" if "callbacks" in span else "tensorboard"))
    if is_of_tables:
        write_houses(tmp_path / "houses.csv", 60, more="id;zip;garden;split")
        target = {"data.task=classification": "rooms"}.get(span, "garden" if "loss" in span else "price")
        loss = ["loss=cross_entropy"] if "loss" in span else []
        arguments = ["experiment=table", "data.file=houses.csv", f"data.target={target}", *loss, *arguments]
    elif "callbacks.early_stopping" in span:
        arguments = ["callbacks=early_stopping", *arguments]
    elif "scheduler.monitor" in span:
        arguments = ["scheduler=plateau", *arguments]
    elif is_of_images:
        folder = request.getfixturevalue("digits")
        arguments = ["experiment=mnist", f"data.root={folder}", "data.num_val=100", "data.batch_size=50", *arguments]
        arguments = [argument.replace("FOLDER", str(folder)) for argument in arguments]
    train(*(["trainer.max_epochs=3"] if "max_epochs" not in span else []), *arguments)
    assert list(tmp_path.glob("**/results.json"))


@pytest.mark.slow
def test_a_notebook_shows_the_worst_mistakes(train, digits, tmp_path):
    skip_if_deleted(["experiment=mnist"])
    nbformat = pytest.importorskip("nbformat", reason="needs pip install nbclient ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="needs pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="needs pip install nbclient ipykernel")
    train("experiment=mnist", f"data.root={digits}", "data.num_val=100", "trainer.max_epochs=1")
    (code,) = re.findall(r"in a notebook:\n\n```python\n(.*?)```", PAGES["commands.md"], re.DOTALL)
    shown = "\nimport hashlib; print(hashlib.sha256(images[worst].numpy().tobytes()).hexdigest())"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code + shown)])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute(env=environment)
    outputs = notebook.cells[0].outputs
    assert any("image/png" in output.get("data", {}) for output in outputs)
    run = torch_starter.load_run(next(tmp_path.glob("outputs/mnist/*")))
    run.data.setup("test")
    images, labels = map(torch.cat, zip(*run.data.test_dataloader(), strict=True))
    with torch.inference_mode():
        losses = torch.nn.functional.cross_entropy(run.model(images), labels, reduction="none")
    expected = hashlib.sha256(images[losses.topk(8).indices].numpy().tobytes()).hexdigest()
    assert expected in "".join(output.get("text", "") for output in outputs)


def test_the_table_of_groups_is_complete():
    table = PAGES["configuration.md"].partition("| group | choices |")[2].partition("\n\n")[0]
    for group in (path for path in (ROOT / "configs").iterdir() if path.name != "hydra"):
        row = re.search(rf"^\| `{group.name}` \| (.*) \|$", table, re.MULTILINE)
        assert row or not group.is_dir(), f"{group.name} is missing"
        for choice in group.glob("*.yaml"):
            assert f"`{choice.stem}`" in row[1], f"{group.name}={choice.stem} is missing"


@pytest.mark.parametrize("span", KEYS)
def test_every_key_of_the_table_exists(span):
    base = ["data=image_folder", "model=cnn"] if span.startswith("data.balance") else ["experiment=mnist"]
    skip_if_deleted(base)
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        compose("train", [*base, *shlex.split(span)])


def test_the_help_page_lists_keys_of_the_table():
    listed = re.findall(r"^  ([\w.]+)=\S+ ", (ROOT / "configs/help.txt").read_text(encoding="utf-8"), re.MULTILINE)
    documented = {override.partition("=")[0].lstrip("+") for span in KEYS for override in span.split()}
    assert len(listed) == 12
    assert set(listed) - {"metrics"} <= documented, "metrics is a group"


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_documented(script, capsys, verb):
    with pytest.raises(SystemExit, match=r"^0$"):
        script(f"{verb}.py", "--help")
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert options <= set(re.findall(r"--[a-z-]+", PAGES["commands.md"]))
    for line in re.findall(rf"^python {verb}\.py .*", TEXT, re.MULTILINE):
        assert set(re.findall(r"--[a-z-]+", line.partition("#")[0])) <= options, line


def test_the_tree_of_a_run_folder_is_complete(train):
    names = re.findall(r"[├└]── (\S+)", PAGES["runs.md"])
    (run,) = train("trainer.max_epochs=2")
    for path in run.rglob("*"):
        assert any(path in run.rglob(name.rstrip("/")) for name in names) or path.is_dir() or ".hydra" in path.parts, (
            path
        )
    for name in set(names) - {"tracking.json", "wandb/", "split.csv", "error.txt"}:
        assert list(run.glob(name)), name


def write_houses(path: Path, count: int, more: str = "") -> None:
    """Args: more: the names of further columns: all of ``id;zip;garden;split``, or none."""
    generator = numpy.random.default_rng(0)
    lines = [f"size;rooms;city;price;{more}".rstrip(";")]
    for number in range(count):
        size, rooms, city = generator.uniform(40, 160), generator.integers(1, 6), ("Bonn", "Ulm", "Trier")[number % 3]
        price = 3000 * size + 20_000 * rooms + 50_000 * (city == "Bonn")
        cells = [f"{size:.1f}".replace(".", ","), rooms if number % 7 else "", city, f"{price:.0f}"]
        if more:
            garden, split = "yes" if size > 100 else "no", ("train", "train", "test")[number % 3]
            cells += [number, 53000 + number % 5, garden, split]
        lines.append(";".join(map(str, cells)))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")


def write_shapes(folder: Path, count: int) -> None:
    """Images of a red disk and a blue square on noise, and masks with 0, 1 and 2 in them."""
    generator = numpy.random.default_rng(0)
    y, x = numpy.mgrid[:32, :32]
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        mask = numpy.zeros((32, 32), numpy.uint8)
        (a, b), (top, left) = generator.integers(6, 26, 2), generator.integers(2, 22, 2)
        mask[(y - a) ** 2 + (x - b) ** 2 < 25] = 1
        mask[top : top + 8, left : left + 8] = 2
        colors = numpy.array([(60, 60, 60), (200, 60, 60), (60, 60, 200)])[mask]
        pixels = (colors + generator.integers(-50, 50, colors.shape)).clip(0, 255).astype(numpy.uint8)
        Image.fromarray(pixels).save(folder / f"images/{number}.png")
        Image.fromarray(mask).save(folder / f"masks/{number}.png")


@pytest.mark.parametrize(("name", "recipe"), RECIPES, ids=[name for name, _ in RECIPES])
def test_the_recipe_works(name, recipe, tmp_path, monkeypatch):
    assert commands(recipe)
    for arguments in commands(recipe):
        skip_if_deleted([argument for argument in arguments if argument not in CHOICES_OF_RECIPES])
    project = tmp_path
    copy_project(project)
    for path, block in re.findall(r"`([\w/]+\.\w+)`:\n\n```\w+\n(.*?)```", recipe, re.DOTALL):
        assert not (project / path).exists()
        (project / path).write_text(block, encoding="utf-8")
    raw = project / "data/MNIST/raw"
    raw.mkdir(parents=True)
    write_idx_pair(raw, "train", 6000, seed=0)
    write_idx_pair(raw, "t10k", 200, seed=1)
    write_images(project / "IMAGES", 6, seed=0)
    write_houses(project / "houses.csv", 60)
    write_shapes(project / "SHAPES", 40)
    shutil.copy(project / "IMAGES/red/0_00.jpg", project / "PHOTO.jpg")
    # Weights where torch looks before it downloads them.
    weights = project / "torch/hub/checkpoints" / Path(MobileNet_V3_Small_Weights.DEFAULT.url).name
    weights.parent.mkdir(parents=True)
    torch.save(mobilenet_v3_small().state_dict(), weights)
    monkeypatch.setenv("TORCH_HOME", str(project / "torch"))

    # As if the process were new: nothing of the project is imported yet.
    for module in list(sys.modules):
        if module.partition(".")[0] in (PACKAGE, "torch_starter", *(script.stem for script in ROOT.glob("*.py"))):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(project)
    monkeypatch.chdir(project)
    for line in re.findall(r"^python .*", recipe, re.MULTILINE):
        _, script, *arguments = shlex.split(line)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(script, run_name="__main__")
    assert list(project.glob("outputs/*/*/results.json"))


@pytest.mark.slow
def test_the_other_verbs_work_as_written(train, script, digits, tmp_path):
    small = [f"data.root={digits}", "data.num_val=100", "data.batch_size=50", "trainer.max_epochs=1"]
    write_houses(tmp_path / "houses.csv", 60)
    write_houses(tmp_path / "rows.csv", 2)
    houses = ["experiment=table", "data.file=houses.csv", "data.target=price", "trainer.max_epochs=2"]
    (line,), (classifier,), (table,) = train("trainer.max_epochs=2"), train("experiment=mnist", *small), train(*houses)
    (tmp_path / "IMAGES").mkdir()
    for path in ("IMAGES/three.png", "one.jpg"):
        Image.fromarray(draw_digits(1, seed=1)[0][0].numpy()).save(tmp_path / path)
    block = PAGES["README.md"].partition("## Use")[2].partition("```sh\n")[2].partition("```")[0]
    for _, name, *arguments in (shlex.split(command, comments=True) for command in block.splitlines()):
        if not (ROOT / name).exists() or name in ("demo.py", "sweep.py"):  # which wait, or search for minutes
            continue
        run = classifier if "IMAGES/" in arguments else table if "rows.csv" in arguments else line
        if name == "export.py":
            pytest.importorskip("onnxruntime", reason='it is not installed: pip install -e ".[export]"')
        script(name, *(str(run) if argument == "RUN" else argument for argument in arguments))
    assert (tmp_path / "predictions.csv").read_text().count("\n") == 3
    assert (line / "model.onnx").exists() == (ROOT / "export.py").exists()
