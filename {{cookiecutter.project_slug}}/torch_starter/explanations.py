"""Turns what the user can mend into one short message; HYDRA_FULL_ERROR=1 shows the traceback instead."""

import functools
import inspect
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from . import project
from .mistakes import FULL_ERROR, UserError, close_to, first_line, nearest, printable


def explain_errors(main: Callable[..., Any]) -> Callable[..., Any]:
    """Where ``main`` fails by a mistake of the user: a message on standard error, and exit status 1.

    Such are a Mistake, what Hydra and OmegaConf raise, Lightning's MisconfigurationException, files that cannot be read
    or written, and text where the config has a number. Whatever else is raised is a fault of the program and
    keeps its traceback. Ctrl-C and SIGTERM end with exit status 128 + signal, as shells have it.
    """

    @functools.wraps(main)
    def explained_main(*args: Any, **kwargs: Any) -> Any:
        if os.environ.get(FULL_ERROR) == "1":
            return main(*args, **kwargs)
        os.environ[FULL_ERROR] = "1"  # With it Hydra raises what it would otherwise print in its own way.
        if isinstance(sys.stdout, io.TextIOWrapper):  # a name that a console or a file on Windows has no letters for
            sys.stdout.reconfigure(errors="backslashreplace")
        # Figures go to files. What Jupyter and Colab start gets a backend of theirs, which may not be installed.
        os.environ["MPLBACKEND"] = "agg"
        sys.excepthook = _print_traceback
        former = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return main(*args, **kwargs)
        except Exception as error:
            message = explanation(error)
            if message is None:
                raise
            sys.exit(printable(message))
        finally:
            os.environ.pop(FULL_ERROR, None)
            for number, handler in former.items():
                signal.signal(number, handler)

    return explained_main


def _print_traceback(kind: Any, error: Any, trace: Any) -> None:
    sys.stderr.write(printable("".join(traceback.format_exception(kind, error, trace))))


