"""Find a learning rate by a range test, for `find_lr=true`."""

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from . import checkpoints, project, saved_config
from .files import display_path, replace_atomically
from .mistakes import UserError

if TYPE_CHECKING:
    from .callbacks.rate_range import RangeTest

log = logging.getLogger(__name__)

# Decay of the moving average of the losses, and the number of steps before it is meaningful.
SMOOTHING, WARMUP = 0.9, 10
# Replaces the schedule, which may need more steps.
CONSTANT = {"_target_": "torch.optim.lr_scheduler.ConstantLR", "_partial_": True, "factor": 1.0}
TRAINER = {
    "max_epochs": -1,
    "max_time": None,
    "fast_dev_run": False,
    "limit_val_batches": 0,
    "detect_anomaly": False,
    "profiler": None,
    "logger": False,
    "enable_checkpointing": False,
}


def find_learning_rate(config: DictConfig, checkpoint: str | None) -> None:
    """Set ``optimizer.lr`` to the result of a range test if ``find_lr`` is true and the run is new.

    The test uses a separate model, data module and random state, so the run is bit-identical to a run that sets this
    rate. The run folder keeps the rate, as ``optimizer.lr`` and ``find_lr``, and a figure of the test.

    Args:
        config: The completed config of the run, changed in place.
        checkpoint: The checkpoint that the run starts from, if any.

    Raises:
        UserError: If no rate is found, or the run has several processes.
    """
    typed = {key: value for key, _, value in (line.partition("=") for line in saved_config.typed_overrides())}
    if not isinstance(config.get("find_lr", False), bool) and "find_lr" in typed and config.ckpt_path is None:
        raise UserError(f"find_lr is {config.find_lr}; it must be true or false. To set a rate: optimizer.lr=…")
    if config.get("find_lr") is not True or checkpoint:
        return
    if "optimizer.lr" in typed:
        raise UserError(f"find_lr=true and optimizer.lr={typed['optimizer.lr']} both set the rate. Remove one.")
    test = _run_range_test(config)
    smoothed = _smooth(test.losses)
    rate = _find_steepest(test.rates, smoothed)
    path = Path(config.run_dir, "figures/learning_rate.png")
    if rate is None:
        raise UserError(
            f"find_lr=true finds no learning rate: the loss does not decrease in {len(test.losses)} steps with rates "
            f"up to {max(test.rates, default=0):.2g}. Set the rate: optimizer.lr=…"
        )
    _plot(path, test, smoothed, rate)
    before = OmegaConf.to_container(config)
    OmegaConf.update(config, "optimizer.lr", rate, force_add=True)
    config.find_lr = rate
    saved_config.save(config, before)
    log.info(f"find_lr: optimizer.lr={rate} (see {display_path(path)})")


def _run_range_test(config: DictConfig) -> "RangeTest":
    from lightning.pytorch.callbacks import BaseFinetuning
    from lightning.pytorch.utilities.seed import isolate_rng

    from .callbacks.known_batches import KnownBatches
    from .callbacks.rate_range import STEPS, RangeTest

    config = config.copy()
    OmegaConf.update(config, "scheduler", CONSTANT, merge=False, force_add=True)
    if "compile" in config.model:
        config.model.compile = False  # compiling takes longer than the test
    test = RangeTest()
    # Keep the callbacks that freeze a part of the network or check that batches fit the model.
    kept = [
        entry
        for entry in project.instantiate_entries(config, "callbacks")
        if isinstance(entry, BaseFinetuning | KnownBatches)
    ]
    with isolate_rng(), tempfile.TemporaryDirectory() as folder:
        trainer = instantiate(
            config.trainer, callbacks=[*kept, test], max_steps=STEPS, default_root_dir=folder, **TRAINER
        )
        if (count := trainer.num_devices * trainer.num_nodes) > 1:
            raise UserError(
                f"find_lr=true tests learning rates in one process, but this run has {count}. Find the rate with "
                "trainer=auto trainer.devices=1, then set it: optimizer.lr=…"
            )
        data = instantiate(config.data, _convert_="all")
        trainer.fit(checkpoints.load_weights(instantiate(config.model, _convert_="all"), config, None), data)
    return test


def _smooth(losses: list[float]) -> list[float]:
    """Return the bias-corrected exponential moving average of the losses."""
    total, smoothed = 0.0, []
    for step, loss in enumerate(losses, 1):
        total = SMOOTHING * total + (1 - SMOOTHING) * loss
        smoothed.append(total / (1 - SMOOTHING**step))
    return smoothed


def _find_steepest(rates: list[float], losses: list[float]) -> float | None:
    """Return the rate, to two digits, where the loss falls fastest over the log rate; None if the loss does not fall.

    Considers only rates below that of the lowest loss: https://arxiv.org/abs/1506.01186, section 3.3.
    """
    import numpy

    end = int(numpy.argmin(losses)) if losses else 0
    if end <= WARMUP:
        return None
    slopes = numpy.gradient(losses, numpy.log(rates))[WARMUP:end]
    return float(f"{rates[WARMUP + int(slopes.argmin())]:.2g}")


def _plot(path: Path, test: "RangeTest", smoothed: list[float], rate: float) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8))
    axes = figure.add_subplot()
    axes.semilogx(test.rates, test.losses, ".", color="0.7", label="each step")
    axes.semilogx(test.rates, smoothed, color="black", label="moving average")
    axes.axvline(rate, color="black", linestyle="--", label=f"steepest: {rate:.2g}")
    axes.set(xlabel="learning rate", ylabel="loss", title="Learning-rate range test")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(path) as unfinished:
        figure.savefig(unfinished, format="png")
