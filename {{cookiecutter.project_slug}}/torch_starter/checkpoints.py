"""The checkpoints of a run: which one it starts from, and which one it is asked by."""

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

# In a checkpoint: what callbacks/within_epoch.py adds.
WITHIN_EPOCH = "within_epoch"


def find_start(config: DictConfig) -> str | None:
    """Returns the checkpoint that a run starts from, if any.

    ``ckpt_path=last`` goes on in the run's own folder: from ``last.ckpt`` if it is there and whole, otherwise from
    ``best.ckpt``, otherwise from the beginning. Any other value is a file of another run, from which a new one goes on.

    Raises:
        Mistake: if there is no such file, no checkpoint of the folder is whole, one refers to files elsewhere, or the
            run cannot go on from it.
    """
    if not processes.is_rank_zero():
        return config.ckpt_path
    if config.weights is not None and not has_checkpoint(Path(config.run_dir)):
        _find_weights(config)
    if config.ckpt_path is None:
        return None
    if config.ckpt_path != "last":
        _refuse_start(config)
        return str(config.ckpt_path)
    folder = Path(config.run_dir, "checkpoints")
    there = [path for path in (folder / "last.ckpt", folder / "best.ckpt") if path.exists()]
    for path in there:
        if not is_whole(path):
            log.warning(f"{path} is damaged.")
            continue
        saved = read(path)
        refuse_checkpoint_paths(saved, path)
        if _is_complete(saved):
            _refuse_shorter(config, saved, f"{display_path(folder.parent)} was trained for", "")
            return str(path)
        # That there is no last.ckpt, although it is written after each epoch, says that none has ended.
        if saved["epoch"] == 0 and there == [folder / "best.ckpt"] and config.callbacks.get("last_checkpoint"):
            log.warning(f"No epoch of {display_path(folder.parent)} has ended; it starts from the beginning.")
            return None
        log.warning(f"{path} is from the middle of an epoch, from where a run cannot go on as it was.")
    if there:
        raise UserError(
            f"No checkpoint in {folder} is whole and from the end of an epoch. Delete them to start this run once more "
            "from the beginning."
        )
    return None


def read(path: Path) -> dict[str, Any]:
    """What is in a checkpoint; tensors stay on the disk until they are used.

    Raises:
        UnpicklingError: if it holds something else than numbers and text.
    """
    import torch

    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _is_complete(saved: dict[str, Any]) -> bool:
    """Whether a run can go on as it was: from the end of an epoch, or from within one, where LastCheckpoint wrote."""
    return bool(saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]) or WITHIN_EPOCH in saved


def _refuse_start(config: DictConfig) -> None:
    """Makes sure that a new run can go on from the checkpoint of another one.

    Raises:
        Mistake: if there is no such checkpoint, it leaves nothing to train, or the config contradicts it.
    """
    if config.weights is not None:
        raise UserError("ckpt_path and weights are both set, and a run starts from one of them. Leave out the other.")
    path = _existing("ckpt_path", config.ckpt_path)
    weights = f"begin anew with its weights: weights={path} instead of ckpt_path"
    saved = read(path)
    if not _is_complete(saved):
        raise UserError(
            f"ckpt_path is {path}, from the middle of an epoch, from where a run cannot go on as it was. Take its "
            f"last.ckpt, or {weights}."
        )
    _refuse_shorter(config, saved, f"{path} comes after", f", or {weights}", least=1)
    refuse_without_effect(
        read_saved(path.resolve().parent.parent), config, typed_overrides(), path, f"Leave that out, or {weights}."
    )


def _refuse_shorter(config: DictConfig, saved: dict[str, Any], what: str, remedy: str, least: int = 0) -> None:
    """Raises Mistake if the limits of the trainer leave fewer than ``least`` epochs or steps after the checkpoint."""
    if config.trainer.get("fast_dev_run"):
        raise UserError(f"trainer.fast_dev_run tries out a new run, and this one goes on from a checkpoint{remedy}.")
    is_within_epoch = WITHIN_EPOCH in saved
    least = max(least, is_within_epoch)  # for the rest of the epoch
    for key, done, count in (("max_epochs", "epoch", 0 if is_within_epoch else 1), ("max_steps", "global_step", 0)):
        limit, trained = config.trainer.get(key), saved[done] + count
        if isinstance(limit, int) and 0 <= limit < trained + least:
            raise UserError(
                f"trainer.{key} is {limit}, but {what} {trained} {key[4:]}, which leaves none to train. Take more, as "
                f"in trainer.{key}={2 * trained}{remedy}."
            )


