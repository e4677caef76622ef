"""Train a model, then test its best checkpoint: `python train.py [group=choice …] [key=value …]`."""

import logging
import sys
import time

import hydra
from omegaconf import DictConfig

sys.path.insert(0, __file__.removesuffix("train.py"))  # even with PYTHONSAFEPATH or python -P
from torch_starter import checkpoints, environment, processes, project, results, run_folder, saved_config, tracking
from torch_starter.compat import VERSION_BASE
from torch_starter.explanations import explain_errors
from torch_starter.help_page import has_help_page
from torch_starter.learning_rate import find_learning_rate

log = logging.getLogger(__name__)


def train(config: DictConfig, *watchers: object) -> None:
    """Train and test the model of a composed config, then report; ``watchers`` are additional callbacks."""
    if run_folder.is_finished(config):
        return
    # Imported here because they take seconds; --help, --cfg and mistyped overrides do not wait for them.
    from hydra.utils import instantiate
    from lightning import seed_everything
    from lightning.pytorch.callbacks import Checkpoint

    start = time.monotonic()
    checkpoint = checkpoints.find_start(config)
    seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate(config.data, _convert_="all")
    saved_config.complete_config(config, data)
    find_learning_rate(config, checkpoint)
    model = checkpoints.load_weights(instantiate(config.model, _convert_="all"), config, checkpoint)
    callbacks, loggers = [*watchers, *project.instantiate_entries(config, "callbacks")], tracking.make_loggers(config)
    has_checkpoint = any(isinstance(callback, Checkpoint) for callback in callbacks)
    trainer = instantiate(config.trainer, callbacks=callbacks, logger=loggers, enable_checkpointing=has_checkpoint)
    environment.record(config.run_dir, trainer)
    with processes.run_on_all_ranks(config, trainer, checkpoint), tracking.track_run(config, trainer):
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
        found = dict(trainer.callback_metrics)
        best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None  # None: test the last weights
        trainer.test(model, data, ckpt_path=best, weights_only=True, verbose=False)
    if processes.is_rank_zero():
        found |= trainer.callback_metrics
        log.info(results.report(config.run_dir, results.save(config.run_dir, trainer, found, time.monotonic() - start)))


@explain_errors
@processes.run_on_rank_zero(train)
@has_help_page
@hydra.main(config_path="configs", config_name="train", **VERSION_BASE)
def main(config: DictConfig) -> None:
    with run_folder.open_run_folder(config):
        train(config)


if __name__ == "__main__":
    main()
