"""Assigns images and table rows to splits, by folders or at random, and stores the splits in files."""

import csv
import io
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from ..files import write_bytes
from .images import is_image

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
# Common folder names of each split; upper and lower case are equal.
NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}

# Unicode's category Cc.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def make_splits(
    root: Path,
    shares: Mapping[str, float],
    seed: int,
    split_of: Path | None,
    num_folds: int | None = None,
    fold: int = 0,
) -> list[tuple[str, str, str]]:
    """Assign the images of a folder to splits.

    Args:
        root: The folder.
        shares: Fraction of each class for ``val`` and ``test``, in (0, 1); used for splits without a folder.
        seed: Seed of the random splits.
        split_of: A file from ``write_splits``; its images keep their splits, and no other images are split at random.
        num_folds: Number of folds of the images outside ``test``; one of them replaces the share for ``val``. None: no
            folds.
        fold: The fold for validation, from 0.

    Returns:
        Split, class, and path relative to ``root`` of each image, sorted.

    Raises:
        MisconfigurationException: If the folder is invalid, ``split_of`` does not exist, or folds are requested while
            ``split_of`` or a folder fixes the validation set.
    """
    found = find_splits(root)
    if num_folds is not None and (split_of or "val" in found):
        fixed_by = f"data.split_of={split_of.parent}" if split_of else f"the folder {_find_folders(root)['val']}"
        remedy = "data.split_of" if split_of else "move its images to the training folder"
        raise MisconfigurationException(
            f"data.num_folds is {num_folds}, but {fixed_by} fixes the validation set already. Remove data.num_folds, "
            f"or {remedy}."
        )
    rows = [(split, name, image) for split, images in found.items() for name, image in images]
    if split_of:
        if not split_of.exists():
            raise MisconfigurationException(f"data.split_of is {split_of.parent}, but {split_of} does not exist.")
        before = {image: split for split, _, image in read_splits(split_of)}
        # New images get the split of their folder, so a test folder remains a test set.
        return sorted((before.get(image, split), name, image) for split, name, image in rows)
    missing = {split: shares[split] for split in ("test", "val") if split not in found}
    if num_folds is not None:
        del missing["val"]
    return sorted(
        [row for row in rows if row[0] != "train"] + split_by_class(found["train"], missing, seed, num_folds, fold)
    )


def check_folds(num_folds: int | None, fold: int) -> None:
    """Check ``data.num_folds`` and ``data.fold`` as far as possible without the data.

    Args:
        num_folds: Number of folds; None: no folds.
        fold: The fold for validation, from 0.

    Raises:
        MisconfigurationException: If ``num_folds`` is neither None nor an integer of at least 2, the fold does not
            exist, or ``fold`` has no effect.
    """
    if num_folds is None:
        if fold:
            raise MisconfigurationException(
                f"data.fold is {fold}, but data.num_folds is null, so it would have no effect. Set both, as in "
                "data.num_folds=5 data.fold=0, or neither."
            )
        return
    if type(num_folds) is not int or num_folds < 2:
        raise MisconfigurationException(f"data.num_folds is {num_folds}; it must be null or an integer of at least 2.")
    if type(fold) is not int or not 0 <= fold < num_folds:
        raise MisconfigurationException(
            f"data.fold is {fold}; with data.num_folds={num_folds} it must be an integer from 0 to {num_folds - 1}."
        )


def split_fold(order: Tensor, num_folds: int, fold: int) -> tuple[Tensor, Tensor]:
    """Split samples into those outside and those inside a fold.

    A fold holds every ``num_folds``-th sample, starting at position ``fold``. Each sample is in exactly one fold, and
    the sizes of the folds differ by at most one. If ``order`` is sorted by class, the folds are stratified: the same
    holds within each class.

    Args:
        order: The samples, for example their indices in random order, (N,).
        num_folds: Number of folds, from 2 to N.
        fold: The fold, from 0 to ``num_folds - 1``.

    Returns:
        The samples outside the fold and the samples inside it, each in the order of ``order``.

    Raises:
        MisconfigurationException: If the fold does not exist, or there are more folds than samples.
    """
    check_folds(num_folds, fold)
    if num_folds > len(order):
        raise MisconfigurationException(
            f"data.num_folds is {num_folds}, but there are {len(order)} samples for training and validation. Use at "
            f"most {len(order)} folds."
        )
    is_in_fold = torch.arange(len(order)) % num_folds == fold
    return order[~is_in_fold], order[is_in_fold]


