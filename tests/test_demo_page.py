"""Test the pages of demo.py in a real browser, with models trained on small files."""

import base64
import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from handwriting import draw
from screenshots import CHROMIUM, browser_page, demo
from test_generated_project import environment, run

pytest.importorskip("gradio", reason="Gradio is not installed: make .venv/ready")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing; on Debian: apt-get install chromium")
expect.set_options(timeout=60_000)  # in milliseconds; generous, for busy machines

# Strokes in the square of the page, which is 280 x 280 pixels.
ONE = [[(150.0, 40.0), (135.0, 240.0)]]
ZERO = [[(140.0, 50.0), (80, 90), (65, 150), (90, 220), (150, 235), (205, 190), (210, 120), (185, 65), (140, 50)]]

# Trains all runs in one process: digits drawn with the same kind of pen, a folder of images, a table, and a line.
TRAIN = """
import contextlib, json, random, struct, sys
from pathlib import Path
import numpy, torch
from PIL import Image, ImageDraw
sys.path.append(DOCS)
from handwriting import strokes
import torch_starter
from torch_starter.data.drawing import center_ink
from torch_starter.demo.display import number as six_digits
from torch_starter.demo.serving import open_page

chance = random.Random(0)
folder = Path("data/MNIST/raw")
folder.mkdir(parents=True)
for split, count in ("train", 300), ("t10k", 50):
    images = []
    for number in range(count):
        sheet = Image.new("L", (280, 280), "white")
        for line in strokes(number % 10, chance):
            ImageDraw.Draw(sheet).line(line, width=20, joint="curve")
        images.append(center_ink(torch.from_numpy(numpy.array(sheet))[None], (1, 28, 28), 20))
    labels = bytes(number % 10 for number in range(count))
    header = struct.pack(">BBBBIII", 0, 0, 8, 3, count, 28, 28)
    (folder / f"{split}-images-idx3-ubyte").write_bytes(header + torch.stack(images).numpy().tobytes())
    (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, count) + labels)

for name, color in ("blue", (40, 60, 200)), ("red", (200, 50, 40)):
    Path("images", name).mkdir(parents=True)
    for number in range(20):
        noise = numpy.random.default_rng(number).integers(-30, 30, (48, 64, 3))
        Image.fromarray((noise + color).clip(0, 255).astype("uint8")).save(f"images/{name}/{number}.jpg")

with open("flats.csv", "w") as file:
    print("area,city,rent,split", file=file)
    for number in range(100):
        area, city = 30 + number * 80 // 99, chance.choice(["Bonn", "Ulm"])
        split = {5: "val", 7: "test"}.get(number % 10, "train")
        print(area if number % 10 else "", city, 10 * area + 300 * (city == "Bonn"), split, sep=",", file=file)

quick = ["callbacks.classifier_figures=null", "callbacks.table_figures=null", "callbacks.regression_figures=null"]
small = ["data.num_val=50", "data.batch_size=25", "trainer.max_epochs=8"]
torch_starter.train_run("hydra.run.dir=runs/digits", "experiment=mnist", *small, *quick)
few = ["model=cnn", "data.image_shape=[3,32,32]", "data.batch_size=8", "data.augmentation=null", "trainer.max_epochs=3"]
images = ["data=image_folder", "data.root=images", "data.num_workers=0", "hydra.run.dir=runs/images"]
torch_starter.train_run(*images, *few, *quick)
table = ["experiment=table", "data.file=flats.csv", "data.target=rent", "data.split_column=split"]
torch_starter.train_run(*table, "hydra.run.dir=runs/table", "trainer.max_epochs=500", *quick)
torch_starter.train_run("hydra.run.dir=runs/line", "trainer.max_epochs=100", *quick)

# Expected predictions, the same as those of `predict.py`, without a process for each.
table = torch_starter.load_run("runs/table")
(image,) = torch_starter.load_run("runs/images").predict("images/red/3.jpg", probabilities=True)
rents = {area: table.predict({"area": area, "city": "Ulm"})[0]["prediction"] for area in ("80", "110", "1e6", "")}
y = torch_starter.load_run("runs/line").predict(4)[0]["y"]
rents, y = {area: six_digits(rent) for area, rent in rents.items()}, six_digits(y)
Path("predicted.json").write_text(json.dumps({"image": image, "rents": rents, "y": y}))

# Serves the pages of all runs except the digits in this process, until stdin is closed.
with contextlib.ExitStack() as stack:
    addresses = {}
    for kind in "table", "line", "images":  # Gradio accepts uploads from the folder of the last one
        _, (addresses[kind],) = stack.enter_context(open_page(torch_starter.load_run(f"runs/{kind}"), "127.0.0.1"))
    print(json.dumps(addresses), flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def project(bake) -> Path:
    return bake()


@pytest.fixture(scope="module")
def addresses(project) -> Iterator[dict[str, str]]:
    """The addresses of the pages of all runs except the digits. The runs are in `runs/KIND` of the project."""
    code = f"DOCS = {str(Path(__file__).parents[1] / 'docs')!r}\n{TRAIN}"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=project, env=environment(), **pipes) as process:
        try:
            yield next(json.loads(line) for line in process.stdout if line.startswith("{"))
        finally:
            process.stdin.close()


@pytest.fixture
def page():
    with browser_page(width=1280, height=900) as page:
        problems: list = []
        page.on("pageerror", lambda error: problems.append(error))
        page.on("request", lambda request: problems.append(request.url) if is_outside(request.url) else None)
        yield page
        assert not problems


def is_outside(address: str) -> bool:
    return not address.startswith(("http://127.0.0.1:", "data:", "blob:"))


def largest_bar(page: Page) -> tuple[str, float]:
    """Return the name and the length in pixels of the longest bar of the drawing."""
    page.locator(".sketchpad .answer[aria-busy=false] .largest").first.wait_for()
    bars = page.locator(".sketchpad .row").evaluate_all(
        "rows => rows.map(row => [row.children[0].innerText, row.querySelector('.bar').getBoundingClientRect().width])"
    )
    return max(bars, key=lambda bar: bar[1])


def test_drawn_digit_predictions_match_predict_py(project, addresses, page):
    before = {path: path.stat().st_mtime_ns for path in project.glob("runs/digits/**/*")}
    with demo(project, "runs/digits") as address:
        page.goto(address)
        draw(page, ONE)
        assert largest_bar(page)[0] == "1"
        page.locator(".clear").click()
        expect(page.locator(".sketchpad .answer")).to_have_text("Draw in the square.")
        draw(page, ZERO)
        assert largest_bar(page)[0] == "0"
        (seen,) = page.locator(".sketchpad figure").all()
        expect(seen).to_contain_text("as the network sees it")

        said = page.locator(".sketchpad .row").all_inner_texts()
        drawing = page.evaluate("document.querySelector('canvas').toDataURL()").partition(",")[2]
        (project / "drawing.png").write_bytes(base64.b64decode(drawing))
        run("predict.py", "runs/digits", "drawing.png", "--probabilities", "--output", "drawing.csv", cwd=project)
        (row,) = csv.DictReader((project / "drawing.csv").open(encoding="utf-8"))
        shares = page.locator(".sketchpad .row span:last-child").all_inner_texts()
        assert shares == [f"{float(row[f'probability_of_{digit}']):.1%}" for digit in range(10)], said

        # Inverted, and uploaded.
        page.locator(".invert").click()
        assert largest_bar(page)[0] == "0"
        page.locator(".explain").click()
        expect(page.locator(".sketchpad .answer")).to_contain_text(re.compile("covering this part|Covering any"))
        page.locator(".clear").click()
        draw(page, ONE)
        assert largest_bar(page)[0] == "1"
        page.set_input_files("input[type=file]", project / "drawing.png")
        expect(page.locator("#answer .row span:last-child")).to_have_text(shares)

        buttons = page.locator(".gallery button")
        expect(buttons).to_have_count(12)
        buttons.last.click()
        label = buttons.last.inner_text().strip()
        expect(page.locator("#answer .largest span").first).to_have_text(label)

        page.set_viewport_size({"width": 390, "height": 800})
        page.emulate_media(color_scheme="dark")
        page.reload()
        draw(page, ONE)
        assert largest_bar(page)[0] == "1"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert {path: path.stat().st_mtime_ns for path in project.glob("runs/digits/**/*")} == before


def drop(page: Page, name: str, kind: str, content: bytes) -> None:
    """Drop a file on the field for images."""
    code = """([name, type, content]) => {
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], name, { type }));
        return transfer;
    }"""
    transfer = page.evaluate_handle(code, [name, kind, base64.b64encode(content).decode()])
    page.locator("[data-testid=image] button, button:has-text('Drop Image Here')").first.dispatch_event(
        "drop", {"dataTransfer": transfer}
    )


def test_dropped_images_are_classified_or_refused(project, addresses, page):
    page.goto(addresses["images"])
    image = project / "images/red/3.jpg"
    expect(page.locator("canvas")).to_have_count(0)
    drop(page, "3.jpg", "image/jpeg", image.read_bytes())
    row = json.loads((project / "predicted.json").read_text())["image"]
    shares = [f"{row[f'probability_of_{name}']:.1%}" for name in ("blue", "red")]
    expect(page.locator("#answer .row span:last-child")).to_have_text(shares)
    page.get_by_role("button", name="What mattered?").click()
    expect(page.locator("#answer")).to_contain_text(re.compile("red: covering this part|Covering any one part"))

    page.locator("[aria-label='Clear'], [aria-label='Remove Image']").first.click()
    drop(page, "words.jpg", "image/jpeg", b"no image at all")
    expect(page.locator("#answer .message").first).to_have_text("words.jpg: it is not an image")
    page.locator("[aria-label='Clear'], [aria-label='Remove Image']").first.click()
    drop(page, "large.png", "image/png", bytes(21 * 1024 * 1024))
    expect(page.get_by_text(re.compile("exceed|maximum", re.IGNORECASE)).first).to_be_visible()


def test_table_and_line_fields_update_prediction(project, addresses, page):
    expected = json.loads((project / "predicted.json").read_text())
    page.goto(addresses["table"])
    headline = page.locator(".headline")
    expect(headline).to_contain_text("rent = ")
    city = page.get_by_label("city")
    city.click()
    page.get_by_role("option", name="Ulm").click()
    page.locator("input[type=range]").fill("80")
    expect(headline).to_have_text(f"rent = {expected['rents']['80']}")
    number = page.locator("input[type=number]")
    number.fill("1e6")
    expect(headline).to_have_text(f"rent = {expected['rents']['1e6']}")
    number.press("Tab")  # clamps the value to the range of the training rows
    expect(headline).to_have_text(f"rent = {expected['rents']['110']}")
    page.get_by_label("area is missing").check()
    expect(headline).to_have_text(f"rent = {expected['rents']['']}")
    page.goto(addresses["line"])
    slider = page.locator("input[type=range]")
    slider.fill("4")
    expect(page.locator(".headline")).to_have_text(f"y = {expected['y']}")
    expect(page.locator(".chart svg")).to_contain_text("training points")
