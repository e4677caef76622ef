"""What a run folder may do, which may come from an untrusted source: configure, and no more.

docs/untrusted_run_folders.md says it in words.
"""

import inspect
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import hydra

from errors import Mistake, printable

# What the config of a run folder may name as `_target_`: the classes of these modules, and the functions of some. Not
# all of torch, torchvision and Lightning: they have functions that run a command or load a pickle, and classes that
# send to an address. Add what your configs need.
PACKAGES = tuple(path.parent.name for path in Path(__file__).parent.glob("*/__init__.py"))
FUNCTIONS_OF = (
    *(f"{package}.models" for package in PACKAGES),
    "torch.nn",
    "torch.distributed.fsdp.wrap",
    "torchvision.models",
    "torchvision.transforms",
    *(f"torchmetrics.functional.{kind}" for kind in ("classification", "regression", "clustering", "nominal")),
)
CLASSES_OF = (
    *FUNCTIONS_OF,
    *PACKAGES,
    "torch.optim",
    "torch.utils.data.dataloader",
    "torch.utils.data.dataset",
    "torch.utils.data.sampler",
    "torchvision.ops",
    # Not text, multimodal, audio and the other metrics of images: they load a model by its name or path.
    *(
        f"torchmetrics.{kind}"
        for kind in (
            "aggregation",
            "classification",
            "clustering",
            "collections",
            "image.psnr",
            "image.ssim",
            "metric",
            "nominal",
            "regression",
            "retrieval",
            "segmentation",
            "wrappers",
        )
    ),
    *(
        f"lightning.pytorch.{module}"
        for module in (
            "callbacks",
            # The other loggers send to an address.
            "loggers.csv_logs",
            "loggers.tensorboard",
            "plugins",
            # Not XLAProfiler, which listens on a port.
            "profilers.advanced",
            "profilers.base",
            "profilers.pytorch",
            "profilers.simple",
            # Not DeepSpeed, whose config can name files, folders and addresses.
            "strategies.ddp",
            "strategies.fsdp",
            "strategies.model_parallel",
            "strategies.single_device",
            "trainer.trainer",
        )
    ),
)
# A key that is a path to write to; of Lightning's arguments, and of those that people give such names.
PATH = re.compile(r"dirpath|filepath|split_file|(.*_)?(dir|directory|path|folder|root)")
# Where a run is watched and kept. What is read, such as data.root, may be elsewhere.
WRITERS = ("callbacks", "logger", "trainer")


def refuse_links(folder: Path) -> None:
    """Refuses a run or study folder if something in it leads out of it, or is neither a file nor a folder.

    Args:
        folder: may be a link itself.

    Raises:
        Mistake: names the path in the folder, and where it leads.
    """
    root = os.path.realpath(folder)
    for place, folders, files in os.walk(root):
        for path in (os.path.join(place, name) for name in (*folders, *files)):
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                target = os.path.realpath(path)
                if not Path(target).is_relative_to(root):
                    raise Mistake(
                        f"{path} is a link that leads out of the run folder, to {target}: refused, and nothing was "
                        "written. Put what it points to in its place."
                    )
            elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise Mistake(f"{path} is neither a file nor a folder: refused, and nothing was written. Remove it.")


def refuse_control_characters(config: Any, key: str = "") -> None:
    """Refuses keys and values that would change what a terminal shows, such as an escape sequence.

    Raises:
        Mistake: if there is one; it shows the character as Python writes it.
    """
    for name, value in _items(config):
        path = f"{key}.{name}" if key else str(name)
        for text in (str(name), *([value] if isinstance(value, str) else [])):
            if printable(text) != text:
                raise Mistake(f"{path} of the run's config has a control character, in {text!r}: refused.")
        refuse_control_characters(value, path)


def refuse_resolvers(config: Any, replaced: set[str], key: str = "") -> None:
    """Refuses values such as ``${oc.env:HOME}``, which call a function when they are read.

    Args:
        config: dicts, lists and values, not resolved.
        replaced: keys with dots whose values do not matter, for they will be replaced.
        key: where ``config`` is.

    Raises:
        Mistake: if there is one.
    """
    for name, value in _items(config):
        path = f"{key}.{name}" if key else str(name)
        # Nested ones too, such as ${${a}:b}.
        if isinstance(value, str) and "${" in value and ":" in value.partition("${")[2] and path not in replaced:
            raise Mistake(f"{path} of the run's config is {value}, which could run code: refused. Set {path}=…")
        refuse_resolvers(value, replaced, path)


def refuse_untrusted_targets(config: Any, key: str = "") -> None:
    """Refuses a ``_target_``, however deep, that is not in the lists above.

    Args:
        config: dicts, lists and values, resolved.
        key: where ``config`` is.

    Raises:
        Mistake: if there is one.
    """
    for name, value in _items(config):
        path = f"{key}.{name}" if key else str(name)
        if name == "_target_" and not _is_trusted(value):
            raise Mistake(
                f"{path} of the run's config is {value}, which a run may not use: refused, and nothing was run.\n"
                f"Leave it out by {key}=null or, if your project needs it, add its module to CLASSES_OF in trust.py."
            )
        refuse_untrusted_targets(value, path)


def refuse_outside(config: dict[str, Any], run: Path, replaced: set[str]) -> None:
    """Refuses values by which a callback, a logger or the trainer would write outside of the run folder, or send.

    Args:
        config: of the run, resolved.
        run: its folder.
        replaced: keys with dots that were typed on the command line, which is trusted.

    Raises:
        Mistake: if there is one.
    """
    for path, value in _strings(config):
        keys = path.split(".")
        typed = any(".".join(keys[:length]) in replaced for length in range(1, len(keys) + 1))
        name = next(key for key in reversed(keys) if not key.isdigit())
        if typed or name.startswith("_") or (keys[0] not in WRITERS and name != "split_file"):
            continue
        if path == "trainer.model_registry" or "://" in value:
            raise Mistake(f"{path} of the run's config is {value}, to which it could send: refused. Set {path}=…")
        posix, windows = PurePosixPath(value), PureWindowsPath(value)
        is_path = PATH.fullmatch(name) or posix.is_absolute() or windows.anchor or value.startswith("~")
        is_inside = Path(os.path.realpath(value)).is_relative_to(os.path.realpath(run))
        # What is no path on its own, such as a file name, is joined to one.
        if (is_path and not is_inside) or (not is_path and ".." in posix.parts + windows.parts):
            raise Mistake(f"{path} of the run's config is {value}, which leads out of {run}: refused. Set {path}=…")


def _strings(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All strings of a config, by their dotted keys."""
    for name, value in _items(config):
        path = f"{key}.{name}" if key else str(name)
        if isinstance(value, str):
            yield path, value
        yield from _strings(value, path)


def _items(config: Any) -> Iterator[tuple[Any, Any]]:
    yield from config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()


def _is_trusted(target: Any) -> bool:
    """Whether ``target`` is a class or function that is allowed by where it is defined, not by where it is found."""
    if not isinstance(target, str) or target.partition(".")[0] not in {name.partition(".")[0] for name in CLASSES_OF}:
        return False  # before anything of it is imported
    found = hydra.utils.get_object(target)
    modules = CLASSES_OF if inspect.isclass(found) else FUNCTIONS_OF if inspect.isfunction(found) else ()
    is_method = "." in getattr(found, "__qualname__", ".")
    return not is_method and any(f"{found.__module__}.".startswith(f"{module}.") for module in modules)
