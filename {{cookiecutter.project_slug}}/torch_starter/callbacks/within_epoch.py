"""The state that a checkpoint needs to resume bit for bit within an epoch.

Lightning counts the batches and steps. This module adds the random state, the positions of the loaders, and the values
that metrics and ``self.log(…, on_epoch=True)`` have accumulated since the epoch began. Lightning omits them
(https://github.com/Lightning-AI/pytorch-lightning/issues/18780).

Two things are not bit-identical: values that are logged in some batches, but in none after the checkpoint; and data of
unknown length that draw from the global generators, because Lightning prefetches a batch of them.
"""

import random
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from lightning import LightningModule, Trainer
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, distributed
from torchmetrics import Metric, MetricCollection

from ..checkpoints import WITHIN_EPOCH
from ..compat import epoch_results, restore_loaders, set_update_count
from ..data.batches import rank_and_count
from ..metrics import MetricsOfStage


def state(trainer: Trainer, model: LightningModule, logged: dict[str, Any]) -> dict[str, Any]:
    """Return the missing state for a checkpoint between two batches, as plain numbers and tensors.

    Each rank calls this function after a step, before the next batch is loaded.

    Args:
        trainer: The trainer of the run.
        model: The model of the run.
        logged: Values that are still to be passed to ``restore_logged``.
    """
    logged = logged | _logged(trainer)
    own = {"random": _random_state(model.device), "metrics": _metrics(model), "waiting": _waiting(model)}
    own["logged"] = logged
    _, count = rank_and_count()
    states: list[Any] = [own]
    if count > 1:
        states = [None] * count
        distributed.all_gather_object(states, own)
    return {
        "batches": trainer.num_training_batches,
        "processes": states,
        "loaders": trainer.fit_loop.on_save_checkpoint().get("combined_loader", []),
    }


def add_to(checkpoint: dict[str, Any], state: dict[str, Any]) -> None:
    """Add ``state`` to a checkpoint that Lightning makes before the next batch, which it already counts as ready."""
    checkpoint[WITHIN_EPOCH] = state
    loops, epoch = checkpoint["loops"]["fit_loop"], checkpoint["epoch"]
    if state["loaders"]:
        loops["state_dict"]["combined_loader"] = state["loaders"]
    batches = loops["epoch_loop.batch_progress"]
    batches["is_last_batch"] = False
    for counts in (batches["total"], batches["current"]):
        counts["ready"] = counts["completed"]
    # The same counts as in an uninterrupted run.
    for counts in (loops["epoch_progress"]["total"], loops["epoch_progress"]["current"]):
        counts.update(ready=epoch + 1, started=epoch + 1, processed=epoch, completed=epoch)


def restore(trainer: Trainer, model: LightningModule, state: dict[str, Any]) -> dict[str, Any]:
    """Restore a state when training starts, before the next batch is loaded.

    Args:
        trainer: The trainer of the run.
        model: The model of the run.
        state: The return value of the function ``state``.

    Returns:
        The values for ``restore_logged``.

    Raises:
        MisconfigurationException: If the number of batches per epoch has changed.
    """
    if state["batches"] != trainer.num_training_batches:
        raise MisconfigurationException(
            f"The checkpoint is from within an epoch of {state['batches']} batches, but the epoch now has "
            f"{trainer.num_training_batches}. Resume without this change until the epoch has ended."
        )
    restore_loaders(trainer, state["loaders"], trainer.fit_loop.batch_idx + 1)
    rank, _ = rank_and_count()
    if rank >= len(state["processes"]):  # The checkpoint has fewer ranks.
        return {}
    own = state["processes"][rank]
    _set_random_state(own["random"], model.device)
    found = dict(_metrics_of(model))
    for name, (count, values) in own["metrics"].items():
        if name in found:
            for key, value in values.items():
                setattr(found[name], key, move_data_to_device(value, model.device))
            set_update_count(found[name], count)
    modules: dict[str, Any] = dict(model.named_modules())
    for name, waiting in own.get("waiting", {}).items():
        for values in waiting if name in modules else ():
            modules[name].update(*move_data_to_device(values, model.device))
    return own["logged"]


def restore_logged(trainer: Trainer, logged: dict[str, Any]) -> None:
    """Add the values that were logged in this epoch before the checkpoint to those that have been logged since."""
    results = epoch_results(trainer)
    for name in results.keys() & logged.keys():
        earlier, result = move_data_to_device(logged.pop(name), trainer.strategy.root_device), results[name]
        if result.meta.is_mean_reduction or result.meta.is_sum_reduction:
            result.value = earlier["value"] + result.value
        else:
            result.value = result.meta.reduce_fx(earlier["value"], result.value)
        if "cumulated_batch_size" in earlier:
            result.cumulated_batch_size = earlier["cumulated_batch_size"] + result.cumulated_batch_size


def _logged(trainer: Trainer) -> dict[str, Any]:
    return {name: dict(result.metric_state) for name, result in epoch_results(trainer).items()}


def _metrics(model: LightningModule) -> dict[str, tuple[int, dict[str, Any]]]:
    """Return the number of updates and the state of each metric."""
    for module in model.modules():
        if isinstance(module, MetricCollection):
            # Metrics of the same compute group share their state from now on. Waiting samples keep waiting, so that
            # they are added in the same order as in a run without this checkpoint.
            MetricCollection.values(module)
    return {name: (metric.update_count, dict(metric.metric_state)) for name, metric in _metrics_of(model)}


def _waiting(model: LightningModule) -> dict[str, list[tuple[Tensor, ...]]]:
    """Return the samples that each MetricsOfStage has not yet passed to its metrics."""
    return {name: list(module.waiting) for name, module in model.named_modules() if isinstance(module, MetricsOfStage)}


def _metrics_of(model: LightningModule) -> Iterator[tuple[str, Metric]]:
    for name, module in model.named_modules():
        if isinstance(module, Metric):
            yield name, module


def _random_state(device: torch.device) -> dict[str, Any]:
    numpy_state: Any = numpy.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()  # weights_only=True does not load arrays.
    state = {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state()}
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"])