def _existing(key: str, value: object) -> Path:
    """The path of a whole checkpoint.

    Raises:
        Mistake: if there is none at ``value``.
    """
    path = Path(str(value))
    if not path.is_file():
        what = "a run folder or a checkpoint" if key == "weights" else "a checkpoint"
        found = "this folder is no run" if key == "weights" and path.is_dir() else "there is no such file"
        raise UserError(f"{key} is {value}: {found}. Name {what}, such as RUN/checkpoints/best.ckpt.")
    if not is_whole(path):
        raise UserError(f"{key} is {value}, which is damaged. Name another checkpoint.")
    return path


def _find_weights(config: DictConfig) -> None:
    """Replaces ``config.weights``, a run or a checkpoint, by the path of the checkpoint, which the run folder keeps.

    They win over pretrained weights that nobody typed, such as those of an experiment.

    Raises:
        Mistake: if there is no such checkpoint, or the user has typed pretrained weights, too.
    """
    value, before = str(config.weights), OmegaConf.to_container(config)
    if value == "latest" and is_job_of_multirun():
        raise UserError("weights=latest would be another run for each job of a multirun. Name the run: weights=RUN")
    if value == "latest" or is_run(Path(value)):
        run = find_folder(value, has_checkpoint)
        has_best = any((run / "checkpoints").glob("best*.ckpt"))
        config.weights = str(display_path(find(run, "best" if has_best else "last")))
    if config.model.get("weights"):
        if any(line.startswith("model.weights=") for line in typed_overrides()):
            raise UserError(
                f"weights and model.weights={config.model.weights} both say what the network starts from. Leave out "
                "the former, or add model.weights=null."
            )
        config.model.weights = None
    save(config, before)


def load_weights(model: "LightningModule", config: DictConfig, checkpoint: str | None) -> "LightningModule":
    """Returns a model with the weights of ``config.weights``, a checkpoint.

    As it is without one, or if the run goes on from ``checkpoint``, which has its own. With ``weights_strict=false`` it
    says which tensors do not fit, which stay as initialized.

    Raises:
        Mistake: if there is no such checkpoint, or its weights do not fit.
    """
    if config.weights is None or checkpoint:
        return model
    path = _existing("weights", config.weights)
    saved, own = read(path)["state_dict"], model.state_dict()
    fitting = {name: value for name, value in saved.items() if name in own and own[name].shape == value.shape}
    misfits = [
        f"{name}: {_shape(own.get(name))} here, {_shape(saved.get(name))} there"
        for name in own | saved
        if name not in fitting
    ]
    if not misfits:
        model.load_state_dict(saved)
        return model
    listed = "\n".join(misfits[:10]) + (f"\nand {len(misfits) - 10} more" if len(misfits) > 10 else "")
    is_akin = any(name in fitting for name, _ in model.named_parameters())
    if config.get("weights_strict", True) or not is_akin:
        remedy = "weights_strict=false takes the others." if is_akin else "Name a run of such a network."
        raise UserError(f"The weights of {path} do not fit this network. {remedy}\n{listed}")
    model.load_state_dict(fitting, strict=False)
    log.info(f"{len(fitting)} of {len(own)} weights are from {path}; the others are as initialized:\n{listed}")
    return model


def _shape(weight: "Tensor | None") -> str:
    return "none" if weight is None else str(tuple(weight.shape))


def is_whole(checkpoint: Path) -> bool:
    """Whether all of a file that torch.save wrote is there, by the checksums of the zip archive that it is."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False


def find(run: Path, name: str) -> Path:
    """Path of ``checkpoints/NAME.ckpt``; ``best`` is the one that results.json names if it has another file name.

    Raises:
        Mistake: if it is not there or damaged; it says which are whole.
    """
    if Path(name).name != name:
        raise UserError(
            f"--checkpoint {name}: write the name of a file in {display_path(run) / 'checkpoints'}, without .ckpt."
        )
    path = run / "checkpoints" / f"{name.removesuffix('.ckpt')}.ckpt"
    if name == "best" and not path.exists():
        best = (read_json(run / "results.json") or {}).get("best_checkpoint") or path.name
        path = path.with_name(Path(best).name)
    if path.exists() and is_whole(path):
        return path
    others = sorted(other.stem for other in path.parent.glob("*.ckpt") if is_whole(other))
    remedy = "There is no other: train first."
    if others:
        remedy = f"Whole ones: {', '.join(others)}; choose by --checkpoint, as in --checkpoint={others[-1]}"
    raise UserError(
        f"{display_path(run) / 'checkpoints' / path.name} is {'damaged' if path.exists() else 'not there'}. {remedy}"
    )
