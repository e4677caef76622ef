"""Your own pictures, in one folder per class; they stay on the disk."""

import csv
import io
import logging
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from .augmentation import Augmentation, augmentation
from .batches import BatchLoader, shuffle_seed, workers_for
from .pictures import find_pictures, fit, is_image, read_picture

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
# What people call them, in any case.
NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}


class ImageFolderDataModule(LightningDataModule):
    """A folder of pictures of any size, one subfolder per class, perhaps within ``train``, ``val`` and ``test``.

    The splits may have other usual names, see ``NAMES``. What is left out, such as files that are no pictures, is
    counted and named when the splits are made.

    Of ``val`` and ``test``, what is not there is cut from the training pictures: with the seed, the same share of each
    class. Which picture is in which split is written into the run folder, and read there when the run is resumed or
    evaluated; pictures that arrive later do not change it. Pictures are decoded as they are needed, by worker
    processes. Batches are pairs: uint8 images (N, C, H, W), 0 to 255, and int64 labels (N,).

    Args:
        root: the folder.
        image_shape: channels (1 or 3), height and width to which pictures are scaled and cut.
        center_crop_share: in validation, test and prediction, what is left of the shorter side, in (0, 1].
        num_classes: of a run that is resumed or evaluated; a new one has as many as the folder.
        class_names: names of the class folders, by label; checked against the folder. None: those that there are.
        mean: of the training images, per channel, on the scale 0 to 1. For the model to read. Three numbers are
            averaged for images of one channel.
        std: standard deviation of the training images, likewise.
        batch_size: pictures per step.
        val_share: share of each class that is cut off for validation if there is no ``val``, in (0, 1).
        test_share: share of each class that is cut off for the test if there is no ``test``, in (0, 1).
        split_file: where the splits of this run are written, and read if they are there.
        split_of: folder of another run, whose validation and test pictures stay so; nothing more is cut from training.
        augmentation: for training, transforms of ``torchvision.transforms.v2`` by names of your own; what they make is
            then scaled and cut to ``image_shape``, if it is of another size.
        skip_broken: leave out files that cannot be read, and say at the end which, instead of stopping there.
        num_workers: processes that decode, see ``workers_for``.
        seed: of the cut, of the order of the training batches and of the augmentation.

    Raises:
        MisconfigurationException: if the folder is not what it should be; it says what is wrong where.
    """

    def __init__(
        self,
        root: str,
        image_shape: Sequence[int],
        center_crop_share: float,
        num_classes: int | None,
        class_names: Sequence[str] | None,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        val_share: float,
        test_share: float,
        split_file: str,
        split_of: str | None,
        augmentation: Mapping[str, Any] | None,
        skip_broken: bool,
        num_workers: int | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.root = Path(root).expanduser()
        self.image_shape = tuple(image_shape)
        self.center_crop_share = center_crop_share
        self.num_classes = num_classes
        self.class_names = class_names
        self.mean, self.std = (
            [sum(values) / 3] if image_shape[0] == 1 and len(values) == 3 else values for values in (mean, std)
        )
        self.batch_size = batch_size
        self.shares = {"val": val_share, "test": test_share}
        self.split_file = Path(split_file)
        self.split_of = split_of
        self.augmentation = augmentation
        self.skip_broken = skip_broken
        self.num_workers = num_workers
        self.seed = seed
        self.invert = False  # for `predict.py`
        for name, share in {**self.shares, "center_crop": center_crop_share}.items():
            if not 0 < share < 1 and not (name == "center_crop" and share == 1):
                raise MisconfigurationException(f"data.{name}_share is {share}; it must be between 0 and 1.")
        if image_shape[0] not in (1, 3):
            raise MisconfigurationException(f"data.image_shape is {list(image_shape)}; pictures have 1 or 3 channels.")

    def facts(self) -> dict[str, Any]:
        """What the config leaves open and the folder says."""
        self._read()
        return {name: getattr(self, name) for name in ("num_classes", "class_names", "mean", "std")}

    def setup(self, stage: str) -> None:
        if not hasattr(self, "train_set"):
            self._read()
        if not hasattr(self, "workers"):
            self.workers = workers_for([self.train_set, self.val_set, self.test_set], self.num_workers)

    def _read(self) -> None:
        """All three splits."""
        rows = read_splits(self.split_file) if self.split_file.exists() else self._make_splits()
        classes = sorted({name for split, name, _ in rows if split == "train"})
        if self.class_names is not None and list(self.class_names) != classes:
            raise MisconfigurationException(
                f"data.class_names is {list(self.class_names)}, but {self.split_file} has {classes}."
            )
        self.class_names, self.num_classes = classes, len(classes)
        labels = {name: label for label, name in enumerate(classes)}
        datasets = {}
        for split in SPLITS:
            here = [(picture, labels[name]) for where, name, picture in rows if where == split]
            augment = augmentation(self.augmentation, self.seed) if split == "train" else None
            datasets[split] = PictureFiles(
                self.root, here, self.image_shape, self.center_crop_share, augment, self.skip_broken
            )
        self.train_set, self.val_set, self.test_set = datasets.values()

    def _make_splits(self) -> list[tuple[str, str, str]]:
        """Split, class and path beneath ``root``, of each picture; also written to ``split_file``."""
        found = find_splits(self.root)
        missing = [split for split in ("test", "val") if split not in found]
        if self.split_of:
            rows = self._keep_splits(found)
        else:
            rows = [(split, *picture) for split, pictures in found.items() if split != "train" for picture in pictures]
            rows += cut(found["train"], {split: self.shares[split] for split in missing}, self.seed)
        rows.sort()
        if self.split_file.parent.is_dir():
            write_splits(self.split_file, rows)
        return rows

    def _keep_splits(self, found: dict[str, list[tuple[str, str]]]) -> list[tuple[str, str, str]]:
        path = Path(str(self.split_of), self.split_file.name)
        if not path.exists():
            raise MisconfigurationException(f"data.split_of is {self.split_of}, but there is no {path}.")
        before = {picture: split for split, _, picture in read_splits(path)}
        # What is new goes where it lies, so that a folder `test` stays one.
        rows = [(split, *picture) for split, pictures in found.items() for picture in pictures]
        return [(before.get(picture, split), name, picture) for split, name, picture in rows]

    def find_inputs(self, words: Sequence[str]) -> Iterator[str]:
        """The picture files that the command line of `predict.py` means."""
        return find_pictures(words)

    def read_input(self, path: str) -> Tensor:
        """A picture as the network takes it in validation and test."""
        image = fit(read_picture(path, self.image_shape[0]), self.image_shape, self.center_crop_share)
        return 255 - image if self.invert else image

    def train_dataloader(self):
        return BatchLoader(self.train_set, self.batch_size, shuffle_seed(self), self.workers)

    def val_dataloader(self):
        return BatchLoader(self.val_set, self.batch_size, workers=self.workers)

    def test_dataloader(self):
        return BatchLoader(self.test_set, self.batch_size, workers=self.workers)

    def teardown(self, stage: str) -> None:
        if self.workers and stage != "fit":  # after which comes the test
            self.workers.stop()
        sets = (self.test_set,) if stage == "test" else (self.train_set, self.val_set)
        broken = [path for dataset in sets for path in dataset.broken_files()]
        if broken:
            more = f" and {len(broken) - 10} more" if len(broken) > 10 else ""
            log.warning(f"{len(broken)} files were skipped, for they could not be read: {', '.join(broken[:10])}{more}")

    def on_exception(self, exception: BaseException) -> None:
        if getattr(self, "workers", None):
            self.workers.stop()


class PictureFiles:
    """Pictures on a disk, decoded when a batch is asked for.

    Args:
        root: folder that the paths start from.
        pictures: paths and labels.
        image_shape: see ``fit``.
        center_crop_share: see ``fit``.
        augment: from a picture in its own size, the epoch and the index, to what training sees of it.
        skip_broken: leave out of the batch what cannot be read.
    """

    def __init__(
        self,
        root: Path,
        pictures: Sequence[tuple[str, int]],
        image_shape: Sequence[int],
        center_crop_share: float,
        augment: Augmentation | None,
        skip_broken: bool,
    ) -> None:
        self.root = root
        # Arrays, not lists: each worker that looks at a Python object writes to its memory and so gets a copy of it.
        self.paths = numpy.array([os.fsencode(path) for path, _ in pictures], dtype=bytes)
        self.labels = torch.tensor([label for _, label in pictures], dtype=torch.int64)
        self.image_shape = image_shape
        self.center_crop_share = center_crop_share
        self.augment = augment
        self.skip_broken = skip_broken
        self.broken = torch.zeros(len(pictures), dtype=torch.bool).share_memory_()  # for the workers to write to

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, epoch: int, indices: Any) -> tuple[Tensor, Tensor]:
        """Images, uint8 (N, C, H, W), and labels, int64 (N,).

        Raises:
            MisconfigurationException: if a file cannot be read and ``skip_broken`` is off, or no file of a batch can.
        """
        images, labels = [], []
        for index in indices.tolist():
            path = self._path(index)
            try:
                image = read_picture(path, self.image_shape[0])
            except (OSError, ValueError) as error:
                if not self.skip_broken and not os.path.exists(path):
                    raise MisconfigurationException(
                        f"{path}: there is no such file, but it is in the split.csv of the run. If the pictures were "
                        f"moved, say where they are: data.root=FOLDER (it is {self.root}). What was removed is left "
                        "out by data.skip_broken=true."
                    ) from None
                if not self.skip_broken:
                    raise MisconfigurationException(
                        f"{path}: {error}. Mend or remove it, or leave out such files by data.skip_broken=true."
                    ) from None
                self.broken[index] = True
                continue
            if self.augment:
                image = self.augment(image, epoch, index)
            images.append(fit(image, self.image_shape, self.center_crop_share))
            labels.append(self.labels[index])
        if not images:
            raise MisconfigurationException(
                f"None of the {len(indices)} files of a batch can be read, such as {self._path(indices[0].item())}."
            )
        return torch.stack(images), torch.stack(labels)

    def broken_files(self) -> list[str]:
        """Paths of the files that were skipped."""
        return [self._path(index) for index in self.broken.nonzero().flatten().tolist()]

    def _path(self, index: int) -> str:
        return str(self.root / os.fsdecode(self.paths[index]))


