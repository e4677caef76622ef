"""Test how a real browser shows a finished multirun in TensorBoard."""

import json

import pytest
from playwright.sync_api import TimeoutError, expect

from screenshots import CHROMIUM, browser_page, tensorboard, wait_for_trials
from test_generated_project import run, write_digits

expect.set_options(timeout=60_000)  # in milliseconds; generous, for busy machines


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing; on Debian: apt-get install chromium")
def test_tensorboard_shows_multirun(project):
    write_digits(project)
    overrides = ["experiment=mnist", "data.num_val=100", "data.batch_size=100", "trainer.log_every_n_steps=1"]
    run("train.py", "-m", *overrides, "optimizer=sgd,adamw", cwd=project)
    accuracies = {}
    for path in project.glob("outputs/mnist/*/*/results.json"):
        name = path.parent.relative_to(project / "outputs").as_posix()
        accuracies[name] = json.loads(path.read_text())["metrics"]["test/acc"]
    assert len(accuracies) == 2

    with tensorboard(project / "outputs") as address, browser_page(width=1800, height=1000) as page:
        problems = []
        page.on("pageerror", lambda error: problems.append(error))

        page.goto(address + "#timeseries")
        expect(page.locator("scalar-card").first).to_be_visible()
        for tag in ("test/acc", "test/loss", "val/loss", "train/loss", "train/lr", "train/epoch_seconds"):
            page.locator("input[placeholder='Filter tags (regex)']").fill(f"^{tag}$")
            card = page.locator("scalar-card").filter(has=page.locator(f"[title='{tag}']")).first
            expect(card.locator("line-chart .series-view").locator("svg, canvas").first).to_be_visible()
            for name, accuracy in accuracies.items():
                row = card.locator("tb-data-table-content-row").filter(has_text=name)
                expect(row).to_have_count(1)
                if tag == "test/acc":
                    expect(row).to_contain_text(f"{accuracy:.4g}")

        page.goto(address + "#images")
        page.reload()  # a new fragment of the same address does not load the page
        image = page.locator("tf-image-loader").filter(has_text="test/confusion_matrix").first.locator("img")
        expect(image).to_be_visible()
        size = image.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
        assert size == [640, 640]

        page.goto(address + "#hparams")
        page.reload()
        wait_for_trials(page, accuracies)
        page.set_default_timeout(1000)
        with pytest.raises(TimeoutError):
            wait_for_trials(page, [*accuracies, "a run that does not exist"])
        table = page.locator("tf-hparams-table-view")
        for value in ("optimizer", "test/acc", "SGD", "AdamW"):
            expect(table.get_by_text(value, exact=True).first).to_be_visible()
        for accuracy in accuracies.values():
            # TensorBoard always writes five digits, such as 1.0000.
            expect(table.get_by_text(f"{accuracy:#.5g}", exact=True).first).to_be_visible()
        assert not problems
