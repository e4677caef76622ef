"""The project around this package: its root, and the groups, choices and config in its folder `configs`."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from . import resolvers  # noqa: F401  (which the configs use)
from .compat import VERSION_BASE
from .mistakes import UserError

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
# The user's packages, by name.
PACKAGES = tuple(path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent != Path(__file__).parent)


def groups() -> dict[str, list[str]]:
    """The groups of the config, each with its choices."""
    folders = sorted(path for path in CONFIGS.iterdir() if path.is_dir())
    return {folder.name: sorted(choice.stem for choice in folder.glob("*.yaml")) for folder in folders}


def is_group(key: str) -> bool:
    return (CONFIGS / key).is_dir()


def compose(overrides: Sequence[str], **options: Any) -> DictConfig:
    """The config that `train.py` would have with these overrides; ``options`` are those of ``hydra.compose``."""
    # Within a job Hydra is there already.
    is_initialized = GlobalHydra.instance().is_initialized()
    with nullcontext() if is_initialized else hydra.initialize_config_dir(str(CONFIGS), **VERSION_BASE):
        return hydra.compose("train", list(overrides), **options)


def instantiate_entries(config: DictConfig, group: str) -> list[Any]:
    """Instantiates what a group of callbacks or loggers holds, one per name; null leaves one out.

    Raises:
        Mistake: if the file of the group has no names in it, or an entry is neither null nor has arguments.
    """
    if "_target_" in config[group]:
        raise UserError(
            f"{group}._target_ is {config[group]._target_}: each entry of {group} has a name. Put a line such as "
            "`mine:` above it in its file, and indent the rest."
        )
    for name, entry in config[group].items():
        if entry is not None and not isinstance(entry, DictConfig):
            raise UserError(
                f"{group}.{name} is {entry}. It has a _target_ and its arguments, in a file in configs/{group}, or is "
                "left out: null"
            )
    nameless = [name for name, entry in config[group].items() if entry and "_target_" not in entry]
    for name in nameless:
        log.warning(
            f"{group}.{name} has no _target_ and is left out. If your file in configs/{group} is to add to the default "
            "one, begin it with:\ndefaults: [default]"
        )
    return [hydra.utils.instantiate(entry) for name, entry in config[group].items() if entry and name not in nameless]
