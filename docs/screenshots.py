"""Make the screenshots of the READMEs from real runs, in a real terminal and a real browser.

    python docs/screenshots.py --project build/my_project --data FOLDER

FOLDER contains MNIST/raw. Needs Chromium and tmux. Trains eight runs, which takes about four minutes on two cores.
"""

import argparse
import io
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import FloatRect, Page, sync_playwright
from rich.console import Console
from rich.text import Text
from sklearn.datasets import load_diabetes

from handwriting import draw, strokes

HERE = Path(__file__).parent
# Every generated project has the screenshots in this folder.
PROJECT_DOCS = HERE.parent / "{{cookiecutter.project_slug}}" / "docs"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTH = 900  # GitHub shows a README about this wide
COLUMNS = 96  # of the terminal
PROMPT = "$ "
# Two cards side by side need the whole width of TensorBoard's TIME SERIES page.
WIDE_CARDS = """localStorage.setItem("_tb_global_settings", JSON.stringify({
    sideBarWidthInPercent: 0, timeSeriesSettingsPaneOpened: false, scalarSmoothing: 0 }))"""
SWEEP = "experiment=mnist optimizer=sgd,adam,adamw optimizer.lr=0.005,0.02 hydra.sweep.dir=outputs/sweep/mnist"
DIABETES_COLUMNS = "age sex bmi blood_pressure cholesterol ldl hdl cholesterol_per_hdl log_triglycerides glucose"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, required=True, help="a generated project")
    parser.add_argument("--data", type=Path, required=True, help="a folder that contains MNIST/raw")
    arguments = parser.parse_args()
    if CHROMIUM is None or shutil.which("tmux") is None:
        sys.exit("Chromium or tmux is missing. On Debian: apt-get install chromium tmux")

    data = arguments.data.resolve()
    with tempfile.TemporaryDirectory() as folder:
        # A copy has no earlier runs.
        ignored = shutil.ignore_patterns("outputs", ".venv", "__pycache__")
        project = Path(shutil.copytree(arguments.project, Path(folder, "my_project"), ignore=ignored))
        make_screenshots(project, data)


def make_screenshots(project: Path, data: Path) -> None:
    """Train eight runs in ``project`` and write every screenshot."""
    record_first_minute(project)

    table = load_diabetes(as_frame=True, scaled=False).frame
    table.columns = [*DIABETES_COLUMNS.split(), "progression"]
    table.to_csv(project / "diabetes.csv", index=False)
    diabetes = "experiment=table data.file=diabetes.csv data.target=progression hydra.run.dir=outputs/diabetes"
    for options in (diabetes.split(), ["-m", *SWEEP.split(), f"data.root={data}"]):
        subprocess.run([sys.executable, "train.py", *options], cwd=project, check=True)

    best = project / "outputs/sweep/mnist/5"  # adamw with learning rate 0.02
    capture_comparison(project)
    capture_figures(project, best)
    capture_tensorboard(project / "outputs/sweep", best)
    capture_demo(project, best, data)


