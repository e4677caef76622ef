"""Tests of `data=image_folder`."""

import json
from collections import Counter

import pytest
import yaml
from matplotlib import font_manager

from conftest import write_images

SMALL = ["data=image_folder", "data.image_shape=[3,16,16]", "data.batch_size=16", "data.num_workers=0", "model=cnn"]


def metrics(run):
    return json.loads((run / "results.json").read_text())["metrics"]


def test_classifier_learns_from_image_folder(train, script, image_folder, tmp_path):
    (run,) = train(*SMALL, f"data.root={image_folder}", "trainer.max_epochs=8")
    assert metrics(run)["test/acc"] > 0.9, "guessing has an accuracy of 1/3"
    script("predict.py", run, image_folder / "red/0_03.jpg", image_folder / "blue", "--output", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())
    assert rows[0]["label"] == "red"
    assert Counter(row["label"] for row in rows[1:])["blue"] > 25


def test_folds_contain_rare_class(train, image_folder):
    for path in sorted((image_folder / "red").iterdir())[5:]:
        path.unlink()
    quick = [*SMALL, f"data.root={image_folder}", "trainer.max_epochs=1"]
    runs = train("-m", *quick, "data.balance=true", "data.num_folds=2", "data.fold=0,1")
    first, second = ((run / "split.csv").read_text().splitlines() for run in runs)
    for lines in (first, second):
        assert sum(line.startswith("val,red,") for line in lines) == 2
    assert [line for line in first if line.startswith("test,")] == [line for line in second if line.startswith("test,")]
    assert not {line for line in first if line.startswith("val,")} & set(second)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn", "resnet18"])
def test_grayscale_images_train_and_resume(train, script, image_folder, tmp_path, model):
    size = ["data.image_shape=[1,16,16]", f"model={model}", *(["model.image_size=16"] if model == "resnet18" else [])]
    (run,) = train(*SMALL, *size, f"data.root={image_folder}", "trainer.max_epochs=1")
    config = yaml.safe_load((run / ".hydra/config.yaml").read_text())
    assert config["data"]["mean"] == [pytest.approx((0.485 + 0.456 + 0.406) / 3)]
    assert config["data"]["std"] == [pytest.approx((0.229 + 0.224 + 0.225) / 3)]
    script("resume.py", run, "trainer.max_epochs=2")
    assert json.loads((run / "results.json").read_text())["epochs"] == 2
    script("evaluate.py", run)
    script("predict.py", run, image_folder / "red", "--output", tmp_path / "out.json")
    assert len(json.loads((tmp_path / "out.json").read_text())) == 30


@pytest.mark.slow
def test_figures_handle_class_names_without_font(train, tmp_path, capfd, recwarn):
    """Uncommon characters are drawn in another font, or reported once if no font has them."""
    write_images(tmp_path / "P", 6, seed=0, colors=("red", "blue"))
    (tmp_path / "P/red").rename(tmp_path / "P/\U0001f63a猫")
    train(*SMALL, "trainer.max_epochs=2", f"data.root={tmp_path / 'P'}")
    fonts = [font for font in font_manager.fontManager.ttflist if not font.name.startswith("Last Resort")]
    letters = set().union(*(font_manager.get_font(font.fname).get_charmap() for font in fonts))
    is_missing = not set(map(ord, "\U0001f63a猫")) <= letters
    assert capfd.readouterr().out.count("No installed font has") == is_missing
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
