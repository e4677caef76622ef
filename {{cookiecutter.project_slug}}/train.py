"""Fit a model, then test its best checkpoint: `python train.py [group=choice …] [key=value …]`."""

import logging
import sys
import time

import hydra
from omegaconf import DictConfig

sys.path.insert(0, __file__.removesuffix("train.py"))  # which PYTHONSAFEPATH and python -P leave out
import processes
import runs
from compat import VERSION_BASE
from errors import explained
from help_page import has_help_page

log = logging.getLogger(__name__)


@explained
@processes.led_by_the_first
@has_help_page
@hydra.main(config_path="configs", config_name="train", **VERSION_BASE)
def main(config: DictConfig) -> None:
    with runs.opened(config):
        train(config)


def train(config: DictConfig, *watchers: object) -> None:
    """A run, from its composed config to its report; ``watchers`` are callbacks of whoever starts it."""
    if runs.is_finished(config):
        log.info(f"{runs.shown(config.run_dir)} is finished. resume.py trainer.max_epochs=… lengthens it.")
        return
    # Imported here, for they take seconds, which --help, --cfg and a mistyped override need not wait for.
    from hydra.utils import instantiate
    from lightning import seed_everything
    from lightning.pytorch.callbacks import Checkpoint

    start = time.monotonic()
    checkpoint = runs.claim(config)
    seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate(config.data, _convert_="all")
    runs.complete(config, data)
    model = runs.with_weights(instantiate(config.model, _convert_="all"), config, checkpoint)
    callbacks, loggers = [*watchers, *runs.entries(config, "callbacks")], runs.entries(config, "logger")
    has_checkpoint = any(isinstance(callback, Checkpoint) for callback in callbacks)
    trainer = instantiate(config.trainer, callbacks=callbacks, logger=loggers, enable_checkpointing=has_checkpoint)
    runs.record_environment(config.run_dir, trainer)
    with processes.together(config, trainer, checkpoint):
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
        found = dict(trainer.callback_metrics)
        best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None  # None: test the last weights
        trainer.test(model, data, ckpt_path=best, weights_only=True, verbose=False)
    if processes.is_first():
        results = runs.save_results(config.run_dir, trainer, found | trainer.callback_metrics, time.monotonic() - start)
        log.info(runs.report(config.run_dir, results))


if __name__ == "__main__":
    main()
