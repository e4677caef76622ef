"""Which image of a folder is in which split: found by the folders, cut by a seed, kept in a file."""

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
# What people call them, in any case.
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
    """The splits of the images in a folder.

    Args:
        root: the folder.
        shares: of each class, for ``val`` and ``test`` where the folder has none, in (0, 1).
        seed: of what is cut.
        split_of: a file of ``write_splits``, whose validation and test images stay so; then no more are cut.
        num_folds: instead of a share, validation gets one of so many folds of what is not ``test``. None: no folds.
        fold: which one, from 0.

    Returns:
        split, class and path beneath ``root`` of each image, sorted.

    Raises:
        MisconfigurationException: if the folder is not what it should be, there is no such file, or something else
            fixes the validation set of a fold.
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
            raise MisconfigurationException(f"data.split_of is {split_of.parent}, but there is no {split_of}.")
        before = {image: split for split, _, image in read_splits(split_of)}
        # What is new goes where it lies, so that a folder `test` stays one.
        return sorted((before.get(image, split), name, image) for split, name, image in rows)
    missing = {split: shares[split] for split in ("test", "val") if split not in found}
    if num_folds is not None:
        del missing["val"]
    return sorted(
        [row for row in rows if row[0] != "train"] + split_by_class(found["train"], missing, seed, num_folds, fold)
    )


def check_folds(num_folds: int | None, fold: int) -> None:
    """Checks ``data.num_folds`` and ``data.fold``, as far as that is possible without the data.

    Raises:
        MisconfigurationException: if ``num_folds`` is not a whole number from 2 (or None), there is no such fold, or
            ``fold`` has no effect.
    """
    if num_folds is None:
        if fold:
            raise MisconfigurationException(
                f"data.fold is {fold}, but data.num_folds is null, so it would have no effect. Set both, as in "
                "data.num_folds=5 data.fold=0, or neither."
            )
        return
    if type(num_folds) is not int or num_folds < 2:
        raise MisconfigurationException(f"data.num_folds is {num_folds}; it must be a whole number from 2, or null.")
    if type(fold) is not int or not 0 <= fold < num_folds:
        raise MisconfigurationException(
            f"data.fold is {fold}; with data.num_folds={num_folds} it can be 0 to {num_folds - 1}."
        )


def split_fold(order: Tensor, num_folds: int, fold: int) -> tuple[Tensor, Tensor]:
    """Splits samples into those outside and those in a fold: every ``num_folds``-th, beginning with number ``fold``.

    Each sample is in exactly one fold, and the sizes of the folds differ by at most one. If ``order`` is sorted by
    class, the folds are stratified: this is true of each class as well.

    Args:
        order: of the samples, for example their indices in random order, (N,).
        num_folds: from 2 to N.
        fold: from 0 to ``num_folds - 1``.

    Returns:
        the samples outside and those in the fold, in their order.

    Raises:
        MisconfigurationException: if there is no such fold, or there are more folds than samples.
    """
    check_folds(num_folds, fold)
    if num_folds > len(order):
        raise MisconfigurationException(
            f"data.num_folds is {num_folds}, but there are {len(order)} samples for training and validation. Take at "
            "most as many folds."
        )
    is_in_fold = torch.arange(len(order)) % num_folds == fold
    return order[~is_in_fold], order[is_in_fold]


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
            # Strings: of a million files, a Path of each would take longer than all the rest.
            beneath = Path(directory).relative_to(root).as_posix()
            for name in sorted(name for name in files if not name.startswith(".")):
                (pictures if is_image(f"{directory}/{name}") else left_out).append(f"{beneath}/{name}")
    return classes


def split_by_class(
    pictures: Sequence[tuple[str, str]],
    shares: Mapping[str, float],
    seed: int,
    num_folds: int | None = None,
    fold: int = 0,
) -> list[tuple[str, str, str]]:
    """Deals out pictures to ``train`` and the splits in ``shares``, the same share of each class.

    Args:
        pictures: class and path of each.
        shares: of each class, for each split, in (0, 1); at least one picture.
        seed: of the choice.
        num_folds: ``val`` gets one of so many folds of what would be left for ``train``. None: no folds.
        fold: which one, from 0.

    Returns:
        Split, class and path of each.

    Raises:
        MisconfigurationException: if a class has too few for each split, and each fold, to get one.
    """
    generator = torch.Generator().manual_seed(seed)
    classes: dict[str, list[str]] = {}
    for name, path in pictures:
        classes.setdefault(name, []).append(path)

    def count(share: float, total: int) -> int:
        return max(1, round(share * total))

    def is_enough(total: int) -> bool:
        return total - sum(count(share, total) for share in shares.values()) >= (num_folds or 1)

    too_few = [f"{name} ({len(paths)})" for name, paths in classes.items() if not is_enough(len(paths))]
    if too_few:
        needed = next((str(total) for total in range(2, 1000) if is_enough(total)), "more than 1,000")
        cut_off = " and ".join(sorted(shares, reverse=True))
        if num_folds is not None:
            more = f", and those that are cut off for {cut_off}" if cut_off else ""
            raise MisconfigurationException(
                f"Too few images in: {', '.join(too_few)}. Each class needs at least {needed}: one for each of "
                f"{num_folds} folds{more}.\nAdd images, or take fewer folds: data.num_folds=…"
            )
        raise MisconfigurationException(
            f"Too few images in: {', '.join(too_few)}. Each class needs at least {needed}: one for training, and those "
            f"that are cut off for {cut_off}.\nAdd images, or folders {cut_off}, or keep the splits of a run: "
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
        return rows + [("train", *picture) for picture in remaining]
    for split, indices in zip(("train", "val"), split_fold(torch.arange(len(remaining)), num_folds, fold), strict=True):
        rows += [(split, *remaining[index]) for index in indices.tolist()]
    return rows


def read_splits(path: Path) -> list[tuple[str, str, str]]:
    """Split, class and path of each picture, from a file of ``write_splits``.

    Raises:
        MisconfigurationException: if a name has control characters, on which a terminal would act.
    """
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        lines = csv.reader(file)
        next(lines)
        rows = [(split, name, picture) for split, name, picture in lines]
    for row in rows:
        # The first question is asked for its speed.
        if not (text := "".join(row)).isprintable() and CONTROL.search(text):
            name = next(filter(CONTROL.search, row))
            raise MisconfigurationException(
                f"{path} has control characters in {name!a}. Rename it, there and on the disk."
            )
    return rows


def write_splits(path: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("split", "class", "picture"), *rows])
    write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))  # file names need not be text


def split_rows(
    count: int, labels: Tensor | None, shares: Mapping[str, float], seed: int, num_folds: int | None, fold: int
) -> dict[str, Tensor]:
    """Deals out rows to ``train``, ``val`` and ``test``; of labeled rows, to each the same share of each class.

    Args:
        count: how many rows there are.
        labels: their classes, int64 (count,); None: no classes.
        shares: of the rows, for ``val`` and ``test`` where they are to be cut, in (0, 1); at least one row of each
            class, or two rows without classes.
        seed: of the choice.
        num_folds: in place of a share for ``val``, into how many folds what is not test is cut; None: no folds.
        fold: which of them is ``val``, from 0.

    Returns:
        the numbers of the rows in each split, int64.

    Raises:
        MisconfigurationException: if a class has too few rows for each split to get one, or a fold does not exist.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    classes = [order] if labels is None else [order[labels[order] == label] for label in labels.unique()]
    if num_folds is not None:
        shares = {split: share for split, share in shares.items() if split != "val"}
    # R² needs two numbers.
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
                f"{what} has too few rows: training, and what is cut off for {' and '.join(shares)}, need at least "
                f"{needed}. Add rows, or name the split of each in a column: data.split_column=…"
            )
        parts["train"].append(rows)
    splits = {split: torch.cat(rows) for split, rows in parts.items()}
    if num_folds is not None:
        splits["train"], splits["val"] = split_fold(splits["train"], num_folds, fold)
    return splits


