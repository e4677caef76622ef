"""Tracks runs in Weights & Biases and MLflow: one tracked run per run folder, also after interruptions."""

import contextlib
import copy
import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from . import processes, project
from .files import read_json, write_json
from .mistakes import UserError, first_line

if TYPE_CHECKING:
    from lightning import LightningModule, Trainer

log = logging.getLogger(__name__)

# Supported Lightning loggers: package, which is also the extra in pyproject.toml, and argument with the id of the run
# to resume.
SERVICES = {"WandbLogger": ("wandb", "id"), "MLFlowLogger": ("mlflow", "run_id")}
# File in a run folder with the id of its tracked run, for each logger.
FILE = "tracking.json"


def make_loggers(config: DictConfig) -> list[Any]:
    """Instantiate the loggers of a config. Trackers resume the tracked run whose id is in the run folder.

    Args:
        config: Config of the run.

    Raises:
        UserError: If the package of a logger is not installed, or the run folder contains invalid ids.
    """
    config, run = copy.deepcopy(config), Path(config.run_dir)
    ids = _read_ids(run)
    if (run / "wandb/settings").exists():
        raise UserError(f"{run / 'wandb/settings'} could send runs elsewhere: refused. Remove it.")
    for name, (package, argument) in _services(config).items():
        if importlib.util.find_spec(package) is None:
            raise UserError(f'logger.{name} needs {package}, which is not installed: pip install -e ".[{package}]"')
        if name in ids and config.logger[name].get(argument) is None:
            OmegaConf.update(config, f"logger.{name}.{argument}", ids[name], force_add=True)
    return project.instantiate_entries(config, "logger")


def _services(config: DictConfig) -> dict[str, tuple[str, str]]:
    """Return package and argument, as in SERVICES, for each entry of ``config.logger`` that tracks runs."""
    classes = {
        name: str(entry._target_).rpartition(".")[2]
        for name, entry in config.logger.items()
        if isinstance(entry, DictConfig) and "_target_" in entry
    }
    return {str(name): SERVICES[class_] for name, class_ in classes.items() if class_ in SERVICES}


def _read_ids(run: Path) -> dict[str, str]:
    path = run / FILE
    ids: Any = None
    with contextlib.suppress(ValueError):
        ids = read_json(path) or {}
    # The folder may be untrusted, and ids become part of paths and addresses.
    values = ids.values() if isinstance(ids, dict) else [None]
    if not all(isinstance(value, str) and re.fullmatch(r"[\w-]{1,64}", value, re.ASCII) for value in values):
        raise UserError(
            f"{path} has invalid ids: refused. Use letters, digits, - and _, or remove the file to track a new run."
        )
    return ids


@contextlib.contextmanager
def track_run(config: DictConfig, trainer: "Trainer") -> Iterator[None]:
    """Start or resume the tracked runs, and end them with the context.

    Their final status is finished; killed after Ctrl-C, after SIGTERM, and for pruned trials; otherwise failed.
    Lightning's WandbLogger leaves its run open, so the next job of a multirun would continue it. MLFlowLogger ends its
    run after fit.

    Args:
        config: Config of the run.
        trainer: Trainer of the run.
    """
    run = Path(config.run_dir)
    names = [str(name) for name, entry in config.logger.items() if entry and "_target_" in entry]
    # Not strict: fast_dev_run replaces all loggers by a single dummy logger.
    found = {name: logger for name, logger in zip(names, trainer.loggers, strict=False) if _service(logger)}
    if not found or not processes.is_rank_zero():
        yield
        return
    from lightning.pytorch.callbacks import LambdaCallback

    has_begun, status, started = False, "FINISHED", []

    def begin(trainer: "Trainer", model: "LightningModule") -> None:
        nonlocal has_begun
        has_begun = True
        for logger in found.values():
            if _service(logger) == "mlflow":  # ended by an earlier start, or by Lightning after fit
                logger.experiment.update_run(logger.run_id, status="RUNNING")

    trainer.callbacks.insert(0, LambdaCallback(on_train_start=begin, on_test_start=begin))
    try:
        for name, logger in found.items():
            _start(logger, config.logger[name])
            started.append(logger)
        write_json(run / FILE, {name: logger.version for name, logger in found.items()})
        yield
    except BaseException as error:
        stop = _stop_before(error)
        status = "KILLED" if stop or type(error).__name__ == "TrialPruned" else "FAILED"
        if not has_begun and (run / "results.json").exists():
            status = "FINISHED"  # unchanged, because the command was refused
        if stop and stop is not error:
            raise stop from None
        raise
    finally:
        for logger in started:
            _end(logger, status)


