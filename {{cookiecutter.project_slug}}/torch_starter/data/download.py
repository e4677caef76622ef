"""Downloads torchvision data sets and repairs damaged files."""

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
    """Download a data set to ``root`` if files are missing or damaged, for example after an interrupted download.

    If several processes start at once, one downloads and the rest wait. A complete ``root`` is only read.

    Args:
        dataset: A class of ``torchvision.datasets`` with the arguments ``root`` and ``download``.
        root: The ``root`` argument of ``dataset``.
        splits: For each required split, the arguments of ``dataset`` that select it.

    Raises:
        MisconfigurationException: If the files are not available; the message names them and their folder.
    """
    if _is_whole(dataset, root, splits):
        return
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{dataset.__name__}.lock"):
        for path in _damaged_files(dataset, root):
            log.warning(f"{path} is damaged and will be downloaded again.")
            path.unlink()
        try:
            for split in splits:
                dataset(root, **split, download=True)
        except (RuntimeError, OSError) as error:
            raise MisconfigurationException(_describe_remedy(dataset, root, error)) from error


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
    """Return the damaged IDX files of MNIST and its variants.

    torchvision verifies the checksums of downloaded archives, but accepts any unpacked file that exists. Its other data
    sets check their own files.
    """
    damaged = []
    for name, md5 in _idx_archives(dataset):
        archive = root / dataset.__name__ / "raw" / name
        path = archive.with_suffix("")
        if path.exists() and not (_is_complete_idx(path) and _is_like_archive(path, archive, md5)):
            damaged.append(path)
    return damaged


def _idx_archives(dataset: Any) -> list[tuple[str, str]]:
    """Return names and checksums of the archives of MNIST, FashionMNIST, and KMNIST; subclasses have other files."""
    resources = vars(dataset).get("resources")
    return resources if isinstance(resources, list) else []


def _is_complete_idx(path: Path) -> bool:
    """Return whether an IDX file of bytes has the length that its header specifies.

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
    """Return whether a file equals the contents of ``archive``; True if the archive is missing or damaged."""
    if not check_integrity(archive, md5):
        return True
    # The last eight bytes of a gzip file are the checksum and the length of its contents (RFC 1952).
    checksum = int.from_bytes(archive.read_bytes()[-8:-4], "little")
    return zlib.crc32(path.read_bytes()) == checksum


def _describe_remedy(dataset: Any, root: Path, error: Exception) -> str:
    name = dataset.__name__
    reason = str(error).strip().splitlines()[-1]
    message = f"{name} is not in {root.resolve()} and could not be downloaded: {reason}\n"
    archives = _idx_archives(dataset)
    if not archives:
        return message + f"Connect to the network, or put the files there, as torchvision.datasets.{name} expects them."
    files = ", ".join(file.removesuffix(".gz") for file, _ in archives)
    return message + (
        f"Connect to the network, set data.root to a folder that contains it, or put these {len(archives)} files, "
        f"unpacked, into {root.resolve() / name / 'raw'}:\n{files}"
    )