def rows_by_name(names: Sequence[str | None], where: str) -> dict[str, list[int]]:
    """The numbers of the rows in each split, by what a column says, such as ``train``, ``valid`` or ``Test``.

    Raises:
        MisconfigurationException: if a name is none of a split, or no row is for training.
    """
    known = {name: split for split, names_of in NAMES.items() for name in names_of}
    splits: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        split = known.get(str(name).strip().lower())
        if split is None:
            raise MisconfigurationException(f"{where} has {name!r} in row {row + 1}; it can have train, val and test.")
        splits.setdefault(split, []).append(row)
    if "train" not in splits:
        raise MisconfigurationException(f"{where} has no row for train.")
    return splits


def read_row_splits(path: Path, count: int, table: str) -> dict[str, Tensor]:
    """The numbers of the rows in each split, from a file of ``write_row_splits``.

    Raises:
        MisconfigurationException: if the table has another number of rows since.
    """
    _, *names = path.read_text(encoding="utf-8").splitlines()
    if len(names) != count:
        raise MisconfigurationException(
            f"{table} has {count} rows, but {path} has the splits of {len(names)}: the table has changed since this "
            "run was started. Name the former table, data.file=…, or start a new run."
        )
    return {split: torch.tensor([row for row, name in enumerate(names) if name == split]) for split in SPLITS}


def write_row_splits(path: Path, splits: Mapping[str, Tensor]) -> None:
    names = [""] * sum(map(len, splits.values()))
    for split, rows in splits.items():
        for row in rows.tolist():
            names[row] = split
    write_bytes(path, ("\n".join(["split", *names]) + "\n").encode())
