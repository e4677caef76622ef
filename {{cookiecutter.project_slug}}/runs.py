"""A run folder: what a run leaves in it, and how to find it, read it and go on with it.

outputs/EXPERIMENT/DATE_TIME/
├── .hydra/                  the composed config, completed by what only the data know, and the overrides
├── checkpoints/best.ckpt    best by the monitored validation metric
├── checkpoints/last.ckpt    after the last epoch that ended
├── events.out.tfevents.*    TensorBoard
├── figures/*.png            the pictures of the run, the same that TensorBoard shows
├── hparams.yaml             what TensorBoard's HPARAMS shows
├── results.json             final metrics by name, best checkpoint, epochs, wall time; there once the run is finished
├── environment.json         for each start: command, git commit, versions, device
├── split.csv                of a folder of pictures: which is in which split
├── error.txt                of a run of a multirun or a sweep that failed: why
├── train.log
└── .lock                    held by the process that trains; .lock.json says which one it is
"""

import contextlib
import functools
import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

import processes
from compat import REPLACE, VERSION_BASE, instantiate_only_targets_of
from errors import IS_FULL, Mistake, explanation, printable
from trust import (
    refuse_checkpoint_paths,
    refuse_control_characters,
    refuse_links,
    refuse_paths_outside,
    refuse_resolvers,
    refuse_untrusted_targets,
)

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from lightning import Trainer

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent
CONFIGS = str(ROOT / "configs")
# How a run is asked, whatever it was trained on.
ALONE = ("++trainer.accelerator=auto", "++trainer.devices=1", "++trainer.num_nodes=1", "++trainer.strategy=auto")


# Starting and ending a run


def run_name(choices: DictConfig, overrides: ListConfig) -> str:
    """Returns the name of a run's folder: its experiment or, without one, its data and its model.

    Args:
        choices: the chosen file of each group.
        overrides: those of the command line. Those of a multirun may give several choices to a group.
    """
    given = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    experiment, data, model = (given.get(group) or choices.get(group) for group in ("experiment", "data", "model"))
    # Not linear_linear_regression.
    name = experiment or (model if str(model).startswith(str(data)) else f"{data}_{model}")
    return re.sub(r"[^\w.+-]+", "-", name.replace(",", "+")).strip("-")


# The cache gives the jobs of a multirun the name of the multirun.
OmegaConf.register_new_resolver("run_name", run_name, replace=True, use_cache=True)


def is_finished(config: DictConfig) -> bool:
    """Whether the run that ``config`` would go on with has ended, and was started with the same overrides."""
    results = _read_json(Path(config.run_dir, "results.json"))
    return config.ckpt_path == "last" and bool(results) and results["overrides"] == read_overrides(Path(config.run_dir))


@functools.cache
def lock_of(folder: Path) -> "BaseFileLock":
    """The lock of a run folder, an absolute path; in a process always the same one, which it can take repeatedly."""
    from filelock import FileLock

    return FileLock(folder / ".lock")


@contextlib.contextmanager
def locked(run_dir: str | Path) -> Iterator[None]:
    """Keeps other processes from training in a run folder. The system takes the lock from a process that dies.

    Raises:
        Mistake: if another process trains in it; it says which one.
    """
    if not processes.is_first():
        yield
        return
    from filelock import Timeout

    folder = Path(run_dir).resolve()
    holder, is_held = folder / ".lock.json", True
    folder.mkdir(parents=True, exist_ok=True)
    try:
        try:
            lock_of(folder).acquire(timeout=0)
        except Timeout:
            if not _is_dead(_read_holder(holder)):
                raise
            lock_of(folder).acquire(timeout=15)  # until the workers notice that load data for it, and inherit the lock
    except Timeout:
        by = _read_holder(holder)
        who = f"process {by['pid']} on {by['host']}, since {by['since']}" if by else "another process"
        raise Mistake(f"{shown(folder)} is being trained by {who}. Wait for it, or stop it first.") from None
    except (OSError, NotImplementedError) as error:
        is_held = False
        _warn_once(f"{folder} cannot be locked ({error}): do not train in it twice at once.")
    try:
        if is_held:
            since = datetime.now().astimezone().isoformat(timespec="seconds")
            write_json(holder, {"pid": os.getpid(), "host": platform.node(), "since": since})
        yield
    finally:
        if is_held:
            holder.unlink(missing_ok=True)
            lock_of(folder).release()


