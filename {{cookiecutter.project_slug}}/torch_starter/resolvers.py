"""What configs compute: ``${run_name:…}``, ``${run_label:…}``, ``${run_group:…}`` and ``${epochs_between:…}``."""

import re
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf


def run_name(choices: DictConfig, overrides: ListConfig) -> str:
    """Returns the name of a run's folder: its experiment or, without one, its data and its model.

    Args:
        choices: the chosen file of each group.
        overrides: those of the command line. Those of a multirun may give several choices to a group.
    """
    given = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    experiment, data, model = (given.get(group) or choices.get(group) for group in ("experiment", "data", "model"))
    # Not linear_linear_regression.
    name = experiment or (model if str(model).startswith(str(data)) else f"{data}_{model}")
    return re.sub(r"[^\w.+-]+", "-", name.replace(",", "+")).strip("-")


def epochs_between(validations: int, max_epochs: int | None, max_steps: int | None) -> int:
    """Returns every how many epochs a run is validated, for some ``validations`` in all, one of them in its last epoch.

    Each epoch of a run with fewer epochs, of unknown length, or that ends by ``max_steps``.
    """
    if not isinstance(max_epochs, int) or max_epochs < 1 or (max_steps or 0) > 0:
        return 1
    return max(n for n in range(1, max(1, max_epochs // validations) + 1) if max_epochs % n == 0)


def run_label(run_dir: str) -> str:
    """Returns what a run is called where runs are tracked: its folder within ``outputs``, or the end of its path."""
    parts = Path(run_dir).parts
    start = len(parts) - parts[::-1].index("outputs") if "outputs" in parts[:-1] else -2
    return "/".join(parts[start:])


def run_group(run_dir: str) -> str:
    """Returns the part of its label that a run shares with others: its multirun, study or experiment."""
    return run_label(run_dir).rpartition("/")[0]


OmegaConf.register_new_resolver("run_label", run_label, replace=True)
OmegaConf.register_new_resolver("run_group", run_group, replace=True)
OmegaConf.register_new_resolver("epochs_between", epochs_between, replace=True)
# The cache gives the jobs of a multirun the name of the multirun.
OmegaConf.register_new_resolver("run_name", run_name, replace=True, use_cache=True)