def find_splits(root: Path) -> dict[str, list[tuple[str, str]]]:
    """The pictures beneath a folder: by split their class and path, sorted. Without splits all are in ``train``.

    Raises:
        MisconfigurationException: if the folder is not there, a class is empty, one is in the test set alone, or two
            folders are the same split.
    """
    folders = _find_folders(root)
    left_out: list[str] = []
    found = {split: _find_classes(root, folder, left_out) for split, folder in folders.items()}
    if folders["train"] != root:
        left_out += [path.name for path in _shown(root) if path not in folders.values()]
    if not found["train"]:
        raise MisconfigurationException(
            f"data.root is {root}, where there is no folder of pictures. It should have a folder per class, "
            "as in PICTURES/cat/1.jpg, or as in PICTURES/train/cat/1.jpg and PICTURES/test/cat/2.jpg."
        )
    empty = [name for name, pictures in found["train"].items() if not pictures]
    if empty:
        raise MisconfigurationException(
            f"{folders['train']} has classes without a picture: {', '.join(empty)}. Each needs some, in a format that "
            "Pillow reads, such as .jpg or .png. Remove what is no class."
        )
    if len(found["train"]) < 2:
        raise MisconfigurationException(f"{folders['train']} has one class only; to tell apart there must be two.")
    for split, classes in found.items():
        if unknown := [name for name in classes if name not in found["train"] and classes[name]]:
            raise MisconfigurationException(
                f"{folders[split]} has classes that {folders['train']} does not have: {', '.join(unknown)}."
            )
        if not any(classes.values()):
            raise MisconfigurationException(f"{folders[split]} has no pictures. Fill it or remove it.")
    if left_out:
        more = f" and {len(left_out) - 10} more" if len(left_out) > 10 else ""
        log.warning(
            f"{len(left_out)} things in {root} are left out, which are no pictures, or are in no class of a split: "
            f"{', '.join(sorted(left_out)[:10])}{more}"
        )
    return {
        split: [(name, picture) for name in sorted(classes) for picture in classes[name]]
        for split, classes in found.items()
    }