def find_splits(root: Path) -> dict[str, list[tuple[str, str]]]:
    """Find the images of a folder.

    Args:
        root: A folder with one folder per class, or with such folders per split.

    Returns:
        For each split, class and path of its images, sorted. If no folder names a split, all images are in ``train``.

    Raises:
        MisconfigurationException: If the folder does not exist, a class is empty, a class is missing from the training
            set, or two folders are the same split.
    """
    folders = _find_folders(root)
    ignored: list[str] = []
    found = {split: _find_classes(root, folder, ignored) for split, folder in folders.items()}
    if folders["train"] != root:
        ignored += [path.name for path in _list_visible(root) if path not in folders.values()]
    if not found["train"]:
        raise MisconfigurationException(
            f"data.root is {root}, which has no folder of images. It must have a folder per class, "
            "as in IMAGES/cat/1.jpg, or as in IMAGES/train/cat/1.jpg and IMAGES/test/cat/2.jpg."
        )
    empty = [name for name, images in found["train"].items() if not images]
    if empty:
        raise MisconfigurationException(
            f"{folders['train']} has classes without images: {', '.join(empty)}. Add images in a format that Pillow "
            "reads, such as .jpg or .png, or remove folders that are not classes."
        )
    if len(found["train"]) < 2:
        raise MisconfigurationException(f"{folders['train']} has only one class; it must have at least two.")
    for split, classes in found.items():
        if unknown := [name for name in classes if name not in found["train"] and classes[name]]:
            raise MisconfigurationException(
                f"{folders[split]} has classes that are missing from {folders['train']}: {', '.join(unknown)}."
            )
        if not any(classes.values()):
            raise MisconfigurationException(f"{folders[split]} has no images. Add images or remove it.")
    if ignored:
        more = f" and {len(ignored) - 10} more" if len(ignored) > 10 else ""
        log.warning(
            f"{len(ignored)} files and folders in {root} are ignored because they "
            f"are not images or not in a class of a split: "
            f"{', '.join(sorted(ignored)[:10])}{more}"
        )
    return {
        split: [(name, image) for name in sorted(classes) for image in classes[name]]
        for split, classes in found.items()
    }


def _find_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split in ``root``; if there are none, ``root`` itself as the folder of ``train``."""
    folders: dict[str, Path] = {}
    for path in _list_visible(root):
        split = next((split for split, names in NAMES.items() if path.name.lower() in names), None)
        if split and path.is_dir():
            if split in folders:
                raise MisconfigurationException(
                    f"{folders[split]} and {path} are both folders for {split}. Merge them or rename one."
                )
            folders[split] = path
    named = [
        path.name
        for split, path in folders.items()
        if split != "train" and any(p.is_dir() for p in _list_visible(path))
    ]
    if "train" not in folders and named:
        raise MisconfigurationException(
            f"{root} has {' and '.join(named)} with folders in it, but no training set. Rename the folder of the "
            "training images to train."
        )
    # A folder `train` without folders in it is a class: images of trains.
    if "train" not in folders or not any(path.is_dir() for path in folders["train"].iterdir()):
        return {"train": root}
    return {split: folders[split] for split in SPLITS if split in folders}


def _list_visible(folder: Path) -> list[Path]:
    """Return the visible files and folders in a folder, sorted; an empty list if the folder does not exist."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


