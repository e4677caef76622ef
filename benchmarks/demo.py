"""`demo.py` in a browser: how many drawn digits are recognized, how fast bars follow a stroke, how soon it is there.

    python benchmarks/demo.py --project build/my_project --data FOLDER

FOLDER has MNIST/raw. Needs Chromium, Gradio and playwright. Trains `experiment=mnist`, then draws fifty digits with the
mouse: strokes between points that chance moves, of a slant, a size and a thickness that it chooses. Nothing is copied.
"""

import argparse
import math
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
from playwright.sync_api import Page

from screenshots import browser_page, demo

Point = tuple[float, float]


def arc(x: float, y: float, width: float, height: float, start: float, end: float) -> list[Point]:
    """Points of an ellipse around (x, y), from one angle to another, in degrees; 0 is to the right, 90 is down."""
    angles = [math.radians(start + (end - start) * step / 11) for step in range(12)]
    return [(x + width * math.cos(angle), y + height * math.sin(angle)) for angle in angles]


# The strokes of each digit, as people write them, in a square from (0, 0) to (1, 1).
STROKES: dict[int, list[list[Point]]] = {
    0: [arc(0.5, 0.5, 0.32, 0.48, -80, 280)],
    1: [[(0.5, 0.02), (0.5, 0.98)]],
    2: [[*arc(0.48, 0.28, 0.34, 0.26, -170, 50), (0.15, 0.95), (0.88, 0.95)]],
    3: [arc(0.42, 0.26, 0.36, 0.24, -150, 90) + arc(0.42, 0.73, 0.42, 0.24, -90, 150)],
    4: [[(0.3, 0.05), (0.15, 0.58), (0.85, 0.58)], [(0.68, 0.1), (0.64, 0.98)]],
    5: [[(0.3, 0.05), (0.22, 0.45), *arc(0.42, 0.69, 0.38, 0.27, -110, 150)], [(0.3, 0.05), (0.82, 0.05)]],
    6: [[(0.66, 0.03), (0.35, 0.3), *arc(0.48, 0.72, 0.27, 0.25, 180, -180)]],
    7: [[(0.12, 0.06), (0.85, 0.06), (0.4, 0.97)]],
    8: [arc(0.5, 0.27, 0.25, 0.24, 90, -270) + arc(0.5, 0.75, 0.31, 0.24, -90, 270)],
    9: [[*arc(0.46, 0.29, 0.28, 0.26, -10, -370), (0.68, 0.98)]],
}


def strokes(digit: int, chance: random.Random) -> list[list[Point]]:
    """The strokes of a digit in pixels of the square, which has 280, as a hand could draw them."""
    slant, size = chance.uniform(-0.1, 0.3), chance.uniform(110, 200)
    width = size * chance.uniform(0.6, 0.9)
    left, top = chance.uniform(25, 255 - width), chance.uniform(25, 255 - size)

    def moved(x: float, y: float) -> Point:
        x, y = x + chance.gauss(0, 0.018), y + chance.gauss(0, 0.018)
        return left + width * x + slant * size * (0.5 - y), top + size * y

    return [[moved(*point) for point in stroke] for stroke in STROKES[digit]]


def draw(page: Page, lines: list[list[Point]], steps: int = 2) -> None:
    square = page.locator("canvas").bounding_box() or {}
    for line in lines:
        (x, y), *others = [(square["x"] + x, square["y"] + y) for x, y in line]
        page.mouse.move(x, y)
        page.mouse.down()
        for x, y in others:
            page.mouse.move(x, y, steps=steps)
        page.mouse.up()


def recognize(page: Page, count: int) -> list[tuple[int, str]]:
    """Draws digits, each as often as any other; returns each with the class that has the longest bar."""
    chance, answers = random.Random(0), []
    for number in range(count):
        page.locator(".sketchpad .clear").click()
        width = "width => document.querySelector('canvas').getContext('2d').lineWidth = width"
        page.evaluate(width, chance.uniform(12, 26))
        draw(page, strokes(number % 10, chance))
        page.locator(".answer[aria-busy=false] .largest").first.wait_for()
        answers.append((number % 10, page.locator(".answer .largest span").first.inner_text()))
    return answers


# Notes how long it is from when a drawing is read from the square to when its bars are there.
WATCH = """() => {
  window.delays = [];
  const read = [];
  const original = HTMLCanvasElement.prototype.toDataURL;
  HTMLCanvasElement.prototype.toDataURL = function () { read.push(performance.now()); return original.apply(this); };
  new MutationObserver(() => window.delays.push(performance.now() - read.shift()))
    .observe(document.querySelector(".sketchpad .answer"), { childList: true });
}"""


def frames(page: Page) -> tuple[float, float]:
    """While digits are drawn for ten seconds: answers per second, and the median milliseconds from stroke to bar."""
    page.evaluate(WATCH)
    chance, digit, start = random.Random(1), 0, time.perf_counter()
    while time.perf_counter() < start + 10:
        draw(page, strokes(digit % 10, chance), steps=10)
        digit += 1
    delays = page.evaluate("window.delays")
    return len(delays) / (time.perf_counter() - start), statistics.median(delays)


# The command, once all that it imports is there; on its first line is when that was.
AFTER_IMPORTS = """
import runpy, sys, time
import lightning, torchvision, torchmetrics, torch_starter.demo.page, torch_starter.callbacks.epoch_metrics
for package in sys.argv.pop(1).split():
    __import__(package)
print(time.time(), flush=True)
runpy.run_path("demo.py", run_name="__main__")
"""


def seconds_to_first_screen(page: Page, project: Path, run: Path) -> float:
    """From the end of the imports to a square that can be drawn on, in a browser that is open."""
    package = next(path.parent.name for path in project.glob("*/__init__.py") if path.parent.name != "torch_starter")
    names = " ".join(f"{package}.{name}" for name in ("data.image", "models.cnn", "models.image_classifier"))
    command = [sys.executable, "-c", AFTER_IMPORTS, names, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=project) as process:
        start = float(process.stdout.readline())
        page.goto(process.stdout.readline().split()[0])
        page.locator("canvas").wait_for()
        end = time.time()
        process.send_signal(signal.SIGINT)
    return end - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, required=True, help="a generated project")
    parser.add_argument("--data", type=Path, required=True, help="a folder that has MNIST/raw")
    parser.add_argument("--run", type=Path, help="a run of experiment=mnist, instead of training one")
    arguments = parser.parse_args()
    root = f"data.root={arguments.data.resolve()}"
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run or Path(folder, "mnist")
        if not arguments.run:
            training = ["experiment=mnist", root, f"hydra.run.dir={run}"]
            subprocess.run([sys.executable, "train.py", *training], cwd=arguments.project, check=True)
        with browser_page(width=1280, height=900) as page:
            with demo(arguments.project, run, root) as address:
                page.goto(address)
                page.locator(".gallery button").first.wait_for()  # the test images have been looked through
                answers = recognize(page, 50)
                speed, delay = frames(page)
            first = [seconds_to_first_screen(page, arguments.project, run) for _ in range(3)]
    wrong = [f"{digit} as {answer}" for digit, answer in answers if str(digit) != answer]
    print(f"digits recognized: {50 - len(wrong)} of 50 ({', '.join(wrong) or 'all'})")
    print(f"answers per second while drawing: {speed:.1f}; {delay:.0f} ms from stroke to bar, median")
    print(f"first screen: {statistics.median(first):.2f} s after the imports, median of {len(first)}")


if __name__ == "__main__":
    main()
