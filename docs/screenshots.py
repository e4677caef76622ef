"""TensorBoard and the page of demo.py as a person sees them: the pictures of the READMEs.

    python docs/screenshots.py --project build/my_project --data FOLDER

FOLDER has MNIST/raw. Needs Chromium. Trains six runs (some three minutes on two cores).
"""

import argparse
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from handwriting import draw, strokes

HERE = Path(__file__).parent
# One of them is in the README of every project.
PROJECT_DOCS = HERE.parent / "{{cookiecutter.project_slug}}" / "docs"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def tensorboard(log_dir: Path) -> Iterator[str]:
    """The address of a TensorBoard that shows ``log_dir``."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(log_dir), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stderr.readline, "")
            yield next(found[0] for line in lines if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))
        finally:
            process.terminate()


@contextmanager
def demo(project: Path, *arguments: object) -> Iterator[str]:
    """The address of the page of `demo.py ARGUMENTS`, which is then ended as by Ctrl-C."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "demo.py", *map(str, arguments), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=project) as process:
        try:
            yield process.stdout.readline().split()[0]
        finally:
            process.send_signal(signal.SIGINT)


@contextmanager
def browser_page(width: int, height: int) -> Iterator[Page]:
    """An empty page of headless Chromium."""
    options = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}  # which root cannot have
    with sync_playwright() as playwright, playwright.chromium.launch(**options) as browser:
        yield browser.new_page(viewport={"width": width, "height": height})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, required=True, help="a generated project")
    parser.add_argument("--data", type=Path, required=True, help="a folder that has MNIST/raw")
    arguments = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("Chromium is not there. On Debian: apt-get install chromium")

    with tempfile.TemporaryDirectory() as folder:
        sweep = ["-m", "experiment=mnist", "optimizer=sgd,adam,adamw", "optimizer.lr=0.005,0.02"]
        here = [f"data.root={arguments.data.resolve()}", f"hydra.sweep.dir={folder}/mnist"]
        subprocess.run([sys.executable, "train.py", *sweep, *here], cwd=arguments.project, check=True)
        with tensorboard(Path(folder)) as address, browser_page(width=1800, height=620) as page:
            page.goto(address + "#hparams")
            wait_for_trials(page, [f"mnist/{job}" for job in range(6)])
            save(page, PROJECT_DOCS / "hparams.png")
        best = Path(folder, "mnist/5")  # adamw, 0.02
        with tensorboard(best) as address, browser_page(width=1500, height=665) as page:
            page.goto(address + "#images")
            page.locator("tf-image-loader img").nth(2).wait_for()
            page.wait_for_load_state("networkidle")
            save(page, HERE / "images.png")
        draw_on_demo(arguments.project, best, arguments.data)


def draw_on_demo(project: Path, run: Path, data: Path) -> None:
    """The picture of demo.py: a digit is drawn, and of a test image it is asked what mattered."""
    with demo(project, run, f"data.root={data.resolve()}") as address, browser_page(width=1200, height=800) as page:
        page.goto(address)
        draw(page, strokes(3, random.Random(0)))
        page.locator(".gallery button").first.click()
        page.locator("#answer .largest").first.wait_for()
        page.locator("#answer").get_by_role("button", name="What mattered?").click()
        page.locator("#answer figure").nth(1).wait_for()
        page.evaluate("scrollTo(0, 0)")
        save(page, PROJECT_DOCS / "demo.png")


def wait_for_trials(page: Page, runs: Iterable[str]) -> None:
    """Waits until the HPARAMS table has a row for each of ``runs``; they come a moment after its header.

    Raises:
        playwright.sync_api.TimeoutError: if one is missing.
    """
    for run in runs:
        page.locator("tf-hparams-table-view").get_by_text(run, exact=True).wait_for()


def save(page: Page, path: Path) -> None:
    """Writes what is to be seen, with as few colours as TensorBoard needs, which makes the file a third as large."""
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main()