def _stop(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # an impatient second Ctrl-C shall not interrupt what closes the files
    sys.exit(128 + number)


def explanation(error: BaseException) -> str | None:
    """What is wrong, with the value, and what to do; None if the user cannot mend it."""
    cause = error.__cause__
    if isinstance(error, UserError):
        return str(error)
    if surroundings := _surroundings(error):
        return surroundings
    if failure := _worker_failure(error):
        return failure
    if type(error).__name__ == "UnpicklingError":
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f": it refers to {found[1]}" if found else ""
        return f"The checkpoint holds something else than numbers and text{what}. Loading it could run code: refused."
    if isinstance(error, MissingConfigException):
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        if options := error.options or project.groups().get(group):  # Hydra gives none for a list of choices
            return f"{group}={choice}: there is no such choice." + nearest(choice, options)
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.parent_node is not None:
        return _unknown_key(str(cause.full_key), cause.parent_node)
    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        quoted = f"{key}={QuotedString(value, Quote.single).with_quotes()}"
        with suppress(HydraException):
            OverridesParser.create().parse_override(quoted)
            return f'{error.override}: Hydra reads such a value only in quotes. Write "{quoted}"'
    if tracking := _tracking(error):
        return tracking
    if isinstance(error, HydraException) and not isinstance(error, InstantiationException):
        return str(error) or str(cause)

    if isinstance(error, ValueError) and "Config group override must be" in str(error):
        return _no_choice()
    if isinstance(error, ValueError) and "is not in bounds" in str(error):
        return f"seed: {error}"
    # Arguments that Hydra does not understand are not what went wrong here.
    with suppress(HydraException):
        if mistyped := _mistyped_value(error):
            return mistyped
    if isinstance(error, InterpolationKeyError):
        what = str(error).splitlines()[0]
        if "'model." in what:
            return f"{what}: the chosen loss or metrics need what the model does not have. Choose others."
        return f"{what}: the chosen model needs what the chosen data does not have. Choose another data= or model=."
    for misuse in (error, cause):
        # By name, because importing Lightning only to explain a slip would take seconds.
        if type(misuse).__name__ == "MisconfigurationException":
            # From a worker process it comes with the traceback before it.
            message = str(misuse).rpartition("MisconfigurationException: ")[2].rstrip()
            return message + _accelerators(message)
        if type(misuse).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = first_line(misuse)
            return f"The model could not be compiled: {reason}\nmodel.compile=false goes on without."
    if "Error(s) in loading state_dict for" in str(error):
        reasons = [line.strip() for line in str(error).splitlines()[1:]]
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        return f"The checkpoint does not fit the model: {reasons[0]}{more}\nTake the model and the data that it is of."
    if "Early stopping conditioned on metric" in str(error):
        return f"{error}\nSay which: callbacks.early_stopping.monitor=…"
    if "parameters that were not used in producing the loss" in str(error):
        return (
            "A part of the network was not used in a step, and the other processes waited for its gradient. "
            "trainer.strategy.find_unused_parameters=true looks for such parts in each step."
        )
    if misfit := _misfit(error):
        return misfit
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no default. Say it: {error.full_key}=…"
    if isinstance(error, InstantiationException | OmegaConfBaseException | OSError):
        return f"{error}\n{FULL_ERROR}=1 shows the traceback."
    return None


def _surroundings(error: BaseException | None) -> str | None:
    """What an environment variable has to do with an error, or with one that it was made of."""
    if error is None:
        return None
    text = str(error)
    if isinstance(error, ValueError) and "Invalid log settings" in text:
        return f"TORCH_LOGS is {os.environ.get('TORCH_LOGS')}, which torch does not know. To unset it: unset TORCH_LOGS"
    if isinstance(error, RuntimeError) and "in your SLURM bash script" in text:
        return (
            f"SLURM_NTASKS is {os.environ.get('SLURM_NTASKS')} and SLURM_NTASKS_PER_NODE is not set. Give sbatch or "
            "srun --ntasks-per-node; or, for a single process, write SLURM_JOB_NAME=bash before the command."
        )
    return _surroundings(error.__cause__ or error.__context__)


def _tracking(error: BaseException) -> str | None:
    """What to do about a service that tracks runs, and cannot be reached or refuses."""
    package = type(error).__module__.partition(".")[0]
    if package == "mlflow":
        return (
            f"mlflow: {first_line(error)}\nIs there a server at its tracking_uri? logger.mlflow=null trains without. "
            "Nothing that was trained is lost."
        )
    if package == "wandb":
        return (
            f"wandb: {first_line(error)}\nWithout a network, keep the run here for `wandb sync`: WANDB_MODE=offline "
            "before the command; if the key is refused: wandb login --relogin"
        )
    return None


def _worker_failure(error: BaseException) -> str | None:
    """What to do about worker processes that a DataLoader has lost, or that lack memory."""
    text = str(error)
    none = "--num-workers=0" if Path(sys.argv[0]).name == "predict.py" else "data.num_workers=0"
    lost = re.search(r"DataLoader worker \(pid.*?\) (is killed by signal: [\w ]+|exited unexpectedly)", text)
    if "unable to allocate shared memory" in text or (lost and "Bus error" in lost[1]):
        return (
            "Shared memory (/dev/shm), by which worker processes hand on batches, is full. A container gets more when "
            f"it is started, as in docker run --shm-size=8g; or work without such processes: {none}"
        )
    if "Too many open files. Communication with the workers" in text:
        return f"Too many open files, for worker processes. Work without: {none}; or allow more: ulimit -n 65536"
    if "DataLoader worker process" in text and re.search("MemoryError|(annot|can't) allocate memory", text):
        return f"A worker process has run out of memory. Take fewer of them, or none: {none}"
    if isinstance(error, RuntimeError) and lost:
        what = lost[1].replace("is killed", "was killed")
        return f"A worker process {what}, perhaps for want of memory. Take fewer of them, or none: {none}"
    return None


def _no_choice() -> str:
    """What to write instead of GROUP=null."""
    for group, choices in project.groups().items():
        if any(argument.startswith(f"{group}=") for argument in sys.argv[1:]):
            if group == "experiment":
                return "experiment is null unless you choose one: leave it out."
            if group == "logger":
                return "logger takes the name of a choice. No logger at all is ~logger; one fewer is logger.NAME=null"
            if group == "metrics":
                return "metrics takes the names of choices. One fewer is metrics.NAME=null; none is metrics=[]"
            if group == "callbacks":
                return "callbacks takes the name of a choice. One fewer is callbacks.NAME=null; none is ~callbacks"
            null = " none is scheduler=constant." if group == "scheduler" else ""
            return f"A run needs a {group}.{null} Choices: {', '.join(choices)}"
    return "A group takes the name of a choice."


# Arguments of a target that the config sets elsewhere.
ELSEWHERE = {
    "trainer.callbacks": "Callbacks are a group: callbacks=… or +callbacks.NAME._target_=…",
    "trainer.logger": "Loggers are a group: logger=… or ~logger",
    "trainer.enable_checkpointing": "Leave out both: callbacks.best_checkpoint=null callbacks.last_checkpoint=null",
}


def _unknown_key(full_key: str, parent: Any) -> str:
    """Returns what to write instead of a key that the config does not list."""
    if full_key in ELSEWHERE:
        return f"{full_key}: there is no such key. {ELSEWHERE[full_key]}"
    name = full_key.rpartition(".")[2]
    keys = [key for key in map(str, parent) if key != "hydra" and not key.startswith("_")]
    # Importing the target may take seconds, which a typo need not wait for.
    if "_target_" in parent and not close_to(name, keys, cutoff=0.8):
        target = parent["_target_"]
        with suppress(Exception):  # a target that cannot be imported, or has no signature
            if name in inspect.signature(hydra.utils.get_object(target)).parameters:
                return f"{full_key} is not in the config, but {target} takes it: +{full_key}=…"
    return f"{full_key}: there is no such key." + nearest(name, keys)


def _accelerators(message: str) -> str:
    """What trainer.accelerator can be here, for a message about one that is not."""
    if "ccelerator" not in message and "gpu backend" not in message:
        return ""
    import torch

    mps = torch.backends.mps.is_available()
    available = {"auto": True, "cpu": True, "gpu": mps or torch.cuda.is_available(), "mps": mps}
    return f"\nOn this machine trainer.accelerator can be: {', '.join(name for name in available if available[name])}."


# What Lightning and torch call a key where they use it.
WITHIN = {"val_check_batch": "val_check_interval", "total steps": "total_steps", "accelerator_flag": "accelerator"}


def _misfit(error: BaseException) -> str | None:
    """Which override an error in Lightning or torch speaks of: in its text, or in the lines that raised it."""
    error = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
    frames = traceback.extract_tb(error.__traceback__)
    kinds = (ArithmeticError, AssertionError, AttributeError, ImportError, RuntimeError, TypeError, ValueError)
    if not isinstance(error, kinds) or not frames or not re.search(r"[/\\](lightning|torch)[/\\]", frames[-1].filename):
        return None
    where = "\n".join([str(error), *(frame.line or "" for frame in frames[-3:])])
    for theirs, ours in WITHIN.items():
        where = where.replace(theirs, ours)
    with suppress(HydraException):
        for override, default in _typed_values():
            key = override.key_or_group
            group, _, name = key.partition(".")
            is_theirs = group in ("trainer", "optimizer", "scheduler") and name != ""
            if is_theirs and re.search(rf"(\b|_){re.escape(name)}\b", where):
                reason = first_line(error) or f"{type(error).__name__} in {frames[-1].line}"
                message = f"{override.input_line} does not work: {reason}\nThe default is {key}={default}."
                return f"{message}{_accelerators(key)} {FULL_ERROR}=1 shows the traceback."
    return None


def _typed_values() -> list[tuple[Any, Any]]:
    """The overrides on the command line, and what each of them replaces; None if that is nothing."""
    arguments = [argument for argument in sys.argv[1:] if "=" in argument and not argument.startswith("-")]
    if Path(sys.argv[0]).name == "predict.py":
        arguments = []  # there it is a cell of a table: COLUMN=VALUE
    overrides = OverridesParser.create().parse_overrides(arguments)
    # Of a key that was typed twice, the last.
    last = {override.key_or_group: override for override in overrides if not override.is_sweep_override()}
    choices = [override.input_line or "" for key, override in last.items() if project.is_group(key)]
    defaults = project.compose(choices)
    as_text = OmegaConf.to_container(defaults)
    found = []
    for key, override in last.items():
        default: Any = as_text
        for part in key.split("."):
            default = default.get(part) if isinstance(default, dict) else None
        with suppress(OmegaConfBaseException):  # text such as ${run_dir}/checkpoints stays as it is
            value = OmegaConf.select(defaults, key)
            default = default if isinstance(value, str) else value
        found.append((override, default))
    return found


# Words that Lightning takes where a default is a number: of trainer.devices, deterministic and val_check_interval.
WORDS = re.compile(r"auto|warn|\d+(:\d+){3}")
KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", ListConfig: "a list", list: "a list"}


def _mistyped_value(error: BaseException) -> str | None:
    """The first override on the command line that is no number where the config has one.

    Or that is of another kind than its default, where the error speaks of its type, as in "'NoneType' object is not …".
    """
    types = r"'(\w+)'|(?:not|got) (\w+)$"
    named = {word for pair in re.findall(types, f"{error}\n{error.__cause__}", re.MULTILINE) for word in pair}
    for override, default in _typed_values():
        value = override.value()
        kind = next((text for type_, text in KINDS.items() if isinstance(default, type_)), None)
        if isinstance(default, int | float) and WORDS.fullmatch(str(value)):
            continue
        is_text = isinstance(default, int | float) and isinstance(value, str)
        is_named = type(value).__name__ in named and kind != KINDS.get(type(value))
        if kind and (is_text or is_named):
            typed = str(override.input_line).partition("=")[2]
            message = f"{override.input_line}: {typed} is not {kind}. The default is {override.key_or_group}={default}."
            return message if is_text else f"{message} {FULL_ERROR}=1 shows the traceback."
    return None
