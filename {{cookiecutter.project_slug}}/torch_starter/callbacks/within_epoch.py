"""What a run needs, beside an ordinary checkpoint, to go on within an epoch to the bit.

Lightning counts the batches and steps. This adds the random numbers, where the loaders are, and what metrics and
``self.log(…, on_epoch=True)`` have added up since the epoch began, which Lightning leaves out
(https://github.com/Lightning-AI/pytorch-lightning/issues/18780).

Two things are not equal to the bit: a value that is logged in some batches and in none after the checkpoint, and data
of unknown length that draw from the global generators, of which Lightning loads a batch ahead.
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
    """Returns what a checkpoint lacks for a run to go on between two batches: plain numbers and tensors.

    Each process calls it after a step, before the next batch is loaded.

    Args:
        trainer: of the run.
        model: of the run.
        logged: what waits for ``restore_logged``.
    """
    logged = logged | _logged(trainer)
    own = {"random": _random_state(model.device), "metrics": _metrics(model), "waiting": _waiting(model)}
    own["logged"] = logged
    _, count = rank_and_count()
    of_processes: list[Any] = [own]
    if count > 1:
        of_processes = [None] * count
        distributed.all_gather_object(of_processes, own)
    return {
        "batches": trainer.num_training_batches,
        "processes": of_processes,
        "loaders": trainer.fit_loop.on_save_checkpoint().get("combined_loader", []),
    }


def add_to(checkpoint: dict[str, Any], state: dict[str, Any]) -> None:
    """Adds ``state`` to a checkpoint that Lightning makes before the first step of the next batch, which it counts."""
    checkpoint[WITHIN_EPOCH] = state
    loops, epoch = checkpoint["loops"]["fit_loop"], checkpoint["epoch"]
    if state["loaders"]:
        loops["state_dict"]["combined_loader"] = state["loaders"]
    batches = loops["epoch_loop.batch_progress"]
    batches["is_last_batch"] = False
    for counts in (batches["total"], batches["current"]):
        counts["ready"] = counts["completed"]
    # As they are in a run that was never resumed.
    for counts in (loops["epoch_progress"]["total"], loops["epoch_progress"]["current"]):
        counts.update(ready=epoch + 1, started=epoch + 1, processed=epoch, completed=epoch)


def restore(trainer: Trainer, model: LightningModule, state: dict[str, Any]) -> dict[str, Any]:
    """Brings back a state, when training starts, before the next batch is loaded.

    Returns:
        what is for ``restore_logged``.

    Raises:
        MisconfigurationException: if the epoch has another number of batches now.
    """
    if state["batches"] != trainer.num_training_batches:
        raise MisconfigurationException(
            f"The checkpoint is from within an epoch of {state['batches']} batches, and it has "
            f"{trainer.num_training_batches} now. Go on as before until the epoch has ended; change the batches then."
        )
    restore_loaders(trainer, state["loaders"], trainer.fit_loop.batch_idx + 1)
    rank, _ = rank_and_count()
    if rank >= len(state["processes"]):  # there were fewer
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
    """Adds what was logged of the epoch before the checkpoint, for each value that has been logged since."""
    results = epoch_results(trainer)
    for name in results.keys() & logged.keys():
        former, result = move_data_to_device(logged.pop(name), trainer.strategy.root_device), results[name]
        if result.meta.is_mean_reduction or result.meta.is_sum_reduction:
            result.value = former["value"] + result.value
        else:
            result.value = result.meta.reduce_fx(former["value"], result.value)
        if "cumulated_batch_size" in former:
            result.cumulated_batch_size = former["cumulated_batch_size"] + result.cumulated_batch_size


def _logged(trainer: Trainer) -> dict[str, Any]:
    return {name: dict(result.metric_state) for name, result in epoch_results(trainer).items()}


def _metrics(model: LightningModule) -> dict[str, tuple[int, dict[str, Any]]]:
    """How often each metric was updated, and its state."""
    for module in model.modules():
        if isinstance(module, MetricCollection):
            # Those that count the same have the same state from now on. What waits goes on to wait, so that it is added
            # up in the same order as in a run that is not saved here.
            MetricCollection.values(module)
    return {name: (metric.update_count, dict(metric.metric_state)) for name, metric in _metrics_of(model)}


def _waiting(model: LightningModule) -> dict[str, list[tuple[Tensor, ...]]]:
    """What each MetricsOfStage has not yet given to its metrics."""
    return {name: list(module.waiting) for name, module in model.named_modules() if isinstance(module, MetricsOfStage)}


def _metrics_of(model: LightningModule) -> Iterator[tuple[str, Metric]]:
    for name, module in model.named_modules():
        if isinstance(module, Metric):
            yield name, module


def _random_state(device: torch.device) -> dict[str, Any]:
    numpy_state: Any = numpy.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()  # weights_only reads no arrays
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
