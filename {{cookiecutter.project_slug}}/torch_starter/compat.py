"""Workarounds for bugs, changes and missing public APIs of other libraries, each with its reason.

tests/test_compat.py fails when an upgrade breaks one of them.
"""

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from lightning import LightningModule, Trainer
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer
    from torch.utils.data import DataLoader
    from torch.utils.tensorboard.writer import SummaryWriter
    from torchmetrics import Metric

# Hydra 1.3 warns if version_base is missing, 1.4 deprecates it. Remove this once the lower bound of hydra-core is 1.4.
IS_HYDRA_1_3 = hydra.__version__.startswith("1.3.")
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if IS_HYDRA_1_3 else {}

# Replaces a config of the same name. 1.3 does so by default; 1.4 warns without this argument.
REPLACE: dict[str, Any] = {} if IS_HYDRA_1_3 else {"replace": True}


def _without_help_check(build: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``build`` so that argparse does not check the help of each argument during the call."""

    @functools.wraps(build)
    def build_unchecked() -> Any:
        check = argparse._ActionsContainer._check_help  # pyrefly: ignore  (new in Python 3.14)
        argparse._ActionsContainer._check_help = lambda self, action: None  # pyrefly: ignore
        try:
            return build()
        finally:
            argparse._ActionsContainer._check_help = check  # pyrefly: ignore

    return build_unchecked


# Python 3.14 rejects the help of Hydra 1.3's --shell-completion because it is not a str (facebookresearch/hydra#3121).
# The attribute `hydra.main` is the function; only sys.modules has the module.
if IS_HYDRA_1_3 and sys.version_info >= (3, 14):
    _module: Any = sys.modules["hydra.main"]
    _module.get_args_parser = _without_help_check(_module.get_args_parser)

# Hydra 1.4 warns about every target that is not in a whitelist, and 1.5 rejects it. Configs that the user composes may
# use any class.
if not IS_HYDRA_1_3:
    hydra.utils.execution_whitelist(hydra.utils.UNSAFE_DISABLE_EXECUTION_CHECKS).__enter__()


# The public `return_value` raises the error again, after printing a line to standard error.
def get_job_error(job_return: "JobReturn") -> BaseException | None:
    """Return the exception that a Hydra job raised, or None if it completed."""
    return job_return._return_value if job_return.status.name == "FAILED" else None


# Optuna cannot resume a trial whose process has died (optuna/optuna#6283). Study.ask creates new trials in this way.
def reopen_trial(study: "Study", frozen: "FrozenTrial") -> "Trial":
    """Return a trial that continues ``frozen``, whose process has died."""
    from optuna.trial import Trial

    return Trial(study, frozen._trial_id)


# A fused optimizer unscales float16 gradients within its step, so Lightning refuses to clip them before the step. Up to
# 2.6 it refuses with bfloat16 too, which is not scaled (Lightning-AI/pytorch-lightning#21435).
def unscale_before_step(optimizer: "Optimizer") -> "Optimizer":
    """Make Lightning unscale float16 gradients before the step of ``optimizer``, as if it were not fused; return it."""
    optimizer._step_supports_amp_scaling = False
    return optimizer


# A DataLoader cannot be closed (pytorch/pytorch#64766): its workers end when Python collects its iterator, but a
# traceback may keep the iterator alive.
def stop_workers(loader: "DataLoader[Any]") -> None:
    """Stop the persistent workers of a DataLoader now, if any; its next iteration starts new ones."""
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()
        loader._iterator = None


# TensorBoardLogger closes the writer after training. SummaryWriter reopens it only in its own methods, and the method
# for images would encode the PNG again.
def file_writer(experiment: "SummaryWriter") -> Any:
    """Return the file writer of a SummaryWriter, reopened if it is closed."""
    return experiment._get_file_writer()


# Module.compile cannot be undone, and compiled modules cannot be traced.
@contextlib.contextmanager
def disable_compiled_modules(model: "Module") -> Iterator[None]:
    """Call the modules of ``model`` uncompiled within the context."""
    compiled = {module: module._compiled_call_impl for module in model.modules()}
    try:
        for module in compiled:
            module._compiled_call_impl = None
        yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call


# Lightning decides by this count when to log; `global_step` counts the steps of all optimizers.
def logged_batches(trainer: "Trainer") -> int:
    """Return the number of batches that Lightning has offered to the loggers."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


# Lightning does not save the running means of `self.log(…, on_epoch=True)` (Lightning-AI/pytorch-lightning#18780).
def epoch_results(trainer: "Trainer") -> dict[str, Any]:
    """Return the results that accumulate over the current training epoch, by name; each is a Metric."""
    results = trainer.fit_loop.epoch_loop._results
    return {
        name: result
        for name, result in results.items()
        if result.is_tensor and result.meta.on_epoch and not result.has_reset
    }


# torch flattens nested tuples, lists and dicts only under a private name.
def flatten(value: Any) -> list[Any]:
    """Return the leaves of nested tuples, lists and dicts."""
    from torch.utils._pytree import tree_leaves

    return tree_leaves(value)


# Lightning accumulates the values of each hook separately.
def current_hook(model: "LightningModule") -> str | None:
    """Return the name of the model or callback hook that Lightning is calling."""
    return model._current_fx_name


# `log` checks all its arguments in each step; that takes longer than a step of a small network.
def add_to_mean(model: "LightningModule", name: str, value: "Tensor", batch_size: float) -> None:
    """Add a value to the mean that ``model.log`` has started under ``name`` in the same hook."""
    results = model.trainer._results
    assert results is not None
    results.update_metrics(f"{current_hook(model)}.{name}", value, batch_size)  # pyrefly: ignore[bad-argument-type]


# Lightning enters a profiler context around each hook of each callback, even if the callback does not override the hook
# and nothing is profiled. That takes 3 microseconds each: a tenth of a step of a small network, and more of an epoch of
# one step.
def skip_empty_hooks(trainer: "Trainer") -> None:
    """Make Lightning skip the step and epoch hooks that callbacks do not override."""
    from lightning import Callback
    from lightning.pytorch.profilers import PassThroughProfiler

    always_called = {"on_save_checkpoint", "on_load_checkpoint", "on_exception"}
    hooks = {name for name in dir(Callback) if name.startswith("on_")} - always_called
    for callback in trainer.callbacks:
        for hook in hooks - vars(callback).keys():
            if getattr(type(callback), hook, None) is getattr(Callback, hook):
                setattr(callback, hook, None)  # Lightning skips hooks that are not callable
    if type(trainer.profiler) is PassThroughProfiler:
        nothing = contextlib.nullcontext()
        trainer.profiler.profile = lambda action_name: nothing  # pyrefly: ignore[bad-assignment]


# If FSDP shards nothing, as on a single GPU, it treats the gradient of a channels_last weight as contiguous and so
# permutes it. A fused optimizer rejects that, any other trains on it (torch 2.15; since pytorch/pytorch#137382).
def use_contiguous_weights(model: "Module") -> None:
    """Make the weights of a model contiguous, before FSDP wraps them."""
    import torch

    # The type hints of torch 2.8 lack this overload.
    # pyrefly: ignore[no-matching-overload]
    model.to(memory_format=torch.contiguous_format)


# The state of a Metric can be set, but not its number of updates, although some metrics weight their state by it.
def set_update_count(metric: "Metric", count: int) -> None:
    """Set the number of updates that the state of a metric comes from."""
    metric._update_count = count


# Lightning restarts loaders from their beginning if the length of the run was read before, as schedulers do. It always
# restarts those without a `state_dict`.
def restore_loaders(trainer: "Trainer", states: list[dict[str, Any]], batches: int) -> None:
    """Restore the positions of the loaders in the current epoch.

    Args:
        trainer: The trainer, about to train.
        states: The states of the loaders that have a ``state_dict``.
        batches: The number of completed batches of the epoch. Without ``states``, they are loaded again and skipped.
    """
    from lightning.fabric.utilities.data import _set_sampler_epoch

    fetcher, loaders = trainer.fit_loop._data_fetcher, trainer.fit_loop._combined_loader
    assert fetcher is not None
    assert loaders is not None
    loaders._load_state_dicts(states)
    if states or trainer.current_epoch > 0:  # in the first epoch Lightning keeps the iterator and its batches
        iter(fetcher)
    if not states:
        for loader in loaders.flattened:
            _set_sampler_epoch(loader, trainer.current_epoch)
        for _ in range(batches):
            next(fetcher)
        fetcher.fetched -= batches  # Lightning adds its own count


# ModelCheckpoint stores this argument only under a private name.
def has_version_counter(checkpoint: Any) -> bool:
    """Return whether a ModelCheckpoint adds version numbers to files that would have the same name."""
    return checkpoint._enable_version_counter


def instantiate_only_targets_of(config: DictConfig) -> contextlib.AbstractContextManager[Any]:
    """Restrict Hydra 1.4 to the targets that ``config`` names, within the context; 1.3 has no whitelist.

    Args:
        config: The config of an untrusted run folder, after trust.py has allowed each of its targets. Targets that
            appear later, by a merge or a nested call, are refused.
    """
    if IS_HYDRA_1_3:
        return contextlib.nullcontext()
    targets = sorted(set(_iterate_targets(OmegaConf.to_container(config, resolve=True))))
    return hydra.utils.execution_whitelist(targets, reset=True)


def _iterate_targets(config: Any) -> Iterator[str]:
    values = config.values() if isinstance(config, dict) else config if isinstance(config, list) else ()
    if isinstance(config, dict) and isinstance(config.get("_target_"), str):
        yield config["_target_"]
    for value in values:
        yield from _iterate_targets(value)
