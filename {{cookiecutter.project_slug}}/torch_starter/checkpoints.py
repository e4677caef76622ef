"""Find and check the checkpoint that a run starts from or is evaluated with."""

import logging
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from . import processes
from .files import display_path, read_json
from .mistakes import UserError
from .run_lookup import find_folder, has_checkpoint, is_run
from .saved_config import is_job_of_multirun, read_saved, refuse_without_effect, save, typed_overrides
from .trust import refuse_checkpoint_paths

if TYPE_CHECKING:
    from lightning import LightningModule
    from torch import Tensor

log = logging.getLogger(__name__)

# Checkpoint key that callbacks/within_epoch.py adds.
WITHIN_EPOCH = "within_epoch"


def find_start(config: DictConfig) -> str | None:
    """Return the checkpoint that a run starts from, if any.

    ``ckpt_path=last`` resumes in the run's own folder: from ``last.ckpt`` if it is intact, otherwise from
    ``best.ckpt``, otherwise from the beginning. Any other value is a checkpoint of another run to continue from.

    Args:
        config: The config of the run. ``weights`` is replaced by the path of a checkpoint.

    Returns:
        The path of the checkpoint, or None to start from the beginning. Ranks other than 0 return ``config.ckpt_path``.

    Raises:
        UserError: If the file does not exist, no checkpoint in the folder is intact, a checkpoint refers to files
            elsewhere, or the run cannot continue from it.
    """
    if not processes.is_rank_zero():
        return config.ckpt_path
    if config.weights is not None and not has_checkpoint(Path(config.run_dir)):
        _find_weights(config)
    if config.ckpt_path is None:
        return None
    if config.ckpt_path != "last":
        _check_start(config)
        return str(config.ckpt_path)
    folder = Path(config.run_dir, "checkpoints")
    existing = [path for path in (folder / "last.ckpt", folder / "best.ckpt") if path.exists()]
    for path in existing:
        if not is_intact(path):
            log.warning(f"{path} is damaged.")
            continue
        saved = read(path)
        refuse_checkpoint_paths(saved, path)
        if _is_resumable(saved):
            _check_limits(config, saved, f"{display_path(folder.parent)} was trained for", "")
            return str(path)
        # last.ckpt is written after each epoch, so no epoch has ended if it is missing.
        if saved["epoch"] == 0 and existing == [folder / "best.ckpt"] and config.callbacks.get("last_checkpoint"):
            log.warning(f"{display_path(folder.parent)} has not completed an epoch; it starts from the beginning.")
            return None
        log.warning(f"{path} is from the middle of an epoch, so the run cannot resume from it.")
    if existing:
        raise UserError(
            f"No checkpoint in {folder} is intact and from the end of an epoch. Delete them to restart this run from "
            "the beginning."
        )
    return None


