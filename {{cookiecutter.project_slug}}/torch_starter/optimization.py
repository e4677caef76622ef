"""From the optimizer and scheduler of the config to what Lightning wants."""

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
    """What ``LightningModule.configure_optimizers`` returns.

    Args:
        module: whose parameters are optimized, attached to its trainer.
        optimizer: a class of ``torch.optim`` with all arguments but the parameters (``configs/optimizer``).
            ``no_decay`` among them is for this function: the parameters that have no weight decay, see ``has_name``.
        scheduler: a class of ``torch.optim.lr_scheduler`` with all arguments but the optimizer
            (``configs/scheduler``). ``interval`` and ``monitor`` among them are for Lightning; a
            ``T_max`` or ``total_steps`` that is None becomes the number of steps of the whole run,
            which only the trainer knows.

    Raises:
        MisconfigurationException: if torch does not accept an argument, or no parameter has a name of ``no_decay``.
    """
    arguments = dict(scheduler.keywords)
    when = {key: arguments.pop(key) for key in ("interval", "monitor") if key in arguments}
    for key in ("T_max", "total_steps"):
        if key in arguments and arguments[key] is None:
            steps = module.trainer.estimated_stepping_batches
            if not math.isfinite(steps):
                raise MisconfigurationException(
                    f"scheduler.{key} is null, and the run has no length that it could take. Set trainer.max_epochs=…, "
                    f"trainer.max_steps=…, or scheduler.{key}=…"
                )
            arguments[key] = int(steps)
    if "monitor" in when and when.get("interval") == "epoch":
        # Still once an epoch, but before the checkpoint is written instead of after it.
        module.trainer.fit_loop.setup_data()
        if math.isfinite(module.trainer.num_training_batches):
            when |= {"interval": "step", "frequency": int(module.trainer.num_training_batches)}
    try:
        built_optimizer = unscale_before_step(_optimizer(module, optimizer))
        built_scheduler = scheduler.func(built_optimizer, **arguments)
    except (IndexError, TypeError, ValueError) as error:
        raise MisconfigurationException(f"An argument of optimizer or scheduler does not fit: {error}") from error
    return {"optimizer": built_optimizer, "lr_scheduler": {"scheduler": built_scheduler, **when}}


def _optimizer(module: LightningModule, optimizer: "partial[Optimizer]") -> Optimizer:
    # What a callback has frozen is left out, for the callback to add later.
    trained: list[Any] = [p for p in module.parameters() if p.requires_grad]
    arguments = dict(optimizer.keywords)
    no_decay = _named(module, arguments.pop("no_decay", None) or ())
    hidden = hidden_weights(module) if optimizer.func is Muon else set()
    if not (no_decay or hidden):
        return optimizer.func(trained, **arguments)

    def split(group: dict[str, Any]) -> list[dict[str, Any]]:
        """A group of parameters, as one for each combination of options that they have."""
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
    """The parameters that have one of ``names``.

    Raises:
        MisconfigurationException: if none has one of them.
    """
    layers = dict(module.named_modules())
    parameters = dict(module.named_parameters())
    found: set[Any] = set()
    for name in [names] if isinstance(names, str) else names:
        of_name = {p for key, p in parameters.items() if has_name(key, layers[key.rpartition(".")[0]], str(name))}
        if not of_name and name == "norm":
            raise MisconfigurationException(
                "optimizer.no_decay has norm, and the model has no normalization layer. Leave it out."
            )
        if not of_name:
            choices = nearest(str(name), {part for key in parameters for part in key.split(".")})
            raise MisconfigurationException(f"optimizer.no_decay has {name}, which no parameter is called.{choices}")
        found |= of_name
    return found


def has_name(parameter: str, layer: nn.Module, name: str) -> bool:
    """Whether a parameter is meant by a name of ``optimizer.no_decay``.

    Args:
        parameter: its name in the model, such as ``network.features.0.weight``.
        layer: that it is of.
        name: ``norm`` means normalization layers; anything else a part of the name between dots, such as ``bias`` or
            ``features.0``, in which ``*`` stands for any text.
    """
    if name == "norm" and "Norm" in type(layer).__name__:
        return True
    return fnmatchcase(f".{parameter}.", f"*.{name}.*")


def is_validated(trainer: Trainer) -> bool:
    """Whether the current epoch is one of those that ``trainer.check_val_every_n_epoch`` validates."""
    return (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0


def is_logged(trainer: Trainer, step: int) -> bool:
    """Whether the logger writes in a step: every ``trainer.log_every_n_steps``, or never if that is 0."""
    every: int = trainer.log_every_n_steps
    return bool(every) and step % every == 0
