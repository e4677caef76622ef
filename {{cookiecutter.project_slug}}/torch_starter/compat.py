"""What other libraries get wrong, have changed, or offer under private names only; each with the reason.

tests/test_compat.py fails when an upgrade breaks one of these.
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

# Until the lower bound of hydra-core is 1.4, which deprecates version_base; 1.3 warns where it is missing.
IS_HYDRA_1_3 = hydra.__version__.startswith("1.3.")
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if IS_HYDRA_1_3 else {}

# Replaces a config of the same name, which 1.4 warns of unless it is told so and 1.3 does unasked.
REPLACE: dict[str, Any] = {} if IS_HYDRA_1_3 else {"replace": True}


def _without_help_check(build: Callable[..., Any]) -> Callable[..., Any]:
    """``build``, during which argparse does not check the help of each argument."""

    @functools.wraps(build)
    def build_unchecked() -> Any:
        check = argparse._ActionsContainer._check_help  # pyrefly: ignore  (new in Python 3.14)
        argparse._ActionsContainer._check_help = lambda self, action: None  # pyrefly: ignore
        try:
            return build()
        finally:
            argparse._ActionsContainer._check_help = check  # pyrefly: ignore

    return build_unchecked


# Python 3.14 refuses the help of Hydra 1.3's --shell-completion, which is no str (facebookresearch/hydra#3121).
# `hydra.main` is the function; its module is found here only.
if IS_HYDRA_1_3 and sys.version_info >= (3, 14):
    _module: Any = sys.modules["hydra.main"]
    _module.get_args_parser = _without_help_check(_module.get_args_parser)

# Hydra 1.4 warns of every target that no whitelist names, and 1.5 refuses it. What you compose may use any class.
if not IS_HYDRA_1_3:
    hydra.utils.execution_whitelist(hydra.utils.UNSAFE_DISABLE_EXECUTION_CHECKS).__enter__()


# What is public raises it once more, after a line on standard error.
def get_job_error(job_return: "JobReturn") -> BaseException | None:
    """What a job of Hydra has raised; None if it is completed."""
    return job_return._return_value if job_return.status.name == "FAILED" else None


# Until Optuna goes on with a trial whose process has died (optuna/optuna#6283); Study.ask makes a new one in this way.
def reopen_trial(study: "Study", frozen: "FrozenTrial") -> "Trial":
    """A trial that a process has left, to go on with."""
    from optuna.trial import Trial

    return Trial(study, frozen._trial_id)


# A fused optimizer undoes the scaling of float16 within its step, and Lightning refuses to clip its gradients before;
# up to 2.6 with bfloat16 too, which is not scaled (Lightning-AI/pytorch-lightning#21435).
def unscale_before_step(optimizer: "Optimizer") -> "Optimizer":
    """An optimizer for which float16 is unscaled before its step, as for any that is not fused."""
    optimizer._step_supports_amp_scaling = False
    return optimizer


# A DataLoader cannot be closed (pytorch/pytorch#64766): its workers end when Python happens to collect its iterator,
# which a traceback may keep alive.
def stop_workers(loader: "DataLoader[Any]") -> None:
    """Ends the persistent workers of a DataLoader now, if there are any; its next iteration starts others."""
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()
        loader._iterator = None


# TensorBoardLogger closes the writer after training; SummaryWriter opens it anew only for its own methods, of which
# the one for images would encode a PNG once more.
def file_writer(experiment: "SummaryWriter") -> Any:
    """The file writer of TensorBoard's SummaryWriter, opened anew if it is closed."""
    return experiment._get_file_writer()


# Module.compile has no counterpart that undoes it, and what it has made cannot be traced.
@contextlib.contextmanager
def disable_compiled_modules(model: "Module") -> Iterator[None]:
    """Within, the modules of ``model`` are called as if none of them were compiled."""
    compiled = {module: module._compiled_call_impl for module in model.modules()}
    try:
        for module in compiled:
            module._compiled_call_impl = None
        yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call


