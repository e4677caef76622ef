"""Gets the files of a torchvision data set, and only whole ones."""

import logging
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torchvision.datasets.utils import check_integrity

log = logging.getLogger(__name__)


def download(dataset: Any, root: Path, splits: Sequence[Mapping[str, Any]]) -> None:
    """Downloads a data set to ``root`` unless it is there; what an interrupted download has left is fetched again.

    Of several processes that start at once, one downloads and the others wait for it. A ``root`` that
    holds everything is only read.

    Args:
        dataset: a class of ``torchvision.datasets`` with the arguments ``root`` and ``download``.
        root: the folder that torchvision calls so.
        splits: for each split that is needed, the arguments that mean it.

    Raises:
        MisconfigurationException: if the files are not to be had; it says which belong where.
    """
    if _is_whole(dataset, root, splits):
        return
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{dataset.__name__}.lock"):
        for path in _damaged_files(dataset, root):
            log.warning(f"{path} is damaged and will be fetched again.")
            path.unlink()
        try:
            for split in splits:
                dataset(root, **split, download=True)
        except (RuntimeError, OSError) as error:
            raise MisconfigurationException(_remedy(dataset, root, error)) from error


def _is_whole(dataset: Any, root: Path, splits: Sequence[Mapping[str, Any]]) -> bool:
    if _damaged_files(dataset, root):
        return False
    try:
        for split in splits:
            dataset(root, **split, download=False)
    except RuntimeError:
        return False
    return True


def _damaged_files(dataset: Any, root: Path) -> list[Path]:
    """The IDX files of MNIST and its relatives that are not what they should be.

    torchvision compares the archives that it downloads with their checksums, but takes an unpacked file
    for good as soon as it exists. (Its other data sets check their own files.)
    """
    damaged = []
    for name, md5 in _idx_archives(dataset):
        archive = root / dataset.__name__ / "raw" / name
        path = archive.with_suffix("")
        if path.exists() and not (_is_complete_idx(path) and _is_like_archive(path, archive, md5)):
            damaged.append(path)
    return damaged


def _idx_archives(dataset: Any) -> list[tuple[str, str]]:
    """Names and checksums of the archives of MNIST, FashionMNIST and KMNIST. (Their subclasses have other files.)"""
    resources = vars(dataset).get("resources")
    return resources if isinstance(resources, list) else []


def _is_complete_idx(path: Path) -> bool:
    """Whether an IDX file of bytes is as long as its header says.

    The header is two zeros, the type, the number of dimensions, then each dimension as a big-endian int32:
    http://yann.lecun.com/exdb/mnist/.
    """
    with path.open("rb") as file:
        magic = file.read(4)
        if len(magic) < 4:
            return False
        sizes = file.read(4 * magic[3])
    header = len(magic) + len(sizes)
    dimensions = [int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4)]
    return path.stat().st_size == header + math.prod(dimensions)


def _is_like_archive(path: Path, archive: Path, md5: str) -> bool:
    """Whether a file is what ``archive`` unpacks to; also if there is no sound archive to compare it with."""
    if not check_integrity(archive, md5):
        return True
    # The last eight bytes of a gzip file are the checksum and the length of its contents (RFC 1952).
    checksum = int.from_bytes(archive.read_bytes()[-8:-4], "little")
    return zlib.crc32(path.read_bytes()) == checksum


def _remedy(dataset: Any, root: Path, error: Exception) -> str:
    name = dataset.__name__
    reason = str(error).strip().splitlines()[-1]
    message = f"{name} is not in {root.resolve()} and could not be downloaded: {reason}\n"
    archives = _idx_archives(dataset)
    if not archives:
        return message + f"Connect to the network, or put the files there as torchvision.datasets.{name} expects them."
    files = ", ".join(file.removesuffix(".gz") for file, _ in archives)
    return message + (
        f"Connect to the network, set data.root to a folder that has it, or put these {len(archives)} files, "
        f"unpacked, into {root.resolve() / name / 'raw'}:\n{files}"
    )
