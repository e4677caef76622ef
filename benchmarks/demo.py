"""Measure `demo.py` in a browser: recognized digits, delay from stroke to bars, and time to the first screen.

    python benchmarks/demo.py --project build/my_project --data FOLDER

FOLDER contains MNIST/raw. Requires Chromium, Gradio and playwright. Trains `experiment=mnist`, then draws fifty digits
with the mouse: strokes between randomly moved points, with random slant, size and thickness.
"""

import argparse
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

from handwriting import draw, strokes
from screenshots import browser_page, demo


def recognize(page: Page, count: int) -> list[tuple[int, str]]:
    """Draw each digit equally often, and return pairs of a drawn digit and the class with the longest bar."""
    chance, answers = random.Random(0), []
    for number in range(count):
        page.locator(".sketchpad .clear").click()
        width = "width => document.querySelector('canvas').getContext('2d').lineWidth = width"
        page.evaluate(width, chance.uniform(12, 26))
        draw(page, strokes(number % 10, chance))
        page.locator(".answer[aria-busy=false] .largest").first.wait_for()
        answers.append((number % 10, page.locator(".answer .largest span").first.inner_text()))
    return answers


# Records the delay from reading a drawing to showing its bars.
RECORD_DELAYS = """() => {
  window.delays = [];
  const read = [];
  const original = HTMLCanvasElement.prototype.toDataURL;
  HTMLCanvasElement.prototype.toDataURL = function () { read.push(performance.now()); return original.apply(this); };
  new MutationObserver(() => window.delays.push(performance.now() - read.shift()))
    .observe(document.querySelector(".sketchpad .answer"), { childList: true });
}"""


def measure_answers(page: Page) -> tuple[float, float]:
    """Draw digits for ten seconds; return the answers per second and the median milliseconds from stroke to bar."""
    page.evaluate(RECORD_DELAYS)
    chance, digit, start = random.Random(1), 0, time.perf_counter()
    while time.perf_counter() < start + 10:
        draw(page, strokes(digit % 10, chance), steps=10)
        digit += 1
    delays = page.evaluate("window.delays")
    return len(delays) / (time.perf_counter() - start), statistics.median(delays)


# Runs demo.py after all of its imports; the first line of the output is the time when they are done.
AFTER_IMPORTS = """
import runpy, sys, time
import lightning, torchvision, torchmetrics, torch_starter.demo.page, torch_starter.callbacks.epoch_metrics
for package in sys.argv.pop(1).split():
    __import__(package)
print(time.time(), flush=True)
runpy.run_path("demo.py", run_name="__main__")
"""


def seconds_to_first_screen(page: Page, project: Path, run: Path) -> float:
    """Return the seconds from the end of the imports to a drawing area in an open browser."""
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
    parser.add_argument("--data", type=Path, required=True, help="a folder that contains MNIST/raw")
    parser.add_argument("--run", type=Path, help="an existing run of experiment=mnist (default: train one)")
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
                page.locator(".gallery button").first.wait_for()  # the test images are selected
                answers = recognize(page, 50)
                speed, delay = measure_answers(page)
            first = [seconds_to_first_screen(page, arguments.project, run) for _ in range(3)]
    wrong = [f"{digit} as {answer}" for digit, answer in answers if str(digit) != answer]
    print(f"digits recognized: {50 - len(wrong)} of 50 ({', '.join(wrong) or 'all'})")
    print(f"answers per second while drawing: {speed:.1f}; {delay:.0f} ms from stroke to bar, median")
    print(f"first screen: {statistics.median(first):.2f} s after the imports, median of {len(first)}")


if __name__ == "__main__":
    main()
