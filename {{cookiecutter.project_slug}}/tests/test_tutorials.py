"""Run the chapters of tutorials/, check their numbers, and answer their exercises."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import nn
from torchvision.models import ResNet18_Weights

from conftest import ROOT, copy_project, environment, skip_if_deleted

TUTORIALS = ROOT / "tutorials"
CHAPTERS = sorted(path.stem for path in TUTORIALS.glob("[0-9]*.py"))
WEAVE = runpy.run_path(str(TUTORIALS / "vi/weave.py"))
# Parts of the project that a chapter trains, and that users may delete.
TRAINED = {
    "5_linear_regression": ["experiment=linear_regression", "experiment=table"],
    "8_lightning_and_hydra": ["experiment=mnist"],
}


def parse(source: str) -> list[tuple[bool, str]]:
    """Return the cells of a chapter: whether each is text, and its Markdown or Python."""
    parts = re.split(r"^# %%(.*)\n", source, flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [(True, re.sub(r"^# ?", "", body, flags=re.M)) if kind.strip() else (False, body) for kind, body in pairs]


def cells(chapter: str) -> list[tuple[bool, str]]:
    """Return the cells of an English chapter."""
    return parse((TUTORIALS / f"{chapter}.py").read_text(encoding="utf-8"))


def text(chapter: str) -> str:
    """Return all text of a chapter in one line."""
    return " ".join(" ".join(body for is_text, body in cells(chapter) if is_text).split())


def prose(chapter: str) -> str:
    """Return the text without code and addresses."""
    return " ".join(re.sub(r"`[^`]*`|https?://\S+", "", text(chapter)).split())


def code_lines(chapter: str, heading: str) -> list[int]:
    """Count the lines of each code cell below a heading that are neither empty nor comments."""
    below, counts = "", []
    for is_text, body in cells(chapter):
        below = (re.findall(r"^#+ (.*)", body, re.MULTILINE) or [below])[-1] if is_text else below
        lines = [line for line in body.splitlines() if line.strip() and not line.startswith("#")]
        if not is_text and lines and below == heading:
            counts.append(len(lines))
    return counts


BY_HAND, WITH_LIGHTNING, WITH_HYDRA = (
    code_lines("8_lightning_and_hydra", heading) for heading in ("By hand", "With Lightning", "With Hydra")
)
NUMBERS = r"r'(?:slope|intercept|noise|num_train): (\d+)'"
# Phrases of a chapter, and expressions that are true after it has run; "" for facts that PyTorch does not know.
CLAIMS = {
    "1_tensors": [
        ("about 7 digits", "1e-7 < torch.finfo(torch.float32).eps < 1e-6"),
        ("of 1000 × 1000 takes 2 billion", "left.shape == right.shape == (1000, 1000) and 2 * 1000**3 == 2e9"),
        ("x² + 3 at x = [1, 2] is computed at once, and is [4, 7]", "y.tolist() == [4, 7]"),
        (
            "along a dimension that is missing or has size 1",
            "torch.equal(table - table[:, :1], table - table[:, :1].repeat(1, 2))",
        ),
        ("(3, 2) and (2,) fit", "(table - torch.zeros(2)).shape == (3, 2)"),
        ("so do (3, 2) and (3, 1)", "(table - torch.zeros(3, 1)).shape == (3, 2)"),
        ("the sum of x² + 3 the derivative is 2x, here [2, 4]", "x.grad.tolist() == [2, 4]"),
    ],
    "2_autograd": [
        ("y = x² + 3x + 1, so dy/dx = 2x + 3. At x = 2, y is 11 and dy/dx = 7", "y == 11 and twice == 7 + 7"),
        ("starts at the top with a 1,", "y.grad_fn(torch.tensor(1.0))[0] == 1"),
        ("passes on 2x, which is 4,", "torch.func.grad(lambda x: x**2)(torch.tensor(2.0)) == 4"),
        (
            "passes on 3, and where two arrows meet the gradients are added: 7",
            "torch.func.grad(lambda x: 3 * x)(x) == 7 - 4",
        ),
        ("x.grad is 14, not 7", "twice == 14"),
        ("cos(x²) · 2x", "abs(by_autograd - math.cos(x.item() ** 2) * 2 * x.item()) < 1e-15"),
        ("divides by 2h", "by_difference(1e-4) == (math.sin((2 + 1e-4) ** 2) - math.sin((2 - 1e-4) ** 2)) / 2e-4"),
        ("the error falls with h²", "99 < errors[1] / errors[2] < 101"),
        ("near h = 0.000001, ten digits are right", "1e-7 <= steps[errors.index(min(errors))] <= 1e-5"),
        ("ten digits", "min(errors) / abs(by_hand) < 1e-10"),
    ],
    "3_model_and_loop": [
        ("Four points lie on the line y = 2x + 1", "x.shape == (4, 1) and torch.equal(y, 2 * x + 1)"),
        ("here (4, 1), four samples of one number", "x.shape == (4, 1)"),
        ("The learning rate, 0.01,", "optimizer.param_groups[0]['lr'] == 0.01"),
        ("minus 0.01 times its gradient", "optimizer.param_groups[0]['momentum'] == 0"),
        ("f(5) is near 11, which is 2 · 5 + 1", "abs(at_5 - 11) < 0.1"),
        ("there was no point at 5", "5 not in x"),
        ("After 50 epochs the line is y = 1.94 x + 1.17", "[round(n, 2) for n in lines[2]] == [50, 1.94, 1.17]"),
        ("150 epochs later it is only y = 1.96 x + 1.11", "[round(n, 2) for n in lines[3]] == [50 + 150, 1.96, 1.11]"),
        ("takes 3 numbers per sample and returns 2", "layer(torch.zeros(7, 3)).shape == (7, 2)"),
        ("Its weight is (2, 3)", "layer.weight.shape == (2, 3)"),
        ("its bias is (2,)", "layer.bias.shape == (2,)"),
        ("That is 8 parameters", "sum(parameter.numel() for parameter in layer.parameters()) == 8"),
        ("its default since PyTorch 2.6", ""),
    ],
    "4_optimizers": [
        ("50 times as curved", "valley((0.0, 1.0)) == 50 * valley((1.0, 0.0))"),
        ("SGD takes 171 steps", "steps['SGD']['valley'] == 171"),
        ("with the learning rate 0.03", "OPTIMIZERS['SGD']([nn.Parameter(torch.zeros(2))]).defaults['lr'] == 0.03"),
        ("A larger rate would be faster along the valley", "walk(lambda p: SGD(p, lr=0.039))[1] < 171"),
        ("from 2/50 = 0.04 on, SGD bounces out", "walk(lambda p: SGD(p, lr=0.041))[1] is None"),
        ("Momentum takes 107", "steps['momentum']['valley'] == 107"),
        ("RMSprop 83", "steps['RMSprop']['valley'] == 83"),
        ("Adagrad 101", "steps['Adagrad']['valley'] == 101"),
        ("Adam 102", "steps['Adam']['valley'] == 102"),
        ("Multiply the loss by 1000", "VALLEYS['loss times 1000'] == {'scale': 1000}"),
        ("SGD and momentum diverge", "{steps[name]['loss times 1000'] for name in ('SGD', 'momentum')} == {None}"),
        ("their steps are 1000 times as long", "valley((1, 1), scale=1000) == 1000 * valley((1, 1))"),
        ("Adam takes the same 102 steps", "steps['Adam']['loss times 1000'] == 102"),
        (
            "RMSprop and Adagrad take the same as before",
            "{steps[n]['loss times 1000'] for n in ('RMSprop', 'Adagrad')} == {83, 101}",
        ),
        ("its default, 0.001", "Adam([nn.Parameter(torch.zeros(2))]).defaults['lr'] == 0.001"),
        ("Turn the valley by 45°", "VALLEYS['turned by 45°'] == {'turn': math.pi / 4}"),
        ("171 and 107 steps again", "[steps[name]['turned by 45°'] for name in ('SGD', 'momentum')] == [171, 107]"),
        ("it needs 136, Adagrad 312", "[steps[name]['turned by 45°'] for name in ('Adam', 'Adagrad')] == [136, 312]"),
        ("RMSprop never settles", "steps['RMSprop']['turned by 45°'] is None"),
        ("Adam takes 96 steps", "steps['Adam']['round'] == 96"),
        ("with the learning rate 1 reaches the middle in 1 step", "in_a_round_bowl == 1"),
    ],
    "5_linear_regression": [
        ("A line through 100 points", "len(x) == 100"),
        ("y = 3x + 2 plus noise, for 100 points x in [-10, 10]", "[len(x), x.min(), x.max()] == [100, -10, 10]"),
        ("The noise has standard deviation 2, so its variance is 4", "1.8 < (y - 3 * x - 2).std() < 2.2"),
        ("w is near 3 (2.965), b near 2 (2.12)", "(round(weight, 3), round(bias, 2)) == (2.965, 2.12)"),
        ("f(4) near 14 (13.98), which is 3 · 4 + 2", "round(weight * 4 + bias, 2) == 13.98"),
        ("the point where its gradient is 0", "abs((columns.T @ (best_weight * x + best_bias - y)).sum()) < 0.01"),
        ("It finds y = 2.994 x + 2.12.", "(round(best_weight, 3), round(best_bias, 2)) == (2.994, 2.12)"),
        ("does not go to 0 It goes to the variance of the noise, 4", "3 < losses[-1] < 5"),
        ("A loss near 0 would mean", "best_loss > 3"),
        ("Here the loop ends at 3.88", "round(losses[-1], 2) == 3.88"),
        ("the best line has 3.85: a little less than 4", "round(best_loss, 2) == 3.85"),
        (
            "with 2 numbers and 100 points, the average is 4 · 98/100 = 3.92",
            "abs(residuals.square().mean() - 3.92) < 0.05",
        ),
        ("A thousand data sets", "residuals.shape == (100, 1000)"),
        ("on average a little above 4", "abs(test_loss - 4) < 1"),
        ("Its learning rate is 0.02", "'lr: 0.02' in (ROOT / 'configs/optimizer/adam.yaml').read_text()"),
        ("With 0.01, and on the CPU, it is the loop above", "optimizer.defaults['lr'] == 0.01"),
        ("the same to six digits", "abs(weights['linear.weight'].item() / weight - 1) < 1e-6"),
        (
            "with the numbers 3, 2, 2 and 100 in",
            f"re.findall({NUMBERS}, (ROOT / 'configs/data/linear.yaml').read_text()) == ['3', '2', '2', '100']",
        ),
        ("in 1929 Edwin Hubble", ""),
        ("how far away 24 galaxies are", "len(distances) == 24"),
        ("by some 400 km/s", "380 < far - near < 420"),
        ("The closed form gives 454", "round(slope.item()) == 454"),
    ],
    "6_torchvision": [
        ("60000 images for training, 10000 for testing, 12 MB", ""),
        ("(1, 28, 28), one gray channel, 28 rows, 28 columns", "image.shape == (1, 28, 28)"),
        ("from 0 for black to 255", "(image.min(), image.max()) == (0, 255)"),
        ("between 0 and 1", "v2.ToDtype(torch.float32, scale=True)(image).max() == 1"),
        ("numbers around 0", "normalized.min() < 0 < normalized.max()"),
        (
            "For MNIST they are 0.1307 and 0.3081",
            "[*transform.transforms[2].mean, *transform.transforms[2].std] == [0.1307, 0.3081]",
        ),
        ("black becomes −0.42, white 2.82", "f'{normalized.min():.2f} {normalized.max():.2f}' == '-0.42 2.82'"),
        ("a 6 turned by 180° is a 9", ""),
        ("downloads 45 MB of weights", "44.5 < weights.meta['_file_size'] < 45.5"),
        ("from 1.28 million photos", ""),
        ("of 1000 classes", "len(weights.meta['categories']) == 1000"),
        (
            "(69.758 % on the validation images of ImageNet)",
            "weights.meta['_metrics']['ImageNet-1K']['acc@1'] == 69.758",
        ),
        ("The photo of 400 × 300 becomes (3, 224, 224)", "(photo.size, *batch.shape) == ((400, 300), 1, 3, 224, 224)"),
        ("the output is 1000 logits", "logits.shape == (1, 1000)"),
        ("5,130 of 11,181,642 parameters for 10 classes", "(trained, total) == (5130, 11181642)"),
        ("| 0 to 255, or 0 to 1 | 0 to 255 |", "from_opencv.dtype == numpy.uint8 and image.dtype == torch.uint8"),
    ],
    "7_dynamic_graphs": [
        ("3 graphs: 2 with the first positive input, 1 more with the first negative one", "graphs_before == 3"),
        ("the first graph computes the sum", "'sum' in str(graphs[0]) and 'linear' not in str(graphs[0])"),
        ("each path is a graph of its own", "[str(graph).count('linear') for graph in graphs[1:3]] == [2, 1]"),
        ("after the negative input and have none", "network.first.weight.grad is None"),
        ("nothing to decide: 1 graph for all inputs", "graphs_of_both == 1 and same == [True, True]"),
    ],
    "8_lightning_and_hydra": [
        ("All three end with the same weights", "largest == 0 if device.type == 'cpu' else largest < 0.01"),
        ("numbers between 0 and 1", "(images.min(), images.max()) == (0, 1)"),
        ("above, in 60 lines", "len((ROOT / 'train.py').read_text(encoding='utf-8').splitlines()) == 60"),
        ("by hand | 36 |", f"{sum(BY_HAND)} == 36 and test_accuracy > 0.9"),
        (
            "with Lightning | 27 |",
            f"{sum(WITH_LIGHTNING)} == 27 and abs(with_lightning['test/acc'] - test_accuracy) < 1e-3",
        ),
        ("with Hydra | 24 |", f"{WITH_HYDRA[0]} == 24 and with_sgd['test/acc'] > 0.8"),
        ("16-bit precision", "Trainer(precision='bf16-mixed', logger=False, barebones=True).precision == 'bf16-mixed'"),
        ("the next experiment is 0 lines of Python", "with_sgd != with_hydra"),
        ("in this project | 0 |", "(ROOT / 'predict.py').exists()"),
        ("come on top of the 20 of the LightningModule", f"{WITH_LIGHTNING} == [20, 7]"),
    ],
}

# Runs `python CHAPTER` and prints which expressions are true of its variables.
RUN = """
import json, pathlib, runpy, sys
chapter, expressions = sys.argv[1], json.loads(sys.argv[2])
sys.path[0] = str(pathlib.Path(chapter).parent)
names = runpy.run_path(chapter, run_name="__main__")
names["ROOT"] = pathlib.Path.cwd()
print(json.dumps([bool(eval(expression, names)) for expression in expressions]))
"""


@pytest.fixture
def project(tmp_path) -> Path:
    """Return a copy of the project that the chapters may write to."""
    copy_project(tmp_path)
    shutil.copytree(TUTORIALS, tmp_path / "tutorials")
    if (ROOT / "tests/data").exists():  # may be deleted, see docs/deleting.md
        shutil.copytree(ROOT / "tests/data", tmp_path / "tests/data")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_runs_as_a_script_with_the_stated_numbers(project, chapter):
    if chapter in TRAINED:
        skip_if_deleted(TRAINED[chapter])
    claims = CLAIMS[chapter]
    for words, _ in claims:
        assert words in prose(chapter)
    expressions = [expression for _, expression in claims if expression]
    command = [sys.executable, "-c", RUN, f"tutorials/{chapter}.py", json.dumps(expressions)]
    settings = {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    result = subprocess.run(command, cwd=project, env=environment() | settings, capture_output=True, encoding="utf-8")
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    wrong = [expression for expression, is_true in zip(expressions, found, strict=True) if not is_true]
    assert not wrong, result.stdout

    saved = {path.name for path in (project / "outputs/tutorials").glob("*.png")}
    assert saved == set(re.findall(r'"(\w+\.png)"', (TUTORIALS / f"{chapter}.py").read_text(encoding="utf-8")))
    for name in saved:
        assert (TUTORIALS / "figures" / name).exists(), "tutorials/README.md shows it"
        assert len(Image.open(project / "outputs/tutorials" / name).convert("L").getcolors()) > 20


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_number_in_the_text_is_checked(chapter):
    left = prose(chapter).partition("## Exercise")[0]
    for words, _ in CLAIMS[chapter]:
        left = left.replace(words, "…")
    left = re.sub(r"^# \d\.|chapters? \d", "", left)
    assert re.findall(r".{0,30}\d.{0,10}", left) == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_commands_in_the_text_compose(chapter):
    for command in re.findall(r"`python train\.py ([^`]*)`", text(chapter)):
        words = [re.sub(r",.*", "", word) for word in command.split() if "=" in word and "…" not in word]
        skip_if_deleted(words)
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            compose("train", words)


def test_readmes_show_every_chapter_and_figure():
    english, vietnamese = ((TUTORIALS / name).read_text(encoding="utf-8") for name in ("README.md", "README.vi.md"))
    figures = {path.name for path in (TUTORIALS / "figures").iterdir()}
    for page in (english, vietnamese):
        assert re.findall(r"\]\((\d\w+)\.py\)", page) == CHAPTERS
        assert set(re.findall(r"\(figures/(.+?)\)", page)) == figures
    assert commands_and_headings(english) == commands_and_headings(vietnamese)


@pytest.mark.parametrize("page", ["README.md", "README.vi.md"])
def test_readme_numbers_are_in_the_chapter(page):
    sections = re.split(r"^### ", (TUTORIALS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    for chapter, section in zip(CHAPTERS, sections, strict=True):
        source = (TUTORIALS / f"{chapter}.py").read_text(encoding="utf-8")
        for number in re.findall(r"\d+", re.sub(r"\(.*?\)", "", section.partition("\n## ")[0])):
            assert re.search(rf"\b{number}\b|{number}x", source), (chapter, number)


def invariants(cell: str) -> dict[str, list[str]]:
    """Return what the languages share in a text cell: headings, list items and rows, code, addresses, numbers."""
    cell = " ".join(re.sub(r"^(\||#+|-)(?= )", r"<\1>", cell, flags=re.MULTILINE).split())
    spans, addresses = r"`[^`]*`", r"https?://[^\s;)]+"
    return {
        "outline": re.findall(r"<\||<#+>|<->", cell),
        "code": sorted(re.findall(spans, cell)),
        "addresses": re.findall(addresses, cell),
        "numbers": sorted(re.findall(r"\d+(?:[.,]\d+)*", re.sub(f"{spans}|{addresses}", "", cell))),
        "columns": [str(cell.count("|"))],
    }


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_vietnamese_cells_match_the_english_ones(chapter):
    assert sorted(path.stem for path in (TUTORIALS / "vi").glob("*.md")) == CHAPTERS
    english = [body for is_text, body in cells(chapter) if is_text]
    vietnamese = WEAVE["read_cells"](chapter)
    assert len(vietnamese) == len(english)
    for number, (ours, theirs) in enumerate(zip(english, vietnamese, strict=True), start=1):
        assert theirs.split() != ours.split()
        for kind, found in invariants(ours).items():
            assert invariants(theirs)[kind] == found, (number, kind)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_woven_chapter_has_the_english_code(chapter):
    source = WEAVE["weave"](chapter)
    woven = parse(source)
    assert [is_text for is_text, _ in woven] == [is_text for is_text, _ in cells(chapter)]
    assert [body for is_text, body in woven if not is_text] == [body for is_text, body in cells(chapter) if not is_text]
    assert [body.strip() for is_text, body in woven if is_text] == WEAVE["read_cells"](chapter)
    assert max(map(len, source.splitlines())) <= 120


@pytest.mark.slow
def test_woven_chapter_runs_as_a_script(project):
    env = environment() | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    woven = [f"outputs/tutorials/vi/{chapter}.py" for chapter in CHAPTERS]
    for script in ("tutorials/vi/weave.py", woven[1]):
        command = [sys.executable, script]
        result = subprocess.run(command, cwd=project, env=env, capture_output=True, encoding="utf-8")
        assert result.returncode == 0, result.stdout + result.stderr
    assert all((project / script).exists() for script in woven)
    assert (project / "outputs/tutorials/finite_differences.png").exists()


def commands_and_headings(page: str) -> tuple[list[str], list[int]]:
    """Return the sh blocks of a page and the levels of its headings."""
    block = re.compile(r"```sh\n(.*?)```", re.DOTALL)
    return block.findall(page), [len(level) for level in re.findall(r"^(#+) ", block.sub("", page), re.MULTILINE)]


# The answers to the exercises.


def test_exercise_1():
    def standardize(table):
        return (table - table.mean(dim=0)) / table.std(dim=0)

    table = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 60.0]])
    assert torch.allclose(standardize(table).mean(dim=0), torch.zeros(2), atol=1e-6)
    assert torch.allclose(standardize(table).std(dim=0), torch.ones(2))

    # For equal numbers it computes 0/0 = NaN, and every result that uses a NaN is NaN. You want 0 instead.
    equal = torch.full((3, 1), 5.0)
    assert standardize(equal).isnan().all()

    def standardize(table):
        deviation = table.std(dim=0)
        return (table - table.mean(dim=0)) / torch.where(deviation > 0, deviation, 1)

    assert torch.equal(standardize(equal), torch.zeros(3, 1))


def test_exercise_2():
    w, b = torch.tensor(1.0, requires_grad=True), torch.tensor(0.0, requires_grad=True)
    x, y = 2, 5
    error = (w * x + b - y) ** 2
    error.backward()
    assert error == 9
    # On paper: 2 (w x + b - y) times x, and times 1. Both are negative, so both parameters grow.
    assert w.grad == 2 * (1 * 2 + 0 - 5) * 2 == -12
    assert b.grad == 2 * (1 * 2 + 0 - 5) == -6


def test_exercise_3():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    y = 2 * x + 1

    def loss(parameters):
        return ((parameters[0] * x + parameters[1] - y) ** 2).mean()

    curvatures = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, torch.zeros(2)))
    limit = 2 / curvatures.max().item()
    assert round(limit, 3) == 0.120

    def loss_after_200_epochs(learning_rate):
        parameters = nn.Parameter(torch.zeros(2))
        optimizer = torch.optim.SGD([parameters], lr=learning_rate)
        for _ in range(200):
            optimizer.zero_grad()
            loss(parameters).backward()
            optimizer.step()
        return loss(parameters).item()

    at_the_start = loss(torch.zeros(2)).item()
    assert loss_after_200_epochs(0.99 * limit) < at_the_start
    assert loss_after_200_epochs(1.01 * limit) > at_the_start
    assert not loss_after_200_epochs(0.2) < 1e30


def test_exercise_4():
    root = 50**0.5
    position = nn.Parameter(torch.tensor([-8.0, 1.5]))
    optimizer = torch.optim.SGD([position], lr=(2 / (1 + root)) ** 2, momentum=((root - 1) / (root + 1)) ** 2)
    arrival = 0
    for step in range(500):
        loss = (position[0] ** 2 + 50 * position[1] ** 2) / 2
        if loss >= 0.001:
            arrival = step + 1
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert arrival == 34  # instead of 107


@pytest.mark.slow
def test_exercise_5(train):
    def results(*overrides):
        (run,) = train("trainer.max_epochs=100", *overrides)  # fewer than by default, to keep the test short
        return json.loads((run / "results.json").read_text())["metrics"]

    # The loss approaches the variance of the noise.
    assert results("data.noise=0", "optimizer.lr=0.1")["test/loss"] < 0.01
    assert abs(results("data.noise=4", "optimizer.lr=0.1")["test/loss"] - 4**2) < 4

    # The second derivative with respect to the weight is twice the mean of x², and with respect to the bias 2.
    limit = 2 / (2 * torch.linspace(-10, 10, 100).square().mean().item())
    assert round(limit, 3) == 0.029
    sgd = ("optimizer=sgd", "optimizer.momentum=0")
    assert results(*sgd, f"optimizer.lr={0.98 * limit}")["train/loss"] < 4
    assert not results(*sgd, f"optimizer.lr={1.02 * limit}")["train/loss"] < 1000


def test_exercise_6():
    weights = ResNet18_Weights.DEFAULT
    generator = numpy.random.default_rng(0)
    photo = Image.fromarray(generator.integers(256, size=(300, 400, 3), dtype=numpy.uint8))
    frame = numpy.asarray(photo)[:, :, ::-1]  # as OpenCV returns it

    def for_network(frame):
        rgb = frame[:, :, ::-1].copy()
        return weights.transforms()(torch.from_numpy(rgb).permute(2, 0, 1))[None]

    def for_opencv(tensor):
        return numpy.ascontiguousarray(tensor.permute(1, 2, 0).numpy()[:, :, ::-1])

    # Resizing rounds differently for PIL images and for tensors, by one gray level at most.
    assert for_network(frame).shape == (1, 3, 224, 224)
    one_level = 1 / 255 / min(weights.transforms().std)
    assert (for_network(frame)[0] - weights.transforms()(photo)).abs().max() < 1.01 * one_level
    tensor = torch.from_numpy(numpy.array(photo)).permute(2, 0, 1)
    assert numpy.array_equal(for_opencv(tensor), frame)


def test_exercise_7():
    def halve(x):
        while x.abs() > 1:
            x = x / 2
        return x

    def derivative(at):
        x = torch.tensor(at, requires_grad=True)
        halve(x).backward()
        return x.grad.item()

    # 5 is halved three times. At 1 and just below it, x is not halved; just above it, once.
    assert derivative(5.0) == 1 / 8
    assert derivative(0.5) == derivative(1.0) == derivative(0.999) == 1
    assert derivative(1.001) == 1 / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [
        ["optimizer=sgd", "optimizer.lr=0.1", "scheduler=one_cycle", "model.network.channels=[8,16]"],
        ["optimizer=adam"],
    ],
    ids=["sgd", "adam"],
)
def test_exercise_8(train, digits, answer):
    # In the chapter, data.root is outputs/tutorials/digits.
    small = [f"data.root={digits}", "data.num_val=100", "data.batch_size=50", "trainer.max_epochs=4"]
    (run,) = train("experiment=mnist", *small, *answer)
    assert json.loads((run / "results.json").read_text())["metrics"]["test/acc"] > 0.9