# By which its loggers decide; `global_step` counts the steps of all optimizers.
def logged_batches(trainer: "Trainer") -> int:
    """How many batches Lightning has offered to the loggers."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


# Lightning saves nothing of what `self.log(…, on_epoch=True)` has added up (Lightning-AI/pytorch-lightning#18780).
def epoch_results(trainer: "Trainer") -> dict[str, Any]:
    """What was logged in the current epoch of training for a value at its end, by name; each is a Metric."""
    results = trainer.fit_loop.epoch_loop._results
    return {
        name: result
        for name, result in results.items()
        if result.is_tensor and result.meta.on_epoch and not result.has_reset
    }


# torch walks through nested tuples, lists and dicts under a private name alone.
def flatten(value: Any) -> list[Any]:
    """What is in ``value``, however nested."""
    from torch.utils._pytree import tree_leaves

    return tree_leaves(value)


# Lightning keeps apart what is logged in different hooks.
def current_hook(model: "LightningModule") -> str | None:
    """The hook of a model or a callback that Lightning is calling."""
    return model._current_fx_name


# `log` examines all its arguments in each step, which takes longer than a step of a small network.
def add_to_mean(model: "LightningModule", name: str, value: "Tensor", batch_size: float) -> None:
    """Adds a value to the mean that ``model.log`` has begun under this name in the same hook."""
    results = model.trainer._results
    assert results is not None
    results.update_metrics(f"{current_hook(model)}.{name}", value, batch_size)  # pyrefly: ignore[bad-argument-type]


# Around each hook of each callback Lightning enters a context of its profiler, also where a callback has no such hook
# and nothing is profiled: 3 microseconds each, a tenth of a step of a small network, and more of an epoch of one step.
def skip_empty_hooks(trainer: "Trainer") -> None:
    """Makes Lightning leave out the hooks of steps and epochs that callbacks have only inherited."""
    from lightning import Callback
    from lightning.pytorch.profilers import PassThroughProfiler

    called_in_any_case = {"on_save_checkpoint", "on_load_checkpoint", "on_exception"}
    hooks = {name for name in dir(Callback) if name.startswith("on_")} - called_in_any_case
    for callback in trainer.callbacks:
        for hook in hooks - vars(callback).keys():
            if getattr(type(callback), hook, None) is getattr(Callback, hook):
                setattr(callback, hook, None)  # Lightning calls what is callable
    if type(trainer.profiler) is PassThroughProfiler:
        nothing = contextlib.nullcontext()
        trainer.profiler.profile = lambda action_name: nothing  # pyrefly: ignore[bad-assignment]


# Where FSDP divides nothing, as on a single GPU, it takes the gradient of a channels_last weight for a contiguous one,
# and so permutes it: a fused optimizer refuses that, any other trains on it (torch 2.15; since pytorch/pytorch#137382).
def use_contiguous_weights(model: "Module") -> None:
    """Gives the weights of a model the order in memory that FSDP treats rightly, before it wraps them."""
    import torch

    # torch 2.8 has no type hint for that.
    # pyrefly: ignore[no-matching-overload]
    model.to(memory_format=torch.contiguous_format)


# A Metric can be given its state, but not the number of its updates, which some weigh their state by.
def set_update_count(metric: "Metric", count: int) -> None:
    """Makes a metric take its state for that of so many updates."""
    metric._update_count = count


# Lightning leaves loaders at their beginning if the length of the run was asked for before, as schedulers do, and those
# that have no `state_dict` in any case.
def restore_loaders(trainer: "Trainer", states: list[dict[str, Any]], batches: int) -> None:
    """Lets the loaders of the current epoch go on where they were.

    Args:
        trainer: about to train.
        states: of loaders with a ``state_dict``.
        batches: of the epoch that are done; they are loaded once more if there are no such loaders.
    """
    from lightning.fabric.utilities.data import _set_sampler_epoch

    fetcher, loaders = trainer.fit_loop._data_fetcher, trainer.fit_loop._combined_loader
    assert fetcher is not None
    assert loaders is not None
    loaders._load_state_dicts(states)
    if states or trainer.current_epoch > 0:  # in the first epoch Lightning keeps the iterator, and what it has drawn
        iter(fetcher)
    if not states:
        for loader in loaders.flattened:
            _set_sampler_epoch(loader, trainer.current_epoch)
        for _ in range(batches):
            next(fetcher)
        fetcher.fetched -= batches  # Lightning will add what it has counted


# ModelCheckpoint keeps this argument under a private name alone.
def has_version_counter(checkpoint: Any) -> bool:
    """Whether a ModelCheckpoint numbers the files that would have the same name."""
    return checkpoint._enable_version_counter


def instantiate_only_targets_of(config: DictConfig) -> contextlib.AbstractContextManager[Any]:
    """Within, Hydra 1.4 instantiates nothing but the targets that ``config`` names; 1.3 has no such list.

    Args:
        config: of an untrusted run folder, after trust.py has allowed each of its targets. Whatever appears as a target
            later, by a merge or a nested call, is refused.
    """
    if IS_HYDRA_1_3:
        return contextlib.nullcontext()
    targets = sorted(set(_targets(OmegaConf.to_container(config, resolve=True))))
    return hydra.utils.execution_whitelist(targets, reset=True)


def _targets(config: Any) -> Iterator[str]:
    values = config.values() if isinstance(config, dict) else config if isinstance(config, list) else ()
    if isinstance(config, dict) and isinstance(config.get("_target_"), str):
        yield config["_target_"]
    for value in values:
        yield from _targets(value)