def read(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint; tensors stay on disk until they are used.

    Raises:
        UnpicklingError: If it contains anything but numbers and text.
    """
    import torch

    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _is_resumable(saved: dict[str, Any]) -> bool:
    """Return whether a run can resume from the checkpoint: at the end of an epoch, or where LastCheckpoint saved it."""
    return bool(saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]) or WITHIN_EPOCH in saved


def _check_start(config: DictConfig) -> None:
    """Check that a new run can continue from the checkpoint of another run.

    Raises:
        UserError: If the checkpoint does not exist, leaves nothing to train, or contradicts the config.
    """
    if config.weights is not None:
        raise UserError("ckpt_path and weights are both set, but a run starts from only one of them. Remove the other.")
    path = _require_checkpoint("ckpt_path", config.ckpt_path)
    weights = f"start a new run with its weights: weights={path} instead of ckpt_path"
    saved = read(path)
    if not _is_resumable(saved):
        raise UserError(
            f"ckpt_path is {path}, from the middle of an epoch, so a run cannot resume from it. Use the last.ckpt of "
            f"its run, or {weights}."
        )
    _check_limits(config, saved, f"{path} comes after", f", or {weights}", least=1)
    refuse_without_effect(
        read_saved(path.resolve().parent.parent), config, typed_overrides(), path, f"Remove that, or {weights}."
    )


def _check_limits(config: DictConfig, saved: dict[str, Any], what: str, remedy: str, least: int = 0) -> None:
    """Raise UserError if the limits of the trainer leave fewer than ``least`` epochs or steps after the checkpoint."""
    if config.trainer.get("fast_dev_run"):
        raise UserError(
            f"trainer.fast_dev_run is for new runs, but this run continues from a checkpoint. Remove it{remedy}."
        )
    is_within_epoch = WITHIN_EPOCH in saved
    least = max(least, is_within_epoch)  # for the rest of the epoch
    for key, done, count in (("max_epochs", "epoch", 0 if is_within_epoch else 1), ("max_steps", "global_step", 0)):
        limit, trained = config.trainer.get(key), saved[done] + count
        if isinstance(limit, int) and 0 <= limit < trained + least:
            raise UserError(
                f"trainer.{key} is {limit}, but {what} {trained} {key[4:]}, so none are left to train. Increase it, "
                f"for example trainer.{key}={2 * trained}{remedy}."
            )


def _require_checkpoint(key: str, value: object) -> Path:
    """Return the path of an intact checkpoint.

    Raises:
        UserError: If ``value`` is not one.
    """
    path = Path(str(value))
    if not path.is_file():
        what = "a run folder or a checkpoint" if key == "weights" else "a checkpoint"
        found = "this folder is not a run folder" if key == "weights" and path.is_dir() else "there is no such file"
        raise UserError(f"{key} is {value}, but {found}. Pass {what}, such as RUN/checkpoints/best.ckpt.")
    if not is_intact(path):
        raise UserError(f"{key} is {value}, which is damaged. Pass another checkpoint.")
    return path


def _find_weights(config: DictConfig) -> None:
    """Replace ``config.weights``, a run or a checkpoint, by the path of the checkpoint, and save the config.

    They take precedence over pretrained weights that come from the config, such as those of an experiment.

    Raises:
        UserError: If the checkpoint does not exist, or the user has typed pretrained weights, too.
    """
    value, before = str(config.weights), OmegaConf.to_container(config)
    if value == "latest" and is_job_of_multirun():
        raise UserError(
            "weights=latest would refer to a different run in each job of a multirun. Name the run: weights=RUN"
        )
    if value == "latest" or is_run(Path(value)):
        run = find_folder(value, has_checkpoint)
        has_best = any((run / "checkpoints").glob("best*.ckpt"))
        config.weights = str(display_path(find(run, "best" if has_best else "last")))
    if config.model.get("weights"):
        if any(line.startswith("model.weights=") for line in typed_overrides()):
            raise UserError(
                f"weights and model.weights={config.model.weights} both set the initial weights. Remove weights, or "
                "add model.weights=null."
            )
        config.model.weights = None
    save(config, before)


def load_weights(model: "LightningModule", config: DictConfig, checkpoint: str | None) -> "LightningModule":
    """Load the weights of the checkpoint ``config.weights`` into a model.

    Args:
        model: The model, changed in place.
        config: The config of the run. With ``weights_strict=false``, tensors that do not fit keep their initial values
            and are listed in the log.
        checkpoint: The checkpoint that the run continues from, if any. It has its own weights, so none are loaded.

    Returns:
        ``model``.

    Raises:
        UserError: If the checkpoint does not exist, or its weights do not fit.
    """
    if config.weights is None or checkpoint:
        return model
    path = _require_checkpoint("weights", config.weights)
    saved, own = read(path)["state_dict"], model.state_dict()
    fitting = {name: value for name, value in saved.items() if name in own and own[name].shape == value.shape}
    misfits = [
        f"{name}: {_format_shape(own.get(name))} in this network, {_format_shape(saved.get(name))} in the checkpoint"
        for name in own | saved
        if name not in fitting
    ]
    if not misfits:
        model.load_state_dict(saved)
        return model
    listed = "\n".join(misfits[:10]) + (f"\nand {len(misfits) - 10} more" if len(misfits) > 10 else "")
    is_related = any(name in fitting for name, _ in model.named_parameters())
    if config.get("weights_strict", True) or not is_related:
        remedy = "weights_strict=false loads the others." if is_related else "Name a run of the same network."
        raise UserError(f"The weights of {path} do not fit this network. {remedy}\n{listed}")
    model.load_state_dict(fitting, strict=False)
    log.info(f"{len(fitting)} of {len(own)} weights are from {path}; the others keep their initial values:\n{listed}")
    return model


def _format_shape(weight: "Tensor | None") -> str:
    return "none" if weight is None else str(tuple(weight.shape))


def is_intact(checkpoint: Path) -> bool:
    """Return whether a file that torch.save wrote is intact, by the checksums of its zip archive."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False


def find(run: Path, name: str) -> Path:
    """Return the path of ``checkpoints/NAME.ckpt``.

    Args:
        run: The run folder.
        name: The file name without ``.ckpt``. If ``best.ckpt`` does not exist, ``best`` is the file that results.json
            names.

    Raises:
        UserError: If the checkpoint is missing or damaged; the message lists the intact ones.
    """
    if Path(name).name != name:
        raise UserError(
            f"--checkpoint is {name}; it must be the name of a file in {display_path(run) / 'checkpoints'}, "
            "without .ckpt."
        )
    path = run / "checkpoints" / f"{name.removesuffix('.ckpt')}.ckpt"
    if name == "best" and not path.exists():
        best = (read_json(run / "results.json") or {}).get("best_checkpoint") or path.name
        path = path.with_name(Path(best).name)
    if path.exists() and is_intact(path):
        return path
    others = sorted(other.stem for other in path.parent.glob("*.ckpt") if is_intact(other))
    remedy = "The run has no other checkpoint: train first."
    if others:
        remedy = f"Intact checkpoints: {', '.join(others)}. Choose one, for example --checkpoint={others[-1]}"
    raise UserError(
        f"{display_path(run) / 'checkpoints' / path.name} is {'damaged' if path.exists() else 'missing'}. {remedy}"
    )
