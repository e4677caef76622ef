"""Runs in Weights & Biases and in MLflow: one for each run folder, however often it is stopped and resumed."""

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

# The loggers of Lightning that this knows: the package, which is also the extra of pyproject.toml, and the argument
# that names the run to go on with.
SERVICES = {"WandbLogger": ("wandb", "id"), "MLFlowLogger": ("mlflow", "run_id")}
# In a run folder: the id of its run, for each logger.
FILE = "tracking.json"


def make_loggers(config: DictConfig) -> list[Any]:
    """Instantiates the loggers of a config; one that tracks runs goes on with the one that the run folder names.

    Raises:
        Mistake: if the package of one is not installed, or the ids in the run folder are none.
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
    """Package and argument, as in SERVICES, of each entry of ``config.logger`` that tracks runs."""
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
    # The folder may be untrusted, and an id becomes a part of paths and addresses.
    values = ids.values() if isinstance(ids, dict) else [None]
    if not all(isinstance(value, str) and re.fullmatch(r"[\w-]{1,64}", value, re.ASCII) for value in values):
        raise UserError(
            f"{path} has other ids than letters, digits, - and _: refused. Without it a new run is tracked."
        )
    return ids


@contextlib.contextmanager
def track_run(config: DictConfig, trainer: "Trainer") -> Iterator[None]:
    """Begins the tracked runs, or goes on with them, and ends them when what is done within ends.

    They are then finished; killed after Ctrl-C, SIGTERM, and as a trial that is pruned; otherwise failed. (Lightning's
    WandbLogger leaves its run open, and the next job of a multirun would go on in it. MLFlowLogger ends it after fit.)

    Args:
        config: of the run.
        trainer: with which it is done.
    """
    run = Path(config.run_dir)
    names = [str(name) for name, entry in config.logger.items() if entry and "_target_" in entry]
    # Not strict: fast_dev_run has replaced them by one that does nothing.
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
            if _service(logger) == "mlflow":  # a run that was ended before, or by Lightning after fit
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
            status = "FINISHED"  # as it was: what was refused did not change it
        if stop and stop is not error:
            raise stop from None
        raise
    finally:
        for logger in started:
            _end(logger, status)


def _stop_before(error: BaseException | None) -> BaseException | None:
    """What has stopped the run, if something has; a service that is interrupted raises errors of its own after it."""
    while error and not isinstance(error, SystemExit | KeyboardInterrupt):
        error = error.__context__
    return error


def _service(logger: Any) -> str:
    """``wandb`` or ``mlflow``; empty for a logger that tracks no runs."""
    return SERVICES.get(type(logger).__name__, ("", ""))[0]


def _start(logger: Any, entry: DictConfig) -> None:
    if _service(logger) == "mlflow":
        with _short_retries():
            _ = logger.experiment
        return
    import wandb  # pyrefly: ignore[missing-import]  (an extra)

    mode = "offline" if entry.get("offline") else entry.get("mode") or wandb.setup().settings.mode
    # Otherwise wandb would ask for a key, in the middle of a run.
    if wandb.run is None and mode not in ("offline", "dryrun", "disabled") and not _has_wandb_key(entry):
        raise UserError(
            "wandb: nobody is logged in on this machine. Log in once: wandb login\n"
            "Or keep the run here, for `wandb sync` later: WANDB_MODE=offline before the command"
        )
    _unlink(Path(logger.experiment.dir).parent)


def _has_wandb_key(entry: DictConfig) -> bool:
    import wandb  # pyrefly: ignore[missing-import]

    is_elsewhere = OmegaConf.select(entry, "settings.base_url") is not None  # a key for that one is not asked for here
    return is_elsewhere or wandb.login(prompt=False, verify=False)


def _unlink(folder: Path) -> None:
    """Removes links, which wandb makes to a log of its own in the home of the user, whatever ``symlink`` is."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            path.unlink()


@contextlib.contextmanager
def _short_retries() -> Iterator[None]:
    """Within, MLflow tries twice to reach its server and not, for minutes, eight times; unless the user set it."""
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
            # 255 is how wandb itself calls what was interrupted.
            logger.experiment.finish(exit_code={"FINISHED": 0, "KILLED": 255}.get(status, 1))
            _unlink(folder)
        else:
            with _short_retries():
                logger.experiment.set_terminated(logger.run_id, status)
    except Exception as error:  # the run itself is done, or its own error is the one to show
        log.warning(f"{_service(logger)} was not told that the run is {status}: {first_line(error)}")


def log_config(logger: Any, values: dict[str, Any], config: str) -> None:
    """Gives the hyperparameters of a run to any logger; to one that tracks runs also the composed config.

    Args:
        logger: of the run.
        values: the hyperparameters, by their dotted names.
        config: as Hydra writes it.
    """
    if _service(logger) == "mlflow":
        client, run_id = logger.experiment, logger.run_id
        client.log_text(run_id, config, "config.yaml")
        # A parameter is written once. What a resumed run has another value of is a tag.
        before = client.get_run(run_id).data.params
        for name, value in values.items():
            if name in before and before[name] != str(value)[:250]:
                client.set_tag(run_id, f"resumed.{name}", str(value))
        values = {name: value for name, value in values.items() if name not in before}
    logger.log_hyperparams(values)
    if _service(logger) == "wandb":
        # What is in its folder is uploaded; config.yaml there is wandb's own.
        Path(logger.experiment.dir, "hydra_config.yaml").write_text(config, encoding="utf-8")


def log_figure(logger: Any, tag: str, path: Path, step: int) -> None:
    """Gives a figure to a logger that tracks runs.

    Args:
        logger: any other is left out.
        tag: such as ``val/confusion_matrix``.
        path: of the PNG.
        step: of the run.
    """
    if _service(logger) == "wandb":
        logger.log_image(tag, [str(path)], step)
    elif _service(logger) == "mlflow":
        from PIL import Image

        with Image.open(path) as image:
            logger.experiment.log_image(logger.run_id, image.copy(), key=tag, step=step)
        logger.experiment.log_artifact(logger.run_id, str(path), "figures")  # the last one, under its own name