def _find_folders(root: Path) -> dict[str, Path]:
    """The folder of each split that there is; of ``train`` alone, which is ``root``, if there are none."""
    folders: dict[str, Path] = {}
    for path in _shown(root):
        split = next((split for split, names in NAMES.items() if path.name.lower() in names), None)
        if split and path.is_dir():
            if split in folders:
                raise MisconfigurationException(
                    f"{folders[split]} and {path} are both a folder for {split}. Put them together, or rename one."
                )
            folders[split] = path
    named = [path.name for split, path in folders.items() if split != "train" and any(p.is_dir() for p in _shown(path))]
    if "train" not in folders and named:
        raise MisconfigurationException(
            f"{root} has {' and '.join(named)}, with folders in it, and none of the training pictures: name that train."
        )
    # A folder `train` with pictures in it is a class of pictures of trains.
    if "train" not in folders or not any(path.is_dir() for path in folders["train"].iterdir()):
        return {"train": root}
    return {split: folders[split] for split in SPLITS if split in folders}


def _shown(folder: Path) -> list[Path]:
    """What is in a folder and not hidden."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


def _find_classes(root: Path, folder: Path, left_out: list[str]) -> dict[str, list[str]]:
    """The pictures, as paths beneath ``root``, of each class folder, however deep; without what is hidden.

    Args:
        root: where the paths begin.
        folder: with a folder per class.
        left_out: gets the paths of what is no picture, or in no class.
    """
    classes: dict[str, list[str]] = {}
    for path in _shown(folder):
        if not path.is_dir():
            left_out.append(path.relative_to(root).as_posix())
            continue
        pictures = classes[path.name] = []
        for directory, folders, files in os.walk(path, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(name for name in files if not name.startswith(".")):
                where = Path(directory, name)
                (pictures if is_image(where) else left_out).append(where.relative_to(root).as_posix())
    return classes


def cut(pictures: Sequence[tuple[str, str]], shares: Mapping[str, float], seed: int) -> list[tuple[str, str, str]]:
    """Deals out pictures to ``train`` and the splits in ``shares``, the same share of each class.

    Args:
        pictures: class and path of each.
        shares: of each class, for each split, in (0, 1); at least one picture.
        seed: of the choice.

    Returns:
        Split, class and path of each.

    Raises:
        MisconfigurationException: if a class has too few for each split to get one.
    """
    generator = torch.Generator().manual_seed(seed)
    classes: dict[str, list[str]] = {}
    for name, path in pictures:
        classes.setdefault(name, []).append(path)

    def count(share: float, total: int) -> int:
        return max(1, round(share * total))

    def is_enough(total: int) -> bool:
        return sum(count(share, total) for share in shares.values()) < total

    too_few = [f"{name} ({len(paths)})" for name, paths in classes.items() if not is_enough(len(paths))]
    if too_few:
        needed = next((str(total) for total in range(2, 1000) if is_enough(total)), "more than 1,000")
        cut_off = " and ".join(sorted(shares, reverse=True))
        raise MisconfigurationException(
            f"Too few images in: {', '.join(too_few)}. Each class needs at least {needed}: one for training, and those "
            f"that are cut off for {cut_off}.\nAdd images, or folders {cut_off}, or keep the splits of a run: "
            "data.split_of=RUN"
        )
    rows = []
    for name, paths in classes.items():
        rest = [paths[index] for index in torch.randperm(len(paths), generator=generator).tolist()]
        for split, share in shares.items():
            taken = count(share, len(paths))
            rows += [(split, name, path) for path in rest[:taken]]
            rest = rest[taken:]
        rows += [("train", name, path) for path in rest]
    return rows


def read_splits(path: Path) -> list[tuple[str, str, str]]:
    """Split, class and path of each picture, from a file of ``write_splits``.

    Raises:
        MisconfigurationException: if a name has control characters, on which a terminal would act.
    """
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        _, *rows = csv.reader(file)
    for name in (name for row in rows for name in row):
        if any(unicodedata.category(character) == "Cc" for character in name):
            raise MisconfigurationException(
                f"{path} has control characters in {name!a}. Rename it, there and on the disk."
            )
    return [(split, name, picture) for split, name, picture in rows]


def write_splits(path: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("split", "class", "picture"), *rows])
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape", newline="")
    os.replace(unfinished, path)