def record_first_minute(project: Path) -> None:
    """Write an animation of train.py and TensorBoard in a project without runs."""
    with terminal(project, rows=28) as tmux, browser_page(WIDTH, 564) as page:
        screens = type_and_record(tmux, "python train.py", rf"^{re.escape(PROMPT.strip())}$")
        started = len(screens)
        screens += type_and_record(tmux, "tensorboard --logdir outputs", r"http://\S+")
        frames = [capture_screen(page, screen) for screen, _ in screens]
        seconds = [min(max(shown, 0.06), 0.8) for _, shown in screens]
        seconds[started - 1] = 4  # to read the report

        page.add_init_script(WIDE_CARDS)
        address = re.search(r"http://[^\s/]+", screens[-1][0])[0]
        page.goto(f"{address}/?tagFilter=train/(fitted|loss$)#timeseries")
        smooth_images(page, "image-card img", 1)
        slider = page.locator("image-card input[type=range]")
        slider.press("Home")
        for step in range(int(slider.get_attribute("max")) + 1):
            if step:
                slider.press("ArrowRight")
            smooth_images(page, "image-card img", 1)
            frames.append(take_screenshot(page))
            seconds.append(1)
    seconds[-1] = 5
    # With one palette, only what changes between frames is stored.
    palette = limit_colors(join([frames[started // 2], frames[started - 1], frames[-1]], 1))
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [round(1000 * shown) for shown in seconds]
    animation = HERE / "first_minute.gif"
    frames[0].save(animation, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)
    print(animation)


def capture_comparison(project: Path) -> None:
    """Write the table of compare.py above its plot."""
    with terminal(project, rows=15) as tmux, browser_page(WIDTH, 310) as page:
        command = "python compare.py outputs/sweep --plot compare.png"
        screens = type_and_record(tmux, command, rf"^{re.escape(PROMPT.strip())}$")
        rows = [capture_screen(page, screens[-1][0])]
    rows.append(Image.open(project / "compare.png"))
    save(join([fit(row, WIDTH, 600) for row in rows], 1), PROJECT_DOCS / "compare.png")


def capture_figures(project: Path, classifier: Path) -> None:
    """Write two figures of each kind of task, side by side."""
    (line,) = (project / "outputs/linear_regression").iterdir()
    table = project / "outputs/diabetes"
    names = [
        *(line / "figures" / name for name in ("train_fitted_line.png", "train_loss_surface.png")),
        *(classifier / "figures" / name for name in ("test_confusion_matrix.png", "test_confidently_wrong.png")),
        *(table / "figures" / name for name in ("test_predicted_against_true.png", "test_coefficients.png")),
    ]
    save(join([fit(Image.open(name), WIDTH // 2, 345) for name in names], 2), PROJECT_DOCS / "figures.png")


def capture_tensorboard(sweep: Path, classifier: Path) -> None:
    """Write TensorBoard's HPARAMS of six runs and its IMAGES of one of them."""
    with tensorboard(sweep) as address, browser_page(1140, 600) as page:
        page.goto(address + "#hparams")
        wait_for_trials(page, [f"mnist/{job}" for job in range(6)])
        for name in ("optimizer.weight_decay", "data", "data.batch_size", "epoch"):
            page.locator("tf-hparams-query-pane").get_by_role("checkbox", name=name, exact=True).last.click()
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)
        box = page.locator("tf-hparams-table-view").bounding_box()
        clip = {"x": box["x"], "y": box["y"] - 64, "width": WIDTH, "height": 64 + 56 + 6 * 37}
        save(take_screenshot(page, clip), PROJECT_DOCS / "hparams.png")
    with tensorboard(classifier) as address, browser_page(1090, 660) as page:
        page.goto(address + "#images")
        page.locator("tf-tag-filterer input").fill("test/conf")
        page.wait_for_timeout(1000)
        smooth_images(page, "tf-image-loader img", 2)
        box = page.locator("tf-tag-filterer").bounding_box()
        save(take_screenshot(page, {**box, "height": 560}), HERE / "images.png")


def capture_demo(project: Path, run: Path, data: Path) -> None:
    """Write the page of demo.py with a drawn digit, and with what mattered for a test image."""
    with demo(project, run.relative_to(project), f"data.root={data}") as address, browser_page(1200, 1180) as page:
        page.goto(address)
        draw(page, strokes(3, random.Random(0)))
        page.locator(".gallery button").first.click()
        page.locator("#answer .largest").first.wait_for()
        page.locator("#answer").get_by_role("button", name="What mattered?").click()
        page.locator("#answer figure").nth(1).wait_for()
        page.evaluate("scrollTo(0, 0)")
        screenshot = take_screenshot(page, {"x": 112, "y": 0, "width": 976, "height": 1120})
        save(fit(screenshot, WIDTH, 1180), PROJECT_DOCS / "demo.png")


@contextmanager
def terminal(folder: Path, rows: int) -> Iterator[Callable[..., str]]:
    """Open a shell in ``folder`` in a terminal of tmux, and yield a function that runs a tmux command in it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PS1": PROMPT, "COLORTERM": "truecolor"}
    start = ["tmux", "-u", "-L", f"screenshots-{os.getpid()}", "-f", os.devnull]

    def tmux(*arguments: object) -> str:
        command = [*start, *map(str, arguments)]
        return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout

    tmux("new-session", "-d", "-x", COLUMNS, "-y", rows, "-c", folder, "bash", "--norc")
    try:
        yield tmux
    finally:
        tmux("kill-server")


def type_and_record(tmux: Callable[..., str], command: str, last_line: str) -> list[tuple[str, float]]:
    """Type and run ``command``.

    Args:
        tmux: runs a tmux command in the terminal.
        command: what to type.
        last_line: a regular expression that the last line matches when the recording ends.

    Returns:
        Each screen, with ANSI escapes, and the seconds that it was shown.
    """
    screens = []
    for letter in command:
        tmux("send-keys", "-l", letter)
        time.sleep(0.03)
        screens.append((tmux("capture-pane", "-p", "-e"), 0.06))
    tmux("send-keys", "Enter")
    changed = start = time.monotonic()
    while time.monotonic() < start + 120:
        time.sleep(0.1)
        screen = tmux("capture-pane", "-p", "-e")
        if screen != screens[-1][0]:
            screens[-1] = (screens[-1][0], time.monotonic() - changed)
            changed = time.monotonic()
            screens.append((screen, 1))
        *_, last = Text.from_ansi(screen).plain.rstrip().splitlines() or [""]
        if len(screens) > len(command) and re.search(last_line, last):
            return screens
    sys.exit(f"{command} did not end within two minutes:\n{screens[-1][0]}")


def capture_screen(page: Page, screen: str) -> Image.Image:
    """Return a screenshot of a terminal that shows ``screen``."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(screen))
    svg = console.export_svg(title="my_project").replace("Fira Code", "DejaVu Sans Mono")
    page.set_content(f"<body style='margin: 0; background: #292929'>{svg}</body>")
    return take_screenshot(page)


@contextmanager
def tensorboard(log_dir: Path) -> Iterator[str]:
    """Start TensorBoard on ``log_dir`` and yield its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(log_dir), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stderr.readline, "")
            yield next(found[0] for line in lines if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))
        finally:
            process.terminate()


@contextmanager
def demo(project: Path, *arguments: object) -> Iterator[str]:
    """Start `demo.py ARGUMENTS`, yield the address of its page, and end it as Ctrl-C does."""
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
    """Yield an empty page of headless Chromium."""
    options = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}  # root cannot use the sandbox
    with sync_playwright() as playwright, playwright.chromium.launch(**options) as browser:
        yield browser.new_page(viewport={"width": width, "height": height})


def wait_for_trials(page: Page, runs: Iterable[str]) -> None:
    """Wait until the HPARAMS table has a row for each of ``runs``; the rows come after the header.

    Raises:
        playwright.sync_api.TimeoutError: if a row is missing.
    """
    for run in runs:
        page.locator("tf-hparams-table-view").get_by_text(run, exact=True).wait_for()


def smooth_images(page: Page, selector: str, number: int) -> None:
    """Wait for ``number`` images and interpolate them; TensorBoard drops pixels, and their text is illegible."""
    page.locator(f"{selector}:visible").nth(number - 1).wait_for()
    page.wait_for_load_state("networkidle")
    page.locator(selector).evaluate_all("images => images.forEach(image => image.style.imageRendering = 'auto')")
    page.wait_for_timeout(500)


def take_screenshot(page: Page, clip: FloatRect | None = None) -> Image.Image:
    """Return what the page shows, within ``clip`` in pixels."""
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def fit(screenshot: Image.Image, width: int, height: int) -> Image.Image:
    """Return ``screenshot`` scaled to fit, on white of that width."""
    scaled = screenshot.convert("RGB")
    scaled.thumbnail((width, height), Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", (width, scaled.height), "white")
    sheet.paste(scaled, ((width - scaled.width) // 2, 0))
    return sheet


def join(screenshots: list[Image.Image], columns: int) -> Image.Image:
    """Return one screenshot of rows of ``columns`` screenshots of the same width."""
    rows = [screenshots[start : start + columns] for start in range(0, len(screenshots), columns)]
    heights = [max(screenshot.height for screenshot in row) for row in rows]
    sheet = Image.new("RGB", (columns * screenshots[0].width, sum(heights)), "white")
    for number, row in enumerate(rows):
        for column, screenshot in enumerate(row):
            top = sum(heights[:number]) + (heights[number] - screenshot.height) // 2
            sheet.paste(screenshot, (column * screenshot.width, top))
    return sheet


def limit_colors(screenshot: Image.Image) -> Image.Image:
    """Return ``screenshot`` with a palette that has its rare colors, too."""
    return screenshot.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)


def save(screenshot: Image.Image, path: Path) -> None:
    """Write ``screenshot`` with a palette, which makes the file a third as large."""
    limit_colors(screenshot).save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main()
