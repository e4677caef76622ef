"""Tests of image folders: their splits, and how their images are read."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter

import numpy
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

from project_for_tests import ROOT, environment, write_images
from torch_starter.data.image_files import ImageFiles
from torch_starter.data.images import read_image
from torch_starter.data.splits import read_splits, split_fold, write_splits

SMALL = ["data=image_folder", "data.image_shape=[3,16,16]", "data.batch_size=16", "model=cnn"]


def make(root, run_dir, *overrides):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("train", [*SMALL, f"data.root={root}", f"run_dir={run_dir}", *overrides])
    data = instantiate(config.data, _convert_="all")
    data.setup("fit")
    return data


def splits(path):
    """Return the images of each split."""
    rows = read_splits(path)
    return {split: {image for where, _, image in rows if where == split} for split in ("train", "val", "test")}


def metrics(run):
    return json.loads((run / "results.json").read_text())["metrics"]


def test_split_file_refuses_only_control_characters(tmp_path):
    path = tmp_path / "split.csv"
    # All of Latin-1, some other characters, an invalid byte, and characters that CSV must quote.
    others = [
        *map(chr, range(0xA0, 0x180)),
        *map(chr, range(0x20, 0x7F)),
        "\u2028",
        "\u200b",
        "\udcff",
        "\U0001f600",
        '"',
    ]
    rows = [("train", f"class {name}", f"class {name}/{name * 9}.jpg") for name in others]
    write_splits(path, rows)
    assert read_splits(path) == rows
    for name in {*map(chr, range(0xA0))} - {*others, "\r"}:  # csv.writer does not quote \r, so it would split the row.
        for row in (("train", f"a{name}", "a/b.jpg"), ("train", "a", f"a/{name}b.jpg")):
            write_splits(path, [*rows, row])
            with pytest.raises(MisconfigurationException, match="contains control characters in 'a"):
                read_splits(path)


def test_paths_can_have_any_length(tmp_path):
    names = [
        "a.png",
        "b" * 200 + ".png",
        "/".join(["c" * 100] * 9) + ".png",
        "déjà vu.png",
        os.fsdecode(b"caf\xe9.png"),
    ]
    images = ImageFiles(tmp_path, [(name, 0) for name in names], (3, 2, 2), 1.0, None, skip_broken=True)
    assert len(images) == len(names)
    for number, name in enumerate(names):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (number, 0, 0)).save(file)
    pixels, _ = images.batch(0, torch.arange(len(names)).flip(0))
    assert pixels[:, 0, 0, 0].tolist() == [4, 3, 2, 1, 0]
    for name in names[1:4]:
        (tmp_path / name).write_bytes(b"")
    images.batch(0, torch.arange(len(names)))
    assert images.broken_files() == [str(tmp_path / name) for name in names[1:4]]


def test_network_learns_from_image_folder(train, script, image_folder, tmp_path):
    (run,) = train(*SMALL, f"data.root={image_folder}", "trainer.max_epochs=8")
    assert metrics(run)["test/acc"] > 0.9, "guessing gives 1/3"
    script("predict.py", run, image_folder / "red/0_03.jpg", image_folder / "blue", "--output", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())
    assert rows[0]["label"] == "red"
    assert Counter(row["label"] for row in rows[1:])["blue"] > 25


def test_predictions_match_test_accuracy(train, script, image_folder, tmp_path):
    (run,) = train(*SMALL, f"data.root={image_folder}", "trainer.max_epochs=2")
    test = sorted(splits(run / "split.csv")["test"])
    script("predict.py", run, *(image_folder / image for image in test), "--output", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())
    right = sum(row["label"] == image.partition("/")[0] for row, image in zip(rows, test, strict=True))
    assert right / len(test) == pytest.approx(metrics(run)["test/acc"])


def test_error_lists_all_classes_with_too_few_images(train, image_folder):
    for path in [*sorted((image_folder / "red").iterdir())[2:], *sorted((image_folder / "blue").iterdir())[1:]]:
        path.unlink()
    with pytest.raises(SystemExit) as exit_:
        train(*SMALL, f"data.root={image_folder}")
    assert "blue (1), red (2)" in exit_.value.code
    assert "green" not in exit_.value.code
    shutil.copy(image_folder / "red/0_00.jpg", image_folder / "red/third.jpg")
    for name in ("second", "third"):
        shutil.copy(image_folder / "red/0_00.jpg", image_folder / f"blue/{name}.jpg")
    assert train(*SMALL, f"data.root={image_folder}", "trainer.max_epochs=1")


# Splits


def test_random_splits_are_stratified_and_seeded(image_folder, tmp_path):
    shutil.rmtree(image_folder / "green")
    write_images(image_folder, 20, seed=1, colors=("blue",))
    data = make(image_folder, tmp_path, "data.val_share=0.1", "data.test_share=0.2")
    assert Counter(data.train_set.labels.tolist()) == {0: 35, 1: 21}
    assert Counter(data.val_set.labels.tolist()) == {0: 5, 1: 3}
    assert Counter(data.test_set.labels.tolist()) == {0: 10, 1: 6}
    found = splits(tmp_path / "split.csv")
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 80

    for seed, same in ((42, True), (0, False)):
        (tmp_path / str(seed)).mkdir()
        make(image_folder, tmp_path / str(seed), f"seed={seed}")
        assert (splits(tmp_path / str(seed) / "split.csv") == found) == same


@pytest.mark.parametrize("given", [["test"], ["val"], ["test", "val"], []], ids="+".join)
def test_missing_splits_are_taken_from_training(tmp_path, given):
    for seed, split in enumerate(["train", *given]):
        write_images(tmp_path / "images" / split, 10, seed=seed)
    make(tmp_path / "images", tmp_path)
    found = splits(tmp_path / "split.csv")
    for split in ("val", "test"):
        if split in given:
            assert len(found[split]) == 30
            assert all(image.startswith(f"{split}/") for image in found[split])
        else:
            assert found[split]
            assert all(image.startswith("train/") for image in found[split])
    assert not found["train"] & (found["val"] | found["test"])


def test_folder_named_train_can_be_class(tmp_path):
    write_images(tmp_path / "images", 10, seed=0)
    (tmp_path / "images/red").rename(tmp_path / "images/train")
    assert make(tmp_path / "images", tmp_path).class_names == ["blue", "green", "train"]


@pytest.mark.slow
def test_new_images_do_not_leak_into_splits(train, script, image_folder, tmp_path, capfd):
    (run,) = train(*SMALL, f"data.root={image_folder}", "trainer.max_epochs=1")
    before = splits(run / "split.csv")
    loss = metrics(run)["test/loss"]
    write_images(image_folder, 10, seed=9)
    capfd.readouterr()
    script("evaluate.py", run, "--json")
    assert json.loads(capfd.readouterr().out)["metrics"]["test/loss"] == loss
    script("resume.py", run, "trainer.max_epochs=2")
    assert splits(run / "split.csv") == before

    (other,) = train(*SMALL, f"data.root={image_folder}", "trainer.max_epochs=1", f"data.split_of={run}", "seed=3")
    after = splits(other / "split.csv")
    assert (after["val"], after["test"]) == (before["val"], before["test"])
    assert after["train"] == before["train"] | {
        f"{color}/9_{number:02}.jpg" for color in ("blue", "green", "red") for number in range(10)
    }


def test_split_of_keeps_test_folder(tmp_path):
    for seed, split in enumerate(["train", "test"]):
        write_images(tmp_path / "images" / split, 10, seed=seed)
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    make(tmp_path / "images", tmp_path / "first")
    before = splits(tmp_path / "first/split.csv")
    for seed, split in enumerate(["train", "test"], start=8):
        write_images(tmp_path / "images" / split, 2, seed=seed)
    make(tmp_path / "images", tmp_path / "second", f"data.split_of={tmp_path / 'first'}")
    after = splits(tmp_path / "second/split.csv")
    assert after["val"] == before["val"]
    assert len(after["train"] - before["train"]) == len(after["test"] - before["test"]) == 6
    assert all(image.startswith("test/") for image in after["test"])


def test_predict_works_without_training_images(train, script, image_folder, tmp_path):
    (run,) = train(*SMALL, f"data.root={image_folder}", "trainer.max_epochs=1")
    shutil.copy(image_folder / "red/0_00.jpg", tmp_path / "one.jpg")
    shutil.rmtree(image_folder)
    script("predict.py", run, tmp_path / "one.jpg")


# Folds


def test_folds_partition_samples_and_are_stratified():
    labels = torch.tensor([0] * 7 + [1] * 12 + [2] * 5)
    order = torch.randperm(24)
    folds = []
    for fold in range(5):
        rest, taken = split_fold(order, 5, fold)
        assert sorted([*rest.tolist(), *taken.tolist()]) == list(range(24))
        assert rest.tolist() == [sample for sample in order.tolist() if sample in rest], "split_fold changed the order"
        folds += taken.tolist()
        assert len(taken) in (4, 5)
        counts = labels[split_fold(torch.arange(24), 5, fold)[1]].bincount(minlength=3)
        assert all(abs(count - share / 5) < 1 for count, share in zip(counts.tolist(), (7, 12, 5), strict=True))
    assert sorted(folds) == list(range(24))


@pytest.mark.parametrize(
    ("num_folds", "fold", "message"),
    [
        (1, 0, "data.num_folds is 1; it must be null or an integer of at least 2"),
        (2.5, 0, "data.num_folds is 2.5; it must be null or an integer of at least 2"),
        (5, 7, r"data.fold is 7; with data.num_folds=5 it must be an integer from 0 to 4\."),
        (5, -1, "data.fold is -1; with data.num_folds=5 it must be an integer from 0 to 4"),
        (5, 1.0, "data.fold is 1.0; with data.num_folds=5 it must be an integer from 0 to 4"),
        (11, 0, "data.num_folds is 11, but there are 10 samples for training and validation"),
    ],
)
def test_nonexistent_fold_raises_error(num_folds, fold, message):
    with pytest.raises(MisconfigurationException, match=message):
        split_fold(torch.arange(10), num_folds, fold)


@pytest.mark.parametrize("has_test", [False, True])
def test_folds_partition_images_outside_test_split(tmp_path, has_test):
    root = tmp_path / "images"
    write_images(root / "train" if has_test else root, 11, seed=0)
    if has_test:
        write_images(root / "test", 3, seed=1)
    make(root, tmp_path)
    without = splits(tmp_path / "split.csv")
    folds = []
    for fold in range(3):
        (tmp_path / str(fold)).mkdir()
        data = make(root, tmp_path / str(fold), "data.num_folds=3", f"data.fold={fold}")
        found = splits(tmp_path / str(fold) / "split.csv")
        assert found["test"] == without["test"]
        assert found["train"] | found["val"] == without["train"] | without["val"]
        assert max(counts := data.val_set.labels.bincount().tolist()) - min(counts) <= 1
        folds += found["val"]
    assert sorted(folds) == sorted(without["train"] | without["val"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.fold=2"], "data.fold is 2, but data.num_folds is null, .* Set both"),
        (
            ["data.num_folds=5", "data.fold=5"],
            "data.fold is 5; with data.num_folds=5 it must be an integer from 0 to 4",
        ),
        (["data.num_folds=5", "data.split_of=RUN"], "data.num_folds is 5, but data.split_of=RUN fixes the validation"),
        (
            ["data.num_folds=25"],
            r"Too few images in: .*red \(30\)\. Each class needs at least 31: one for each of 25",
        ),
    ],
)
def test_invalid_folds_raise_error(train, image_folder, arguments, message):
    with pytest.raises(SystemExit, match=message):
        train(*SMALL, f"data.root={image_folder}", *arguments)


def test_folds_with_validation_folder_raise_error(train, tmp_path):
    for seed, name in enumerate(("train", "valid")):
        write_images(tmp_path / "P" / name, 10, seed=seed)
    with pytest.raises(SystemExit, match=r"but the folder \S+valid fixes the validation set already\. Remove data"):
        train(*SMALL, f"data.root={tmp_path / 'P'}", "data.num_folds=5")


@pytest.mark.slow
def test_multirun_over_folds_validates_each_image_once(train, image_folder):
    quick = [*SMALL, f"data.root={image_folder}", "data.num_workers=0", "trainer.max_epochs=1"]
    runs = train("-m", *quick, "data.num_folds=3", "data.fold=0,1,2")
    found = [splits(run / "split.csv") for run in runs]
    validated = [image for split in found for image in split["val"]]
    assert len(validated) == len(set(validated)) == 72
    assert found[0]["test"] == found[1]["test"] == found[2]["test"]
    assert len({metrics(run)["val/loss"] for run in runs}) == 3


# Rare classes


def make_rare(image_folder):
    for path in sorted((image_folder / "red").iterdir())[5:]:
        path.unlink()


def test_balanced_epoch_draws_all_classes_equally(image_folder, tmp_path):
    make_rare(image_folder)
    data = make(image_folder, tmp_path, "data.balance=true", "data.num_workers=0")
    plain = make(image_folder, tmp_path, "data.num_workers=0")
    assert torch.cat([labels for _, labels in plain.train_dataloader()]).bincount().tolist() == [21, 21, 3]
    loader, seen = data.train_dataloader(), []
    for epoch in range(20):
        loader.set_epoch(epoch)
        seen += [labels for _, labels in loader]
    shares = torch.cat(seen).bincount() / (20 * 45)
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.06)


@pytest.mark.slow
def test_balanced_run_resumes_and_evaluates_each_image_once(train, script, image_folder, tmp_path, capfd):
    make_rare(image_folder)
    quick = [*SMALL, f"data.root={image_folder}", "data.balance=true", "scheduler=constant"]
    (whole,) = train(*quick, "data.num_workers=0", "trainer.max_epochs=2")
    (parts,) = train(*quick, "data.num_workers=2", "trainer.max_epochs=1")
    script("resume.py", parts, "trainer.max_epochs=2")
    assert all(weights(whole)[name].equal(weights(parts)[name]) for name in weights(whole))

    images = sorted(splits(whole / "split.csv")["train"])
    script("predict.py", whole, *(image_folder / image for image in images), "--output", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())
    right = sum(row["label"] == image.partition("/")[0] for row, image in zip(rows, images, strict=True))
    capfd.readouterr()
    script("evaluate.py", whole, "--split", "train", "--json")
    found = json.loads(capfd.readouterr().out)["metrics"]["train/acc"]
    assert found == pytest.approx(right / len(images)), "evaluation did not use each image once"


# Files of all kinds


def test_images_of_all_formats_are_read(image_folder, tmp_path):
    noise = numpy.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=numpy.uint8)
    image = Image.fromarray(noise)
    red = image_folder / "red"
    shutil.rmtree(red)
    red.mkdir()
    image.save(red / "plain.png")
    image.convert("CMYK").save(red / "print.jpg")
    image.convert("L").save(red / "gray.jpg")
    image.convert("P").save(red / "palette.png")
    image.convert("RGBA").save(red / "transparent.png")
    image.save(red / "capitals.JPG")
    image.save(red / "scan.tif")
    image.save(red / "bitmap.bmp")
    image.save(red / "web.webp")
    Image.fromarray(noise[..., 0].astype(numpy.uint16) * 257).save(red / "sixteen_bits.png")
    (red / "deeper").mkdir()
    image.save(red / "deeper/nested.png")
    # Files that are not images:
    (red / "notes.txt").write_text("red ones")
    (red / "._plain.png").write_bytes(b"macOS")
    (image_folder / ".ipynb_checkpoints").mkdir()
    data = make(image_folder, tmp_path, "data.num_workers=0")
    assert data.class_names == ["blue", "green", "red"]
    names = {path for split in splits(tmp_path / "split.csv").values() for path in split if path.startswith("red/")}
    assert len(names) == 11
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for images, labels in loader:
            assert images.shape[1:] == (3, 16, 16)
            assert images.dtype == torch.uint8
            assert labels.dtype == torch.int64
    gray = make(image_folder, tmp_path / "gray", "data.image_shape=[1,16,16]", "data.num_workers=0")
    assert next(iter(gray.train_dataloader()))[0].shape[1:] == (1, 16, 16)


MISTAKES = {
    "no such folder": (shutil.rmtree, ["no folder of images", "IMAGES/cat/1.jpg"]),
    "no class folders": (lambda folder: [shutil.rmtree(path) for path in folder.iterdir()], ["no folder of images"]),
    "an empty class": (lambda f: (f / "yellow").mkdir(), ["classes without images: yellow"]),
    "a class of no images": (
        lambda f: ((f / "words").mkdir(), (f / "words/a.txt").write_text("a")),
        ["classes without images: words", ".jpg"],
    ),
    "one class": (lambda f: [shutil.rmtree(f / name) for name in ("red", "green")], ["only one class"]),
    "two images": (
        lambda f: [path.unlink() for path in sorted((f / "red").iterdir())[2:]],
        ["Too few images in: red (2)", "at least 3", "val and test"],
    ),
    "a class that only the test has": (
        lambda f: (
            write_images(f / "train", 5, seed=0, colors=("red", "blue")),
            write_images(f / "test", 2, seed=1),
        ),
        ["test has classes that are missing from", "train: green"],
    ),
    "an empty test": (
        lambda f: (write_images(f / "train", 5, seed=0), (f / "test").mkdir()),
        ["test has no images"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_invalid_folder_raises_error(train, image_folder, mistake):
    make_mistake, messages = MISTAKES[mistake]
    make_mistake(image_folder)
    with pytest.raises(SystemExit) as exit_:
        train(*SMALL, f"data.root={image_folder}")
    for message in messages:
        assert message in exit_.value.code
    assert len(exit_.value.code.splitlines()) <= 4


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["data.val_share=1"], ["data.val_share is 1", "between 0 and 1"]),
        (["data.image_shape=[4,16,16]"], ["1 or 3 channels"]),
        (["data.mean=[0.5,0.5]"], ["data.mean is [0.5, 0.5]: 2 values, but images have 3 channels"]),
        (["data.std=[0.2,0.2]", "data.image_shape=[1,16,16]"], ["data.std is [0.2, 0.2]: 2 numbers", "1 channels"]),
        (["data.std=[0.2,0,0.2]"], ["data.std is [0.2, 0, 0.2]", "greater than 0"]),
        (["data.mean=0.5"], ["data.mean is 0.5", "a list"]),
        (["data.num_workers=-1"], ["data.num_workers is -1"]),
        (["data.split_of=nowhere"], ["data.split_of is nowhere"]),
        # A network for gray images, although the data module gives RGB images.
        (
            ["model.network.image_shape=[1,16,16]"],
            ["CNN does not accept images of [3, 16, 16]", "1 channels", "model="],
        ),
        (["model.network.num_classes=2"], ["CNN returns logits of shape [2] per image; the data have 3 classes"]),
    ],
    ids=lambda value: value[0] if "=" in value[0] else "",
)
def test_invalid_setting_raises_error(train, image_folder, arguments, messages):
    with pytest.raises(SystemExit) as exit_:
        train(*SMALL, f"data.root={image_folder}", *arguments)
    for message in messages:
        assert message in exit_.value.code
    assert len(exit_.value.code.splitlines()) <= 4


def test_missing_root_raises_error(train):
    with pytest.raises(SystemExit, match=r"data\.root has no default\. Set it: data\.root=…"):
        train(*SMALL)


def damage(image_folder, count=3):
    """Damage training images in up to three ways and return their paths."""
    paths = sorted((image_folder / "train/red").iterdir())[:count]
    paths[0].write_bytes(paths[0].read_bytes()[:400])
    if count > 1:
        paths[1].write_text("not an image")
        paths[2].write_bytes(b"")
    return paths


@pytest.mark.parametrize("workers", [0, 2])
def test_error_names_broken_image(train, tmp_path, capfd, workers):
    write_images(tmp_path / "images/train", 30, seed=0)
    (path,) = damage(tmp_path / "images", count=1)
    with pytest.raises(SystemExit) as exit_:
        train(*SMALL, f"data.root={tmp_path / 'images'}", f"data.num_workers={workers}", "data.test_share=0.01")
    assert exit_.value.code.startswith(f"{path}: it cannot be read")
    assert exit_.value.code.endswith("skip such files: data.skip_broken=true")
    assert len(exit_.value.code.splitlines()) == 1
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_broken_images_are_counted(train, tmp_path, capfd, workers):
    write_images(tmp_path / "images/train", 30, seed=0)
    write_images(tmp_path / "images/test", 5, seed=1)
    write_images(tmp_path / "images/val", 5, seed=2)
    broken = damage(tmp_path / "images")
    quick = [f"data.num_workers={workers}", "data.skip_broken=true", "trainer.max_epochs=2"]
    (run,) = train(*SMALL, f"data.root={tmp_path / 'images'}", *quick)
    (line,) = (line for line in capfd.readouterr().out.splitlines() if "skipped" in line)
    assert line.startswith("3 files were skipped")
    for path in broken:
        assert str(path) in line
    assert metrics(run)["train/acc"] > 0.5


# Workers


def weights(run):
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
def test_workers_and_resuming_do_not_change_run(train, script, image_folder):
    quick = [*SMALL, f"data.root={image_folder}", "scheduler=constant"]
    (none,) = train(*quick, "data.num_workers=0", "trainer.max_epochs=3")
    (two,) = train(*quick, "data.num_workers=2", "trainer.max_epochs=3")
    (parts,) = train(*quick, "data.num_workers=2", "trainer.max_epochs=1")
    script("resume.py", parts, "trainer.max_epochs=3")
    (often,) = train(*quick, "data.num_workers=2", "trainer.max_epochs=3", "trainer.val_check_interval=2")
    for other in (two, parts, often):
        assert all(weights(none)[name].equal(weights(other)[name]) for name in weights(none))
    assert metrics(none) == metrics(two) == metrics(parts)
    (plain,) = train(*quick, "data.augmentation=null", "trainer.max_epochs=3")
    assert metrics(plain) != metrics(none)


@pytest.mark.slow
def test_spawned_workers_do_not_change_run(train, image_folder, tmp_path):
    """Windows and macOS spawn workers: each imports everything again."""
    quick = [*SMALL, f"data.root={image_folder}", "data.num_workers=1", "trainer.max_epochs=1"]
    (here,) = train(*quick)
    start = (
        "import multiprocessing, runpy, sys; multiprocessing.set_start_method('spawn'); sys.argv = sys.argv[1:];"
        "sys.path.insert(0, sys.argv[1]); runpy.run_path(sys.argv.pop(1) + '/train.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", start, "train.py", str(ROOT), *quick, f"hydra.run.dir={tmp_path / 'spawned'}"]
    one_thread = environment() | {"OMP_NUM_THREADS": "1"}  # as in this process
    done = subprocess.run(command, cwd=tmp_path, env=one_thread, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "spawned") == metrics(here)


class Count(Callback):
    """Records the worker processes, except those that an earlier test of failures may have left."""

    seen: list[set[int]]

    def __init__(self):
        Count.seen = []
        self.earlier = {process.pid for process in multiprocessing.active_children()}

    def on_train_batch_end(self, *args):
        Count.seen.append({process.pid for process in multiprocessing.active_children()} - self.earlier)

    on_validation_batch_end = on_train_batch_end


def test_training_and_validation_share_persistent_workers(train, image_folder):
    counted = ["+callbacks.count._target_=test_image_folder.Count", "data.num_workers=2", "trainer.max_epochs=3"]
    train(*SMALL, f"data.root={image_folder}", *counted)
    assert len(Count.seen) > 10
    assert len(Count.seen[0]) == 2
    assert all(seen == Count.seen[0] for seen in Count.seen)


@pytest.mark.skipif(sys.platform != "linux", reason="signals to process groups differ on other systems")
def test_ctrl_c_stops_workers_silently(image_folder, tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, f"data.root={image_folder}", "data.num_workers=2"]
    with subprocess.Popen(
        [*command, "trainer.max_epochs=10000", "callbacks.progress.lines=10000"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("epoch"):
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does
                break
        lines += process.stdout.readlines()
    assert process.returncode == 128 + signal.SIGINT
    assert lines[-1].startswith("stopped; resume with")
    assert "Traceback" not in "".join(lines)


class Strike(Callback):
    """Disturbs the worker processes once, in the second training batch."""

    def on_train_batch_start(self, trainer, module, batch, number):
        if number == 1:
            self.strike(trainer.datamodule.workers.loader._iterator._workers)


class Kill(Strike):
    def strike(self, workers):
        os.kill(workers[0].pid, signal.SIGKILL)


class LimitMemory(Strike):
    def strike(self, workers):
        import resource

        for worker in workers:
            resource.prlimit(worker.pid, resource.RLIMIT_AS, (1, 1))


@pytest.mark.skipif(sys.platform != "linux", reason="memory limits and signals differ on other systems")
@pytest.mark.parametrize("strike", ["Kill", "LimitMemory"])
def test_killed_worker_raises_single_error(train, image_folder, strike):
    small = [*SMALL, f"data.root={image_folder}", "data.batch_size=2", "trainer.max_epochs=2"]
    earlier = set(multiprocessing.active_children())
    with pytest.raises(SystemExit) as exit_:
        train(*small, "data.num_workers=2", f"+callbacks.strike._target_=test_image_folder.{strike}")
    assert exit_.value.code.startswith("A worker process ")
    assert "memory" in exit_.value.code
    assert "data.num_workers=0" in exit_.value.code
    assert set(multiprocessing.active_children()) <= earlier
    assert train(*small, "data.num_workers=0")


@pytest.fixture
def small_shared_memory():
    """Return the prefix of a command that gives it 1 MB of shared memory, as a container does; others keep theirs."""
    if not shutil.which("unshare"):
        pytest.skip("unshare is not available")
    prefix = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c"]
    prefix += ['mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh"]
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"/dev/shm cannot be mounted: {tried.stderr}")
    return prefix


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train.py", "predict.py"])
def test_full_shared_memory_error_suggests_remedies(small_shared_memory, train, image_folder, tmp_path, name):
    arguments = [*SMALL, "data.image_shape=[3,96,96]", "data.batch_size=60", f"data.root={image_folder}"]
    arguments += ["data.num_workers=2", "trainer.max_epochs=1"]
    remedy = "data.num_workers=0"
    if name == "predict.py":
        arguments = [*train(*arguments), image_folder, "--output", tmp_path / "out.json"]
        remedy = "--num-workers=0"
    command = [*small_shared_memory, sys.executable, str(ROOT / name), *map(str, arguments)]
    one_thread = environment() | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=one_thread, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    (message,) = (line for line in done.stderr.splitlines() if "/dev/shm" in line)
    assert "--shm-size" in message
    assert remedy in message
    assert "Traceback" not in done.stderr
    subprocess.run([*command, remedy], cwd=tmp_path, env=one_thread, check=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_memory_does_not_grow_with_number_of_images(tmp_path):
    """As uint8 tensors, the images beyond the first 1,000 would take 111 MB."""
    write_images(tmp_path / "few", 1, seed=0)
    (content,) = ((path.read_bytes()) for path in (tmp_path / "few/red").iterdir())
    peaks = {}
    for count in (1_000, 10_000):
        for color in ("red", "green"):
            folder = tmp_path / str(count) / color
            folder.mkdir(parents=True)
            for number in range(count // 2):
                (folder / f"{number}.jpg").write_bytes(content)
        code = (
            "import re, resource, runpy, sys; sys.argv = ['train.py', *sys.argv[2:]];"
            "script = sys.path[0] + '/train.py';"
            "runpy.run_path(script, run_name='__main__');"
            # The peak that getrusage reports is at least that of the parent process, so this reads VmHWM.
            "mine = int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]);"
            "print(max(mine, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))"
        )
        overrides = ["data=image_folder", f"data.root={tmp_path / str(count)}", "data.image_shape=[3,64,64]"]
        overrides += ["model=cnn", "data.num_workers=2", "data.batch_size=128", "trainer.max_epochs=1"]
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}", "-", *overrides],
            cwd=tmp_path,
            # Makes glibc return freed memory immediately; otherwise it keeps up to hundreds of MB.
            env=environment() | {"MALLOC_MMAP_THRESHOLD_": "65536"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        peaks[count] = int(done.stdout.splitlines()[-1])  # in KiB
    assert peaks[10_000] - peaks[1_000] < 55_000, peaks


# Files that are images, and folders that are splits

IF = [*SMALL, "data.num_workers=0", "trainer.max_epochs=1"]


@pytest.mark.parametrize(("train_name", "val_name"), [("train", "valid"), ("Training", "Validation"), ("TRAIN", "dev")])
def test_common_split_names_are_recognized(tmp_path, train_name, val_name):
    for number, name in enumerate((train_name, val_name, "Test")):
        write_images(tmp_path / "P" / name, 10 + number, seed=number)
    data = make(tmp_path / "P", tmp_path)
    assert [len(dataset) for dataset in (data.train_set, data.val_set, data.test_set)] == [30, 33, 36]


def test_two_folders_of_one_split_raise_error(train, tmp_path):
    for name in ("train", "val", "valid"):
        write_images(tmp_path / "P" / name, 5, seed=0)
    with pytest.raises(SystemExit, match="are both folders for val"):
        train(*IF, f"data.root={tmp_path / 'P'}")


def test_training_and_prediction_find_same_images(train, script, tmp_path, capfd):
    """Suffixes do not matter."""
    for color, value in (("blue", 40), ("red", 200)):
        folder = tmp_path / "P" / color
        folder.mkdir(parents=True)
        for number, ending in enumerate(("jpg", "JPG", "jfif", "gif", "webp", "tif", "dat", "png", "bmp", "avif")):
            kind = {"jpg": "jpeg", "jfif": "jpeg", "dat": "jpeg", "tif": "tiff"}.get(ending.lower(), ending)
            try:
                Image.new("RGB", (20, 20), (value, 50, 50)).save(folder / f"{number}.{ending}", format=kind)
            except (KeyError, OSError):  # This Pillow was built without the format.
                Image.new("RGB", (20, 20), (value, 50, 50)).save(folder / f"{number}.png")
        (folder / "notes.txt").write_text("not an image")
    (train_run,) = train(*IF, f"data.root={tmp_path / 'P'}")
    assert sum(map(len, splits(train_run / "split.csv").values())) == 20
    with pytest.raises(SystemExit) as exit_:
        script("predict.py", train_run, tmp_path / "P", "--output", "x.json")
    assert exit_.value.code.count("skipped") == exit_.value.code.count("notes.txt") == 2
    assert len(json.loads((tmp_path / "x.json").read_text())) == 20


@pytest.mark.slow
def test_ignored_files_are_reported_once(train, script, tmp_path, capfd):
    for name in ("train", "test"):
        write_images(tmp_path / "P" / name, 5, seed=0)
    (tmp_path / "P/README.md").write_text("about")
    (tmp_path / "P/extra").mkdir()
    shutil.copy(tmp_path / "P/train/red/0_00.jpg", tmp_path / "P/train/stray.jpg")
    (tmp_path / "P/train/red/labels.json").write_text("{}")
    (tmp_path / "P/train/red/.DS_Store").write_text("hidden")
    (run,) = train(*IF, f"data.root={tmp_path / 'P'}")
    printed = capfd.readouterr().out
    assert printed.count("are ignored because") == 1
    assert "4 files and folders" in printed
    for name in ("README.md", "extra", "train/stray.jpg", "train/red/labels.json"):
        assert name in printed
    script("resume.py", run, "trainer.max_epochs=2")
    script("evaluate.py", run)
    printed = capfd.readouterr()
    assert "are ignored" not in printed.out + printed.err


@pytest.mark.slow
def test_error_explains_moved_and_removed_images(train, script, image_folder, capfd):
    (run,) = train(*IF, f"data.root={image_folder}")
    moved = image_folder.rename(image_folder.with_name("elsewhere"))
    with pytest.raises(SystemExit, match=r"moved, set their folder: data\.root=FOLDER"):
        script("evaluate.py", run)
    script("evaluate.py", run, f"data.root={moved}")
    test = next(iter(splits(run / "split.csv")["test"]))
    (moved / test).unlink()
    with pytest.raises(SystemExit, match=r"removed, skip them: data\.skip_broken=true"):
        script("evaluate.py", run, f"data.root={moved}")
    script("evaluate.py", run, f"data.root={moved}", "data.skip_broken=true")


# Pixels of more than 8 bits


def saved(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return str(path)


@pytest.mark.parametrize(
    ("name", "pixels", "options"),
    [
        ("16.png", numpy.array([[0, 128 << 8, 65535]], numpy.uint16), {}),
        ("16.tif", numpy.array([[0, 128 << 8, 65535]], numpy.uint16), {}),
        ("float.tif", numpy.array([[0, 128 / 255, 1]], numpy.float32), {}),
        ("12.tif", numpy.array([[0, 2056, 4095]], numpy.uint16), {"tiffinfo": {281: 4095}}),
        ("32.tif", numpy.array([[0, 128 * 257, 65535]], numpy.int32), {"tiffinfo": {281: 65535}}),
    ],
)
def test_wide_pixels_are_scaled_from_their_range(tmp_path, name, pixels, options):
    found = read_image(saved(tmp_path / name, pixels, **options), 1)
    assert found.flatten().tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("name", "pixels", "reason"),
    [
        ("float.tif", numpy.array([[0, 300]], numpy.float32), "floats from 0 to 300"),
        ("negative.tif", numpy.array([[-1, 1]], numpy.float32), "floats from -1 to 1"),
        ("nan.tif", numpy.array([[0, numpy.nan]], numpy.float32), "floats from nan"),
        ("32.tif", numpy.array([[0, 70000]], numpy.int32), "32-bit numbers from 0 to 70000"),
        ("12.png", numpy.array([[0, 4095]], numpy.uint16), "but use 12 at most"),
        ("12.tif", numpy.array([[0, 4095]], numpy.uint16), "but use 12 at most"),
    ],
)
def test_wide_pixels_of_unknown_range_raise_error(tmp_path, name, pixels, reason):
    with pytest.raises(ValueError, match=reason):
        read_image(saved(tmp_path / name, pixels), 1)


# Names


@pytest.mark.parametrize(("pixels", "tag"), [("uint16", 262), ("float32", 262), ("uint8", 339)])
def test_inverted_and_signed_pixels_raise_error(tmp_path, pixels, tag):
    from PIL import TiffImagePlugin

    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[tag] = 0 if tag == 262 else (2,)
    values = numpy.full((8, 8), 60_000 if pixels == "uint16" else 1).astype(pixels)
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo=tags)
    with pytest.raises(ValueError, match="save it as a PNG"):
        read_image(str(tmp_path / "a.tif"), 1)


@pytest.mark.parametrize("folders", [("val", "test"), ("blue", "red", "test")])
def test_missing_training_folder_raises_error(train, tmp_path, folders):
    for folder in folders:
        write_images(tmp_path / "P" / folder, 8, seed=0)
    message = r"with folders in it, but no training set\. Rename the folder of the training images to train"
    with pytest.raises(SystemExit, match=message):
        train(*SMALL, f"data.root={tmp_path / 'P'}")


@pytest.mark.parametrize("name", ["???", "${seed}", "a\nb"])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not allow such names")
def test_unstorable_class_name_raises_error_before_training(train, image_folder, name):
    (image_folder / "red").rename(image_folder / name)
    with pytest.raises(SystemExit, match=r"data\.class_names contains .* special meaning"):
        train(*SMALL, f"data.root={image_folder}", "trainer.max_epochs=1")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems require valid text")
def test_file_names_can_contain_invalid_utf8(train, script, tmp_path, capfd):
    write_images(tmp_path / "P", 6, seed=0, colors=("red", "blue"))
    os.rename(os.fsencode(tmp_path / "P/red"), os.fsencode(tmp_path / "P") + b"/caf\xe9")
    for color in (tmp_path / "P").iterdir():
        os.rename(color / "0_00.jpg", os.fsencode(color) + b"/caf\xe9.jpg")
    (run,) = train(*SMALL, "data.num_workers=0", "trainer.max_epochs=2", f"data.root={tmp_path / 'P'}")
    script("evaluate.py", run, "--json")
    for name in ("results/p.csv", "more/results/p.json"):
        script("predict.py", run, tmp_path / "P", "--output", name)
    assert b"caf\xe9.jpg" in (tmp_path / "results/p.csv").read_bytes()
    rows = json.loads((tmp_path / "more/results/p.json").read_text())
    assert sum(os.fsencode(row["input"]).endswith(b"caf\xe9.jpg") for row in rows) == 2
    script("predict.py", run, tmp_path / "P")
    script("resume.py", run, "trainer.max_epochs=3")
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("output", ["file/p.csv", "n" * 300 + "/p.csv"])
def test_unwritable_output_raises_error_before_work(line, script, tmp_path, output):
    (tmp_path / "file").touch()
    for verb, words in (("predict.py", ["4"]), ("export.py", ["--format", "pt2"])):
        with pytest.raises(SystemExit, match=r"^--output .* cannot be written: "):
            script(verb, line, *words, "--output", output)