def _stop_before(error: BaseException | None) -> BaseException | None:
    """Return the exit or interrupt behind an error, if any; an interrupted service raises its own error after it."""
    while error and not isinstance(error, SystemExit | KeyboardInterrupt):
        error = error.__context__
    return error


def _service(logger: Any) -> str:
    """Return ``wandb``, ``mlflow``, or an empty string for a logger that tracks no runs."""
    return SERVICES.get(type(logger).__name__, ("", ""))[0]


def _start(logger: Any, entry: DictConfig) -> None:
    if _service(logger) == "mlflow":
        with _short_retries():
            _ = logger.experiment
        return
    import wandb  # pyrefly: ignore[missing-import]  (an extra)

    mode = "offline" if entry.get("offline") else entry.get("mode") or wandb.setup().settings.mode
    # Otherwise wandb would prompt for a key during the run.
    if wandb.run is None and mode not in ("offline", "dryrun", "disabled") and not _has_wandb_key(entry):
        raise UserError(
            "wandb is not logged in on this machine. Log in once: wandb login\n"
            "Or store the run locally, for `wandb sync` later: WANDB_MODE=offline before the command"
        )
    _unlink(Path(logger.experiment.dir).parent)


def _has_wandb_key(entry: DictConfig) -> bool:
    import wandb  # pyrefly: ignore[missing-import]

    is_elsewhere = OmegaConf.select(entry, "settings.base_url") is not None  # whose key is not checked here
    return is_elsewhere or wandb.login(prompt=False, verify=False)


def _unlink(folder: Path) -> None:
    """Remove the links that wandb creates to its log in the user's home folder, even if ``symlink`` is false."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            path.unlink()


@contextlib.contextmanager
def _short_retries() -> Iterator[None]:
    """Limit MLflow to two connection attempts; its default of eight takes minutes. User settings take precedence."""
    set_here = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
    set_here = {name: value for name, value in set_here.items() if name not in os.environ}
    os.environ.update(set_here)
    try:
        yield
    finally:
        for name in set_here:
            os.environ.pop(name, None)


def _end(logger: Any, status: str) -> None:
    try:
        if _service(logger) == "wandb":
            folder = Path(logger.experiment.dir).parent
            # wandb itself uses 255 for interrupted runs.
            logger.experiment.finish(exit_code={"FINISHED": 0, "KILLED": 255}.get(status, 1))
            _unlink(folder)
        else:
            with _short_retries():
                logger.experiment.set_terminated(logger.run_id, status)
    except Exception as error:  # the run has ended, or its own error is more important
        log.warning(f"{_service(logger)} did not receive the status {status} of the run: {first_line(error)}")


def log_config(logger: Any, values: dict[str, Any], config: str) -> None:
    """Log the hyperparameters of a run and, for trackers, its composed config.

    Args:
        logger: Any logger of the run.
        values: Hyperparameters by dotted name.
        config: Composed config as YAML.
    """
    if _service(logger) == "mlflow":
        client, run_id = logger.experiment, logger.run_id
        client.log_text(run_id, config, "config.yaml")
        # MLflow parameters are immutable, so changed values of a resumed run become tags.
        before = client.get_run(run_id).data.params
        for name, value in values.items():
            if name in before and before[name] != str(value)[:250]:
                client.set_tag(run_id, f"resumed.{name}", str(value))
        values = {name: value for name, value in values.items() if name not in before}
    logger.log_hyperparams(values)
    if _service(logger) == "wandb":
        # wandb uploads all files in its folder; config.yaml is reserved.
        Path(logger.experiment.dir, "hydra_config.yaml").write_text(config, encoding="utf-8")


def log_figure(logger: Any, tag: str, path: Path, step: int) -> None:
    """Log a figure to a logger that tracks runs.

    Args:
        logger: Logger of the run; loggers that track no runs are skipped.
        tag: Name of the figure, such as ``val/confusion_matrix``.
        path: Path of the PNG file.
        step: Step of the run.
    """
    if _service(logger) == "wandb":
        logger.log_image(tag, [str(path)], step)
    elif _service(logger) == "mlflow":
        from PIL import Image

        with Image.open(path) as image:
            logger.experiment.log_image(logger.run_id, image.copy(), key=tag, step=step)
        logger.experiment.log_artifact(logger.run_id, str(path), "figures")  # the latest figure, under its own name