def _read_holder(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        return _read_json(path)
    return None


def _is_dead(holder: dict[str, Any] | None) -> bool:
    """Whether the process was on this machine, and is no longer."""
    if holder is None or holder["host"] != platform.node():
        return False
    if sys.platform == "win32":  # where no signal asks without ending
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


@functools.cache
def _warn_once(message: str) -> None:
    log.warning(message)


class RunLock(Callback):
    """Takes the lock of a run before Hydra writes into its folder. Hydra calls it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.stack = contextlib.ExitStack()
        try:
            self.stack.enter_context(locked(config.hydra.run.dir))
        except Mistake as error:
            sys.exit(str(error))  # Hydra would make a warning of it

    def on_job_end(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.mode == RunMode.RUN:
            self.stack.close()


def claim(config: DictConfig) -> str | None:
    """Makes sure that a new run does not overwrite another; returns the checkpoint to start from, if any.

    ``ckpt_path=last`` goes on in the run's own folder: from ``last.ckpt`` if it is there and whole, otherwise from
    ``best.ckpt``, otherwise from the beginning.

    Raises:
        Mistake: if the folder holds checkpoints and the run does not go on from them, or all of them are damaged, or
            one refers to files elsewhere.
    """
    folder = Path(config.run_dir, "checkpoints")
    if config.ckpt_path not in (None, "last"):
        return str(config.ckpt_path)
    there = [path for path in (folder / "last.ckpt", folder / "best.ckpt") if path.exists()]
    if config.ckpt_path is None:
        if there:
            raise Mistake(
                f"{config.run_dir} holds the checkpoints of a run: choose another hydra.run.dir, "
                "or go on with that run by ckpt_path=last."
            )
        return None
    for path in there:
        if is_whole(path):
            refuse_checkpoint_paths(str(path))
            return str(path)
        log.warning(f"{path} is damaged.")
    if there:
        raise Mistake(
            f"No checkpoint in {folder} is whole. Delete them to start this run once more from the beginning."
        )
    return None


def entries(config: DictConfig, group: str) -> list[Any]:
    """Instantiates what a group of callbacks or loggers holds, one per name; null leaves one out.

    Raises:
        Mistake: if the file of the group has no names in it.
    """
    if "_target_" in config[group]:
        raise Mistake(
            f"{group}._target_ is {config[group]._target_}: each entry of {group} has a name. Put a line such as "
            "`mine:` above it in its file, and indent the rest."
        )
    nameless = [name for name, entry in config[group].items() if entry and "_target_" not in entry]
    for name in nameless:
        log.warning(
            f"{group}.{name} has no _target_ and is left out. If your file in configs/{group} is to add to the default "
            "one, begin it with:\ndefaults: [default]"
        )
    return [hydra.utils.instantiate(entry) for name, entry in config[group].items() if entry and name not in nameless]


def complete(config: DictConfig, data: Any) -> None:
    """Fills in what only the data know, such as the number of classes; the config of the model refers to it.

    The run folder keeps it, so that whoever reads the run later needs no data.

    Args:
        config: of the run; changed in place.
        data: made from ``config.data``. Its ``facts()``, if it has that, are values for keys of ``config.data``.
    """
    if not hasattr(data, "facts"):
        return
    before = OmegaConf.to_yaml(config)
    for key, value in data.facts().items():
        OmegaConf.update(config, f"data.{key}", value)
    path, completed = Path(config.run_dir, ".hydra/config.yaml"), OmegaConf.to_yaml(config)
    if path.exists() and completed != before:
        write_text(path, completed)


def is_whole(checkpoint: Path) -> bool:
    """Whether all of a file that torch.save wrote is there, by the checksums of the zip archive that it is."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False


def record_environment(run_dir: str, trainer: "Trainer") -> None:
    """Adds to environment.json what this start of the run depends on."""
    if not processes.is_first():
        return
    import torch

    device = trainer.strategy.root_device
    start = {
        "command": shlex.join(["python", *sys.argv]),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git": _git(),
        "python": platform.python_version(),
        "packages": dict(sorted(_packages())),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": trainer.num_devices * trainer.num_nodes,
        "cpu_cores": os.cpu_count(),
        "platform": platform.platform(),
        "host": platform.node(),
    }
    path = Path(run_dir, "environment.json")
    write_json(path, [*(_read_json(path) or []), start])


def _packages() -> Iterator[tuple[str, str]]:
    """Names and versions of all that is installed."""
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata  # read from its file each time that it is asked for
        yield metadata["Name"], metadata["Version"]


def _git() -> dict[str, Any] | None:
    """Commit of the project, and what is not committed; None if it is in no repository, or git is not there."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace").stdout

    try:
        git("ls-files", "--error-unmatch", "train.py")  # or it only lies within the repository of something else
        commit, status = git("rev-parse", "HEAD").strip(), git("status", "--porcelain")
        return {"commit": commit, "dirty": bool(status), "status": status, "diff": git("diff", "HEAD")}
    except (OSError, subprocess.CalledProcessError):
        return None


def save_results(run_dir: str, trainer: "Trainer", metrics: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Writes results.json, and returns what is in it.

    Args:
        run_dir: the run folder.
        trainer: after fit and test.
        metrics: numbers or tensors of one element, by name.
        seconds: wall time since the run was started or resumed.
    """
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    results = {
        "metrics": {name: float(value) for name, value in sorted(metrics.items())},
        # Relative to the run folder, which may be moved.
        "best_checkpoint": Path(os.path.relpath(best, run_dir)).as_posix() if best else None,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "seconds": round(seconds, 1),
        "overrides": read_overrides(Path(run_dir)),
    }
    write_json(Path(run_dir, "results.json"), results)
    Path(run_dir, "error.txt").unlink(missing_ok=True)  # of an earlier start
    return results


def report(run_dir: str, results: dict[str, Any]) -> str:
    """The lines that end a run: its test metrics, its folder, and what to type next."""
    folder = shown(run_dir)
    # The folder that all runs are in, unless the run is elsewhere or right here.
    log_dir = folder if folder.is_absolute() or not folder.parts else folder.parts[0]
    tests = {name: f"{value:.4f}" for name, value in results["metrics"].items() if name.startswith("test/")}
    lines = {
        **tests,
        "epochs": results["epochs"],
        "seconds": results["seconds"],
        "run folder": folder,
        **({"pictures": folder / "figures"} if Path(run_dir, "figures").exists() else {}),
        "look at it": f"tensorboard --logdir {log_dir}",
        "predict": "python predict.py latest INPUT…",
        "vary it": "python train.py --help",
    }
    return "\n".join(f"{name:<15} {value}" for name, value in lines.items())


def shown(folder: str | Path) -> Path:
    """A folder as somebody would type it: relative where it is beneath the current one."""
    folder = Path(folder).resolve()
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is there whole or, if the process is killed before, as it was."""
    write_text(path, to_json(value) + "\n")


def to_json(value: Any) -> str:
    """JSON, which has no NaN and no infinity: they become null."""
    return json.dumps(_with_null(value), indent=2, allow_nan=False)


def _with_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_null(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_with_null(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


# Finding and reading a run


def find(words: Sequence[str]) -> tuple[Path, list[str]]:
    """The run folder that ``words`` begin with, or the latest one; and the rest of the words.

    The latest run is the one beneath ``outputs`` that was started or resumed last.

    Raises:
        Mistake: if there is no such run, or something in it leads out of it.
    """
    if words and Path(words[0], ".hydra/config.yaml").exists():
        return _checked(Path(words[0])), list(words[1:])
    logs = []
    for folder, folders, files in os.walk("outputs"):
        if ".hydra" in folders and "train.log" in files:
            logs.append(Path(folder, "train.log"))
            # No run is in them, and of thousands of runs they are most of what there is to walk through.
            folders[:] = [name for name in folders if name not in (".hydra", "checkpoints", "figures")]
    rest = list(words[1:] if words and words[0] == "latest" else words)
    for log_file in sorted(logs, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if (log_file.parent / ".hydra/config.yaml").exists():
            return _checked(log_file.parent), rest
    raise Mistake(f"There is no run in {Path('outputs').resolve()}. Make one: python train.py")


def _checked(folder: Path) -> Path:
    """Returns the absolute path of a run folder that nothing leads out of, see ``refuse_links``."""
    refuse_links(folder)
    return folder.resolve()


def find_with_overrides(words: Sequence[str]) -> tuple[Path, list[str]]:
    """As ``find``, where nothing but overrides may follow.

    Raises:
        Mistake: if a word is neither a run folder in the first place nor ``key=value``.
    """
    run, overrides = find(words)
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            raise Mistake(
                f"{word} is no run folder: there is no {Path(word, '.hydra/config.yaml')}.\nLatest: {shown(run)}"
            )
    return run, overrides


def choose_checkpoint(run: Path, name: str) -> str:
    """Path of ``checkpoints/NAME.ckpt``; ``best`` is the one that results.json names if it has another file name.

    Raises:
        Mistake: if it is not there or damaged; it says which are whole.
    """
    if Path(name).name != name:
        raise Mistake(f"--checkpoint {name}: write the name of a file in {shown(run) / 'checkpoints'}, without .ckpt.")
    path = run / "checkpoints" / f"{name.removesuffix('.ckpt')}.ckpt"
    if name == "best" and not path.exists():
        best = (_read_json(run / "results.json") or {}).get("best_checkpoint") or path.name
        path = path.with_name(Path(best).name)
    if path.exists() and is_whole(path):
        return str(path)
    others = sorted(other.stem for other in path.parent.glob("*.ckpt") if is_whole(other))
    remedy = "There is no other: train first."
    if others:
        remedy = f"Whole ones: {', '.join(others)}; choose by --checkpoint, as in --checkpoint={others[-1]}"
    raise Mistake(
        f"{shown(run) / 'checkpoints' / path.name} is {'damaged' if path.exists() else 'not there'}. {remedy}"
    )


def read_overrides(run: Path) -> list[str]:
    """The overrides that a run was started with and, if it was resumed with more, those too; without ckpt_path."""
    path = run / ".hydra/overrides.yaml"
    lines = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    return [line for line in lines or [] if not line.startswith("ckpt_path=")]


def read_config(run: Path, overrides: Sequence[str] = (), is_trained: bool = True) -> DictConfig:
    """The config of a run with some changes, once it is known that nothing in it can run code or lead elsewhere.

    The folder may come from somebody else, may have been moved, and may be older than a key that the configs
    have today: such a key gets the value that ``train.py`` would give it.

    Args:
        run: a run folder.
        overrides: ``key=value`` in Hydra's grammar.
        is_trained: whether its callbacks and loggers are instantiated.

    Raises:
        Mistake: if the config cannot be read, or trust.py refuses something in it.
        ConfigCompositionException: if an override is none, or its key does not exist.
    """
    try:
        saved: Any = OmegaConf.to_container(OmegaConf.load(run / ".hydra/config.yaml"))
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise Mistake(f"{run / '.hydra/config.yaml'} cannot be read: {error}") from error
    # The only key that asks Hydra where it is, and a folder may have been moved.
    saved["run_dir"] = str(run)
    for key in ("defaults", "hydra"):
        saved.pop(key, None)  # Hydra never writes these there; it would act on them.
    refuse_control_characters(saved, f"{run / '.hydra/config.yaml'}")
    refuse_control_characters(read_overrides(run), f"{run / '.hydra/overrides.yaml'}")
    config = _with_new_keys(saved, _config_of_today(run))

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in parsed:
        if override.key_or_group.startswith(("optimizer.", "scheduler.")):
            raise Mistake(
                f"{override.input_line}: a checkpoint holds the state of optimizer and scheduler, so it would have no "
                f"effect. Start another run: python train.py {override.input_line}"
            )
        if Path(CONFIGS, override.key_or_group).is_dir():
            raise Mistake(
                f"{override.input_line}: a run keeps the choices that it was started with. Change a key, "
                f"as in trainer.max_epochs=20, or start another: python train.py {override.input_line}"
            )
    if not is_trained:
        config["logger"] = {}  # so that a run with any logger can be asked
    typed = {override.key_or_group for override in parsed}
    refuse_resolvers(config, typed)
    ConfigStore.instance().store("run", config, **REPLACE)
    with hydra.initialize(config_path=None, **VERSION_BASE):
        composed = hydra.compose("run", list(overrides))
    if isinstance(composed.trainer, DictConfig) and composed.trainer.get("default_root_dir") is None:
        # Lightning would write to the current folder.
        OmegaConf.update(composed, "trainer.default_root_dir", str(run), force_add=True)
    resolved = OmegaConf.to_container(composed, resolve=True)
    refuse_untrusted_targets(resolved)
    refuse_paths_outside(resolved, run, typed, ("callbacks", "logger", "trainer") if is_trained else ("trainer",))
    return composed


def _config_of_today(run: Path) -> Any:
    """What ``train.py`` would compose today from the overrides of a run, unresolved."""
    # Hydra's own keys, whatever stands before them, could name a package to import for its configs.
    lines = read_overrides(run)
    overrides = [line for line in lines if "${" not in line and "hydra" not in line.partition("=")[0]]
    with hydra.initialize_config_dir(CONFIGS, **VERSION_BASE):
        try:
            config = hydra.compose("train", overrides)
        except (HydraException, ValueError):  # a choice or a key that is gone since
            return {}
    return OmegaConf.to_container(config)


def _with_new_keys(saved: Any, today: Any) -> Any:
    """``saved``, and what only ``today`` has, where both configure the same target."""
    if not (isinstance(saved, dict) and isinstance(today, dict)) or saved.get("_target_") != today.get("_target_"):
        return saved
    return today | {key: _with_new_keys(value, today.get(key)) for key, value in saved.items()}


# Asking a run


def load(run: Path, checkpoint: str, overrides: Sequence[str]) -> tuple[DictConfig, Any, Any, "Trainer", str]:
    """What ``evaluate.py``, ``predict.py`` and ``export.py`` need of a run.

    Args:
        run: a run folder; of a run on any accelerator, also one that is not here.
        checkpoint: ``best`` or ``last``.
        overrides: as in ``read_config``.

    Returns:
        config, data module, model (with the weights that it starts from), a trainer that leaves no trace, and the
        path of the checkpoint.

    Raises:
        Mistake: see ``read_config`` and ``choose_checkpoint``.
    """
    processes.leave_others()
    config = read_config(run, [*ALONE, *overrides], is_trained=False)
    path = choose_checkpoint(run, checkpoint)
    if "compile" in config.model:
        config.model.compile = False  # it takes a minute, which one pass over the data does not repay
    # As configs/train.yaml has it: what Lightning says about itself.
    for name in ("utilities.rank_zero", "accelerators.cuda"):
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.WARNING)
    with instantiate_only_targets_of(config):
        data = hydra.utils.instantiate(config.data, _convert_="all")
        model = hydra.utils.instantiate(config.model, _convert_="all")
        trainer = hydra.utils.instantiate(config.trainer, logger=False, enable_checkpointing=False)
        if known_batches := config.callbacks.get("known_batches"):
            trainer.callbacks.append(hydra.utils.instantiate(known_batches))
    return config, data, model, trainer, path


# Going on


def log_to(run: Path) -> None:
    """Sends the log where ``train.py`` sends it: to the console, and to the train.log of the run."""
    with hydra.initialize_config_dir(CONFIGS, **VERSION_BASE):
        config = hydra.compose("train", return_hydra_config=True)
    config.hydra.runtime.output_dir = str(run)
    config.hydra.job.name = "train"
    configure_log(config.hydra.job_logging)


@contextlib.contextmanager
def keep_changes(run: Path, config: DictConfig, overrides: Sequence[str]) -> Iterator[None]:
    """Writes a changed config into the run folder; takes it back if no epoch was trained with it."""
    names = (".hydra/config.yaml", ".hydra/overrides.yaml")
    before = {run / name: (run / name).read_text(encoding="utf-8") for name in names if (run / name).exists()}
    last = run / "checkpoints/last.ckpt"
    stamp = last.stat().st_mtime_ns if last.exists() else None
    results = (run / "results.json").read_bytes() if (run / "results.json").exists() else None
    if overrides:
        changed = {line.partition("=")[0].lstrip("+~") for line in overrides}
        kept = [line for line in read_overrides(run) if line.partition("=")[0].lstrip("+~") not in changed]
        write_text(run / names[0], OmegaConf.to_yaml(config))
        write_text(run / names[1], yaml.safe_dump([*kept, *overrides]))
    try:
        yield
    finally:
        after = last.stat().st_mtime_ns if last.exists() else None
        finished = (run / "results.json").read_bytes() if (run / "results.json").exists() else None
        if overrides and after == stamp and finished == results:
            for path, text in before.items():
                write_text(path, text)


# Many runs


class MultirunTable(Callback):
    """Ends `python train.py -m …` with its runs and their test metrics, best first. Hydra calls it.

    A run that fails leaves its error in its folder, in error.txt, and does not keep the others from running; the
    exit status is then 1.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._refuse_links(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._refuse_links(config.hydra.sweep.dir)

    def _refuse_links(self, folder: str) -> None:
        """Looks at a folder before Hydra writes into it. Hydra turns an exception of a callback into a warning."""
        try:
            refuse_links(Path(folder))
        except Mistake as mistake:
            sys.exit(printable(str(mistake)))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if job_return.status != JobStatus.FAILED:
            return
        error = job_return._return_value
        message = explanation(error)
        if config.hydra.mode != RunMode.MULTIRUN:
            if message and not IS_FULL:
                sys.exit(message)  # Hydra would print a line of its own before it.
            return
        short = message or f"{type(error).__name__}: {error}"
        log.error(short, exc_info=None if message else error)
        write_text(Path(config.hydra.runtime.output_dir, "error.txt"), short + "\n")
        # Hydra would raise it after the last run, instead of calling on_multirun_end.
        job_return.status, job_return.return_value = JobStatus.COMPLETED, None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        import rich
        import rich.box
        import rich.markup
        import rich.table

        folders = sorted(path.parent for path in Path(config.hydra.sweep.dir).glob("*/train.log"))
        overrides = {run: set(read_overrides(run)) for run in folders}
        shared = set.intersection(*overrides.values())
        metrics: dict[Path, dict[str, float]] = {}
        errors: dict[Path, str] = {}
        for run in folders:
            if results := _read_json(run / "results.json"):
                metrics[run] = {
                    name: math.nan if value is None else value  # JSON has no NaN
                    for name, value in results["metrics"].items()
                    if name.startswith("test/")
                }
            elif (run / "error.txt").exists():
                errors[run] = (run / "error.txt").read_text(encoding="utf-8", errors="replace").strip()
        names = sorted({name for values in metrics.values() for name in values})

        def rank(run: Path) -> tuple[bool, float]:
            """Accuracy comes before loss in the alphabet, and more of it is better; what is no number comes last."""
            value = metrics.get(run, {}).get(names[0], math.nan) if names else math.nan
            return math.isnan(value), value if names and "loss" in names[0] else -value

        header = ["run", "overrides", *map(printable, names), *(["failed"] if errors else [])]
        table = rich.table.Table(*header, box=rich.box.SIMPLE)
        for run in sorted(folders, key=rank):
            values = [f"{metrics[run][name]:.4f}" if name in metrics.get(run, {}) else "" for name in names]
            cells = [run.name, " ".join(sorted(overrides[run] - shared)), *values, errors.get(run, "")]
            # Rich would take the brackets of `logger=[csv]` for a style.
            table.add_row(*(rich.markup.escape(printable(cell)) for cell in cells[: len(table.columns)]))
        rich.print(table)
        print(f"run folders  {config.hydra.sweep.dir}")
        if errors:
            sys.exit(f"{len(errors)} of {len(folders)} runs failed.")
