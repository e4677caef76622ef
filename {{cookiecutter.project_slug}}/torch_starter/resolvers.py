"""Resolvers for configs: ``${run_name:…}``, ``${run_label:…}``, ``${run_group:…}`` and ``${epochs_between:…}``."""

import re
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf


def run_name(choices: DictConfig, overrides: ListConfig) -> str:
    """Return the folder name of a run: its experiment or, without one, its data and model.

    Args:
        choices: Chosen file of each config group.
        overrides: Command-line overrides. In a multirun, they may list several choices for a group.
    """
    given = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    experiment, data, model = (given.get(group) or choices.get(group) for group in ("experiment", "data", "model"))
    # Avoids names such as linear_linear_regression.
    name = experiment or (model if str(model).startswith(str(data)) else f"{data}_{model}")
    return re.sub(r"[^\w.+-]+", "-", name.replace(",", "+")).strip("-")


def epochs_between(validations: int, max_epochs: int | None, max_steps: int | None) -> int:
    """Return the validation interval in epochs, chosen so that the last epoch is validated.

    It is 1 for a run with fewer epochs than ``validations``, of unknown length, or limited by ``max_steps``.

    Args:
        validations: Approximate number of validations in the whole run.
        max_epochs: Number of epochs; None or -1 if unlimited.
        max_steps: Number of steps; None or -1 if unlimited.
    """
    if not isinstance(max_epochs, int) or max_epochs < 1 or (max_steps or 0) > 0:
        return 1
    return max(n for n in range(1, max(1, max_epochs // validations) + 1) if max_epochs % n == 0)


def run_label(run_dir: str) -> str:
    """Return the name of a run in trackers: its path relative to ``outputs``, or the last two parts of its path."""
    parts = Path(run_dir).parts
    start = len(parts) - parts[::-1].index("outputs") if "outputs" in parts[:-1] else -2
    return "/".join(parts[start:])


def run_group(run_dir: str) -> str:
    """Return the part of a run's label that names its multirun, study or experiment."""
    return run_label(run_dir).rpartition("/")[0]


OmegaConf.register_new_resolver("run_label", run_label, replace=True)
OmegaConf.register_new_resolver("run_group", run_group, replace=True)
OmegaConf.register_new_resolver("epochs_between", epochs_between, replace=True)
# The cache gives all jobs of a multirun the name of the multirun.
OmegaConf.register_new_resolver("run_name", run_name, replace=True, use_cache=True)