def _find_classes(root: Path, folder: Path, ignored: list[str]) -> dict[str, list[str]]:
    """Find the images of each class, at any depth, without hidden files.

    Args:
        root: The folder that the paths are relative to.
        folder: A folder with one folder per class.
        ignored: The list to which the paths of files that are not images, or not in a class, are appended.

    Returns:
        The paths of the images of each class.
    """
    classes: dict[str, list[str]] = {}
    for path in _list_visible(folder):
        if not path.is_dir():
            ignored.append(path.relative_to(root).as_posix())
            continue
        images = classes[path.name] = []
        for directory, folders, files in os.walk(path, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            # Strings, not Path objects: for a million files, creating those would take longer than all other steps.
            parent = Path(directory).relative_to(root).as_posix()
            for name in sorted(name for name in files if not name.startswith(".")):
                (images if is_image(f"{directory}/{name}") else ignored).append(f"{parent}/{name}")
    return classes


def split_by_class(
    images: Sequence[tuple[str, str]],
    shares: Mapping[str, float],
    seed: int,
    num_folds: int | None = None,
    fold: int = 0,
) -> list[tuple[str, str, str]]:
    """Split images at random into ``train`` and the splits in ``shares``, stratified by class.

    Args:
        images: Class and path of each image.
        shares: Fraction of each class for each split, in (0, 1); each split gets at least one image per class.
        seed: Seed of the random splits.
        num_folds: Number of folds of the images that would be left for ``train``; ``val`` gets one. None: no folds.
        fold: The fold for validation, from 0.

    Returns:
        Split, class and path of each image.

    Raises:
        MisconfigurationException: If a class has fewer images than splits and folds need.
    """
    generator = torch.Generator().manual_seed(seed)
    classes: dict[str, list[str]] = {}
    for name, path in images:
        classes.setdefault(name, []).append(path)

    def count(share: float, total: int) -> int:
        return max(1, round(share * total))

    def is_enough(total: int) -> bool:
        return total - sum(count(share, total) for share in shares.values()) >= (num_folds or 1)

    too_few = [f"{name} ({len(paths)})" for name, paths in classes.items() if not is_enough(len(paths))]
    if too_few:
        needed = next((str(total) for total in range(2, 1000) if is_enough(total)), "more than 1,000")
        missing_splits = " and ".join(sorted(shares, reverse=True))
        if num_folds is not None:
            more = f", plus its share for {missing_splits}" if missing_splits else ""
            raise MisconfigurationException(
                f"Too few images in: {', '.join(too_few)}. Each class needs at least {needed}: one for each of "
                f"{num_folds} folds{more}.\nAdd images or use fewer folds: data.num_folds=…"
            )
        raise MisconfigurationException(
            f"Too few images in: {', '.join(too_few)}. Each class needs at least {needed}: one for training, plus its "
            f"share for {missing_splits}.\nAdd images, add the folders {missing_splits}, or reuse the splits of a run: "
            "data.split_of=RUN"
        )
    rows = []
    remaining: list[tuple[str, str]] = []  # sorted by class
    for name, paths in classes.items():
        rest = [paths[index] for index in torch.randperm(len(paths), generator=generator).tolist()]
        for split, share in shares.items():
            taken = count(share, len(paths))
            rows += [(split, name, path) for path in rest[:taken]]
            rest = rest[taken:]
        remaining += [(name, path) for path in rest]
    if num_folds is None:
        return rows + [("train", *image) for image in remaining]
    for split, indices in zip(("train", "val"), split_fold(torch.arange(len(remaining)), num_folds, fold), strict=True):
        rows += [(split, *remaining[index]) for index in indices.tolist()]
    return rows


def read_splits(path: Path) -> list[tuple[str, str, str]]:
    """Read a file from ``write_splits``.

    Args:
        path: Path of the file.

    Returns:
        Split, class and path of each image.

    Raises:
        MisconfigurationException: If a name contains control characters, which a terminal would execute.
    """
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        lines = csv.reader(file)
        next(lines)
        rows = [(split, name, image) for split, name, image in lines]
    for row in rows:
        # isprintable() is fast and rules out most names.
        if not (text := "".join(row)).isprintable() and CONTROL.search(text):
            name = next(filter(CONTROL.search, row))
            raise MisconfigurationException(
                f"{path} contains control characters in {name!a}. Rename it in this file and on the disk."
            )
    return rows


def write_splits(path: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    """Write the splits of images to a CSV file.

    Args:
        path: Path of the file.
        rows: Split, class and path of each image.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("split", "class", "picture"), *rows])
    # File names may contain bytes that are not UTF-8.
    write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))


def split_rows(
    count: int, labels: Tensor | None, shares: Mapping[str, float], seed: int, num_folds: int | None, fold: int
) -> dict[str, Tensor]:
    """Split the rows of a table at random into ``train`` and the splits in ``shares``, stratified by class.

    Args:
        count: Number of rows.
        labels: Labels of the rows, int64 (count,). None: no classes.
        shares: Fraction of the rows for ``val`` and ``test``, in (0, 1); each split gets at least one row per class,
            or two rows if there are no classes.
        seed: Seed of the random splits.
        num_folds: Number of folds of the rows outside ``test``; one of them replaces the share for ``val``. None: no
            folds.
        fold: The fold for validation, from 0.

    Returns:
        The numbers of the rows in each split, int64, from 0.

    Raises:
        MisconfigurationException: If a class has too few rows for the splits, or the fold does not exist.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    classes = [order] if labels is None else [order[labels[order] == label] for label in labels.unique()]
    if num_folds is not None:
        shares = {split: share for split, share in shares.items() if split != "val"}
    # R² needs two samples.
    least = 2 if labels is None else 1
    parts: dict[str, list[Tensor]] = {split: [] for split in ("train", *shares)}
    for rows in classes:
        total = len(rows)
        for split, share in shares.items():
            taken = max(least, round(share * total))
            parts[split].append(rows[:taken])
            rows = rows[taken:]
        if not len(rows):
            needed = 1 + least * len(shares)
            what = "The table" if labels is None else "A class"
            raise MisconfigurationException(
                f"{what} has too few rows: training and the shares for {' and '.join(shares)} need at least "
                f"{needed}. Add rows, or put the split of each row into a column: data.split_column=…"
            )
        parts["train"].append(rows)
    splits = {split: torch.cat(rows) for split, rows in parts.items()}
    if num_folds is not None:
        splits["train"], splits["val"] = split_fold(splits["train"], num_folds, fold)
    return splits


def rows_by_name(names: Sequence[str | None], where: str) -> dict[str, list[int]]:
    """Group rows by the split that a column names.

    Args:
        names: The name in each row, such as ``train``, ``valid`` or ``Test``.
        where: What to call the column in error messages.

    Returns:
        The numbers of the rows in each split, from 0.

    Raises:
        MisconfigurationException: If a name is not that of a split, or no row is for training.
    """
    known = {name: split for split, names_of in NAMES.items() for name in names_of}
    splits: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        split = known.get(str(name).strip().lower())
        if split is None:
            raise MisconfigurationException(f"{where} has {name!r} in row {row + 1}; it must be train, val or test.")
        splits.setdefault(split, []).append(row)
    if "train" not in splits:
        raise MisconfigurationException(f"{where} has no row for train; training needs at least one.")
    return splits


def read_row_splits(path: Path, count: int, table: str) -> dict[str, Tensor]:
    """Read a file from ``write_row_splits``.

    Args:
        path: Path of the file.
        count: Number of rows in the table.
        table: The name of the table, for error messages.

    Returns:
        The numbers of the rows in each split, int64, from 0.

    Raises:
        MisconfigurationException: If the number of rows has changed since the file was written.
    """
    _, *names = path.read_text(encoding="utf-8").splitlines()
    if len(names) != count:
        raise MisconfigurationException(
            f"{table} has {count} rows, but {path} has the splits of {len(names)}: the table has changed since this "
            "run was started. Pass the original table, data.file=…, or start a new run."
        )
    return {split: torch.tensor([row for row, name in enumerate(names) if name == split]) for split in SPLITS}


def write_row_splits(path: Path, splits: Mapping[str, Tensor]) -> None:
    """Write the split of each row of a table to a file.

    Args:
        path: Path of the file.
        splits: The numbers of the rows in each split, int64, from 0.
    """
    names = [""] * sum(map(len, splits.values()))
    for split, rows in splits.items():
        for row in rows.tolist():
            names[row] = split
    write_bytes(path, ("\n".join(["split", *names]) + "\n").encode())
