"""Locates the project around this package, and composes the configs in its folder `configs`."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from . import resolvers  # noqa: F401  (used by the configs)
from .compat import VERSION_BASE
from .mistakes import UserError

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
# Names of the user's packages.
PACKAGES = tuple(path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent != Path(__file__).parent)


def groups() -> dict[str, list[str]]:
    """Return the config groups, each with its choices."""
    folders = sorted(path for path in CONFIGS.iterdir() if path.is_dir())
    return {folder.name: sorted(choice.stem for choice in folder.glob("*.yaml")) for folder in folders}


def is_group(key: str) -> bool:
    """Return whether ``key`` is a config group."""
    return (CONFIGS / key).is_dir()


def compose(overrides: Sequence[str], **options: Any) -> DictConfig:
    """Return the config that `train.py` would compose from these overrides.

    Args:
        overrides: Overrides in Hydra's grammar.
        options: Keyword arguments of ``hydra.compose``.
    """
    # Within a job, Hydra is already initialized.
    is_initialized = GlobalHydra.instance().is_initialized()
    with nullcontext() if is_initialized else hydra.initialize_config_dir(str(CONFIGS), **VERSION_BASE):
        return hydra.compose("train", list(overrides), **options)


def instantiate_entries(config: DictConfig, group: str) -> list[Any]:
    """Instantiate the named entries of a group of callbacks or loggers, except those that are null.

    Args:
        config: Composed config.
        group: ``callbacks`` or ``logger``.

    Raises:
        UserError: If the entries of the group have no names, or an entry is neither null nor a mapping.
    """
    if "_target_" in config[group]:
        raise UserError(
            f"{group}._target_ is {config[group]._target_}, but each entry of {group} must have a name. Put a line "
            "such as `mine:` above it in its file, and indent the rest."
        )
    for name, entry in config[group].items():
        if entry is not None and not isinstance(entry, DictConfig):
            raise UserError(
                f"{group}.{name} is {entry}; it must be null, or have a _target_ and arguments in a file in "
                f"configs/{group}."
            )
    nameless = [name for name, entry in config[group].items() if entry and "_target_" not in entry]
    for name in nameless:
        log.warning(
            f"{group}.{name} has no _target_ and is ignored. If your file in configs/{group} extends the default "
            "one, begin it with:\ndefaults: [default]"
        )
    return [hydra.utils.instantiate(entry) for name, entry in config[group].items() if entry and name not in nameless]
