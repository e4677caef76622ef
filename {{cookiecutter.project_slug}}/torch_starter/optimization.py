"""Builds the optimizer and the scheduler that the config describes."""

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .compat import unscale_before_step
from .mistakes import nearest
from .muon import Muon, hidden_weights


def optimizer_and_scheduler(
    module: LightningModule, optimizer: "partial[Optimizer]", scheduler: "partial[LRScheduler]"
) -> dict[str, Any]:
    """Return the optimizer and scheduler in the form that ``LightningModule.configure_optimizers`` returns.

    Args:
        module: Module to optimize, attached to its trainer.
        optimizer: A class of ``torch.optim`` with all arguments except the parameters (``configs/optimizer``).
            This function removes the argument ``no_decay``, which names the parameters without weight decay, see
            ``has_name``.
        scheduler: A class of ``torch.optim.lr_scheduler`` with all arguments except the optimizer
            (``configs/scheduler``). ``interval`` and ``monitor`` are passed to Lightning. If ``T_max`` or
            ``total_steps`` is None, it becomes the number of steps of the whole run, which only the trainer knows.

    Raises:
        MisconfigurationException: If torch rejects an argument, or no parameter matches a name in ``no_decay``.
    """
    arguments = dict(scheduler.keywords)
    when = {key: arguments.pop(key) for key in ("interval", "monitor") if key in arguments}
    for key in ("T_max", "total_steps"):
        if key in arguments and arguments[key] is None:
            steps = module.trainer.estimated_stepping_batches
            if not math.isfinite(steps):
                raise MisconfigurationException(
                    f"scheduler.{key} is null, but the length of the run is not known. Set trainer.max_epochs=…, "
                    f"trainer.max_steps=…, or scheduler.{key}=…"
                )
            arguments[key] = int(steps)
    if "monitor" in when and when.get("interval") == "epoch":
        # Still once per epoch, but before the checkpoint is written instead of after it.
        module.trainer.fit_loop.setup_data()
        if math.isfinite(module.trainer.num_training_batches):
            when |= {"interval": "step", "frequency": int(module.trainer.num_training_batches)}
    try:
        built_optimizer = unscale_before_step(_optimizer(module, optimizer))
        built_scheduler = scheduler.func(built_optimizer, **arguments)
    except (IndexError, TypeError, ValueError) as error:
        raise MisconfigurationException(f"Invalid argument of optimizer or scheduler: {error}") from error
    return {"optimizer": built_optimizer, "lr_scheduler": {"scheduler": built_scheduler, **when}}


def _optimizer(module: LightningModule, optimizer: "partial[Optimizer]") -> Optimizer:
    # Parameters that a callback has frozen are left out; the callback adds them later.
    trained: list[Any] = [p for p in module.parameters() if p.requires_grad]
    arguments = dict(optimizer.keywords)
    no_decay = _named(module, arguments.pop("no_decay", None) or ())
    hidden = hidden_weights(module) if optimizer.func is Muon else set()
    if not (no_decay or hidden):
        return optimizer.func(trained, **arguments)

    def split(group: dict[str, Any]) -> list[dict[str, Any]]:
        """Split a parameter group into one group per combination of options."""
        groups: dict[tuple[bool, bool], dict[str, Any]] = {}
        for p in group["params"]:
            options = ({"is_hidden": True} if p in hidden else {}) | ({"weight_decay": 0.0} if p in no_decay else {})
            groups.setdefault((p in hidden, p in no_decay), {**group, **options, "params": []})["params"].append(p)
        return list(groups.values())

    built = optimizer.func(split({"params": trained}), **arguments)
    add = built.add_param_group
    # Callbacks that unfreeze layers call this.
    built.add_param_group = lambda group: [add(part) for part in split(group)]  # pyrefly: ignore[bad-assignment]
    return built


def _named(module: LightningModule, names: Sequence[str]) -> set[Any]:
    """Return the parameters that match one of ``names``.

    Raises:
        MisconfigurationException: If a name matches no parameter.
    """
    layers = dict(module.named_modules())
    parameters = dict(module.named_parameters())
    found: set[Any] = set()
    for name in [names] if isinstance(names, str) else names:
        of_name = {p for key, p in parameters.items() if has_name(key, layers[key.rpartition(".")[0]], str(name))}
        if not of_name and name == "norm":
            raise MisconfigurationException(
                "optimizer.no_decay contains norm, but the model has no normalization layer. Remove norm."
            )
        if not of_name:
            choices = nearest(str(name), {part for key in parameters for part in key.split(".")})
            raise MisconfigurationException(
                f"optimizer.no_decay contains {name}, but no parameter has this name.{choices}"
            )
        found |= of_name
    return found


def has_name(parameter: str, layer: nn.Module, name: str) -> bool:
    """Return whether a parameter matches a name in ``optimizer.no_decay``.

    Args:
        parameter: Name of the parameter in the model, such as ``network.features.0.weight``.
        layer: Layer that owns the parameter.
        name: ``norm`` matches normalization layers. Any other name matches a part of the parameter's name between dots,
            such as ``bias`` or ``features.0``; ``*`` matches any text.
    """
    if name == "norm" and "Norm" in type(layer).__name__:
        return True
    return fnmatchcase(f".{parameter}.", f"*.{name}.*")


def is_validated(trainer: Trainer) -> bool:
    """Return whether ``trainer.check_val_every_n_epoch`` selects the current epoch for validation."""
    return (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0


def is_logged(trainer: Trainer, step: int) -> bool:
    """Return whether the logger writes in a step: every ``trainer.log_every_n_steps`` steps, or never if that is 0."""
    every: int = trainer.log_every_n_steps
    return bool(every) and step % every == 0
