"""Turn errors that the user can fix into one short message; HYDRA_FULL_ERROR=1 shows the traceback instead."""

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
    """Decorate ``main`` to print user errors as a message on standard error, with exit status 1.

    User errors are UserError, errors of Hydra and OmegaConf, Lightning's MisconfigurationException, files that cannot
    be read or written, and text where the config has a number. Any other exception is a bug and keeps its traceback.
    Ctrl-C and SIGTERM exit with status 128 + signal, as in a shell.
    """

    @functools.wraps(main)
    def explained_main(*args: Any, **kwargs: Any) -> Any:
        if os.environ.get(FULL_ERROR) == "1":
            return main(*args, **kwargs)
        os.environ[FULL_ERROR] = "1"  # Makes Hydra raise errors instead of printing them.
        if isinstance(sys.stdout, io.TextIOWrapper):  # Windows consoles cannot encode all names
            sys.stdout.reconfigure(errors="backslashreplace")
        # Figures go to files. Jupyter and Colab set backends of their own, which may not be installed.
        os.environ["MPLBACKEND"] = "agg"
        sys.excepthook = _print_traceback
        previous = {number: signal.signal(number, _exit_on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return main(*args, **kwargs)
        except Exception as error:
            message = explanation(error)
            if message is None:
                raise
            sys.exit(printable(message))
        finally:
            os.environ.pop(FULL_ERROR, None)
            for number, handler in previous.items():
                signal.signal(number, handler)

    return explained_main


def _print_traceback(kind: Any, error: Any, trace: Any) -> None:
    sys.stderr.write(printable("".join(traceback.format_exception(kind, error, trace))))


def _exit_on_signal(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the cleanup
    sys.exit(128 + number)


def explanation(error: BaseException) -> str | None:
    """Return what is wrong, with the value, and what to do; None if the error is not one that the user can fix."""
    cause = error.__cause__
    if isinstance(error, UserError):
        return str(error)
    if environment := _explain_environment(error):
        return environment
    if failure := _explain_worker_failure(error):
        return failure
    if type(error).__name__ == "UnpicklingError":
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f": it refers to {found[1]}" if found else ""
        return f"The checkpoint contains more than numbers and text{what}. Loading was refused: it could run code."
    if isinstance(error, MissingConfigException):
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        if options := error.options or project.groups().get(group):  # Hydra gives none for a list of choices
            return f"{group}={choice}: there is no such choice." + nearest(choice, options)
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.parent_node is not None:
        return _explain_unknown_key(str(cause.full_key), cause.parent_node)
    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        quoted = f"{key}={QuotedString(value, Quote.single).with_quotes()}"
        with suppress(HydraException):
            OverridesParser.create().parse_override(quoted)
            return f'{error.override}: Hydra reads this value only in quotes. Write "{quoted}"'
    if tracking := _explain_tracking(error):
        return tracking
    if isinstance(error, HydraException) and not isinstance(error, InstantiationException):
        return str(error) or str(cause)

    if isinstance(error, ValueError) and "Config group override must be" in str(error):
        return _explain_invalid_choice()
    if isinstance(error, ValueError) and "is not in bounds" in str(error):
        return f"seed: {error}"
    # Ignore arguments that Hydra cannot parse; they did not cause this error.
    with suppress(HydraException):
        if mistyped := _explain_wrong_type(error):
            return mistyped
    if isinstance(error, InterpolationKeyError):
        reason = str(error).splitlines()[0]
        if "'model." in reason:
            return f"{reason}: the chosen loss or metrics need a value that the model lacks. Choose others."
        return f"{reason}: the chosen model needs a value that the data lacks. Choose another data= or model=."
    for misuse in (error, cause):
        # Compared by name, because importing Lightning takes seconds.
        if type(misuse).__name__ == "MisconfigurationException":
            # In a worker process, a traceback precedes the message.
            message = str(misuse).rpartition("MisconfigurationException: ")[2].rstrip()
            return message + _available_accelerators(message)
        if type(misuse).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = first_line(misuse)
            return f"The model could not be compiled: {reason}\nTo train without compiling: model.compile=false"
    if "Error(s) in loading state_dict for" in str(error):
        reasons = [line.strip() for line in str(error).splitlines()[1:]]
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        return f"The checkpoint does not fit the model: {reasons[0]}{more}\nUse the model and the data of its run."
    if "Early stopping conditioned on metric" in str(error):
        return f"{error}\nSet the metric: callbacks.early_stopping.monitor=…"
    if "parameters that were not used in producing the loss" in str(error):
        return (
            "A part of the network was not used in a step, and the other ranks waited for its gradient. To detect such "
            "parts in each step: trainer.strategy.find_unused_parameters=true"
        )
    if invalid := _explain_invalid_value(error):
        return invalid
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no default. Set it: {error.full_key}=…"
    if isinstance(error, InstantiationException | OmegaConfBaseException | OSError):
        return f"{error}\n{FULL_ERROR}=1 shows the traceback."
    return None


def _explain_environment(error: BaseException | None) -> str | None:
    """Explain an error, or one of its causes, that comes from an environment variable."""
    if error is None:
        return None
    text = str(error)
    if isinstance(error, ValueError) and "Invalid log settings" in text:
        return f"TORCH_LOGS is {os.environ.get('TORCH_LOGS')}, which is invalid. To unset it: unset TORCH_LOGS"
    if isinstance(error, RuntimeError) and "in your SLURM bash script" in text:
        return (
            f"SLURM_NTASKS is {os.environ.get('SLURM_NTASKS')} but SLURM_NTASKS_PER_NODE is not set. Pass "
            "--ntasks-per-node to sbatch or srun. For a single process, put SLURM_JOB_NAME=bash before the command."
        )
    return _explain_environment(error.__cause__ or error.__context__)


def _explain_tracking(error: BaseException) -> str | None:
    """Explain that a tracking service cannot be reached or refuses the connection."""
    package = type(error).__module__.partition(".")[0]
    if package == "mlflow":
        return (
            f"mlflow: {first_line(error)}\nCheck that a server runs at its tracking_uri, or train without it: "
            "logger.mlflow=null. No training progress is lost."
        )
    if package == "wandb":
        return (
            f"wandb: {first_line(error)}\nWithout a network, put WANDB_MODE=offline before the command and run "
            "`wandb sync` later. If the API key is refused: wandb login --relogin"
        )
    return None


def _explain_worker_failure(error: BaseException) -> str | None:
    """Explain that DataLoader workers died or ran out of memory."""
    text = str(error)
    none = "--num-workers=0" if Path(sys.argv[0]).name == "predict.py" else "data.num_workers=0"
    lost = re.search(r"DataLoader worker \(pid.*?\) (is killed by signal: [\w ]+|exited unexpectedly)", text)
    if "unable to allocate shared memory" in text or (lost and "Bus error" in lost[1]):
        return (
            "Shared memory (/dev/shm), which worker processes use to pass batches, is full. Start the container with "
            f"more, for example docker run --shm-size=8g, or use no workers: {none}"
        )
    if "Too many open files. Communication with the workers" in text:
        return f"Too many open files in worker processes. Use no workers: {none}, or raise the limit: ulimit -n 65536"
    if "DataLoader worker process" in text and re.search("MemoryError|(annot|can't) allocate memory", text):
        return f"A worker process ran out of memory. Use fewer workers, or none: {none}"
    if isinstance(error, RuntimeError) and lost:
        reason = lost[1].replace("is killed", "was killed")
        return f"A worker process {reason}, possibly for lack of memory. Use fewer workers, or none: {none}"
    return None


def _explain_invalid_choice() -> str:
    """Return what to write instead of GROUP=null."""
    for group, choices in project.groups().items():
        if any(argument.startswith(f"{group}=") for argument in sys.argv[1:]):
            if group == "experiment":
                return "experiment is already null by default; leave it out."
            if group == "logger":
                return "logger must be the name of a choice. To remove all: ~logger; one: logger.NAME=null"
            if group == "metrics":
                return "metrics must be names of choices. To remove all: metrics=[]; one: metrics.NAME=null"
            if group == "callbacks":
                return "callbacks must be the name of a choice. To remove all: ~callbacks; one: callbacks.NAME=null"
            null = " For a constant rate: scheduler=constant." if group == "scheduler" else ""
            return f"{group} must be the name of a choice.{null} Choices: {', '.join(choices)}"
    return "A config group must be the name of a choice."


# Trainer arguments that other parts of the config set.
SET_ELSEWHERE = {
    "trainer.callbacks": "Callbacks are a config group: callbacks=… or +callbacks.NAME._target_=…",
    "trainer.logger": "Loggers are a config group: logger=… or ~logger",
    "trainer.enable_checkpointing": "Remove both: callbacks.best_checkpoint=null callbacks.last_checkpoint=null",
}


def _explain_unknown_key(full_key: str, parent: Any) -> str:
    """Return what to write instead of a key that the config does not have."""
    if full_key in SET_ELSEWHERE:
        return f"{full_key}: there is no such key. {SET_ELSEWHERE[full_key]}"
    name = full_key.rpartition(".")[2]
    keys = [key for key in map(str, parent) if key != "hydra" and not key.startswith("_")]
    # Check for typos first, because importing the target may take seconds.
    if "_target_" in parent and not close_to(name, keys, cutoff=0.8):
        target = parent["_target_"]
        with suppress(Exception):  # the target cannot be imported or has no signature
            if name in inspect.signature(hydra.utils.get_object(target)).parameters:
                return f"{full_key} is not in the config, but {target} takes it. Add it: +{full_key}=…"
    return f"{full_key}: there is no such key." + nearest(name, keys)


def _available_accelerators(message: str) -> str:
    """Return a line with the available accelerators if ``message`` is about one, otherwise an empty string."""
    if "ccelerator" not in message and "gpu backend" not in message:
        return ""
    import torch

    mps = torch.backends.mps.is_available()
    available = {"auto": True, "cpu": True, "gpu": mps or torch.cuda.is_available(), "mps": mps}
    return f"\nOn this machine trainer.accelerator can be: {', '.join(name for name in available if available[name])}."


# Names that Lightning and torch use for keys in their code and messages.
INTERNAL_NAMES = {
    "val_check_batch": "val_check_interval",
    "total steps": "total_steps",
    "accelerator_flag": "accelerator",
}


def _explain_invalid_value(error: BaseException) -> str | None:
    """Name the override that an error of Lightning or torch refers to in its text or in the lines that raised it."""
    error = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
    frames = traceback.extract_tb(error.__traceback__)
    kinds = (ArithmeticError, AssertionError, AttributeError, ImportError, RuntimeError, TypeError, ValueError)
    if not isinstance(error, kinds) or not frames or not re.search(r"[/\\](lightning|torch)[/\\]", frames[-1].filename):
        return None
    text = "\n".join([str(error), *(frame.line or "" for frame in frames[-3:])])
    for theirs, ours in INTERNAL_NAMES.items():
        text = text.replace(theirs, ours)
    with suppress(HydraException):
        for override, default in _parse_typed_overrides():
            key = override.key_or_group
            group, _, name = key.partition(".")
            is_theirs = group in ("trainer", "optimizer", "scheduler") and name != ""
            if is_theirs and re.search(rf"(\b|_){re.escape(name)}\b", text):
                reason = first_line(error) or f"{type(error).__name__} in {frames[-1].line}"
                message = f"{override.input_line} does not work: {reason}\nThe default is {key}={default}."
                return f"{message}{_available_accelerators(key)} {FULL_ERROR}=1 shows the traceback."
    return None


def _parse_typed_overrides() -> list[tuple[Any, Any]]:
    """Return the overrides on the command line and the default of each, or None if it has no default."""
    arguments = [argument for argument in sys.argv[1:] if "=" in argument and not argument.startswith("-")]
    if Path(sys.argv[0]).name == "predict.py":
        arguments = []  # predict.py reads COLUMN=VALUE as a cell of a table
    overrides = OverridesParser.create().parse_overrides(arguments)
    # If a key is typed twice, the last override counts.
    last = {override.key_or_group: override for override in overrides if not override.is_sweep_override()}
    choices = [override.input_line or "" for key, override in last.items() if project.is_group(key)]
    defaults = project.compose(choices)
    as_text = OmegaConf.to_container(defaults)
    found = []
    for key, override in last.items():
        default: Any = as_text
        for part in key.split("."):
            default = default.get(part) if isinstance(default, dict) else None
        with suppress(OmegaConfBaseException):  # keep interpolations such as ${run_dir}/checkpoints as text
            value = OmegaConf.select(defaults, key)
            default = default if isinstance(value, str) else value
        found.append((override, default))
    return found


# Words that Lightning accepts where the default is a number: trainer.devices, deterministic and val_check_interval.
SPECIAL_VALUES = re.compile(r"auto|warn|\d+(:\d+){3}")
TYPE_NAMES = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    ListConfig: "a list",
    list: "a list",
}


def _explain_wrong_type(error: BaseException) -> str | None:
    """Name the first override that is not a number although its default is one.

    Also name an override of another type than its default, if the error mentions that type, as in "'NoneType' object is
    not …".
    """
    types = r"'(\w+)'|(?:not|got) (\w+)$"
    named = {word for pair in re.findall(types, f"{error}\n{error.__cause__}", re.MULTILINE) for word in pair}
    for override, default in _parse_typed_overrides():
        value = override.value()
        kind = next((text for type_, text in TYPE_NAMES.items() if isinstance(default, type_)), None)
        if isinstance(default, int | float) and SPECIAL_VALUES.fullmatch(str(value)):
            continue
        is_text = isinstance(default, int | float) and isinstance(value, str)
        is_named = type(value).__name__ in named and kind != TYPE_NAMES.get(type(value))
        if kind and (is_text or is_named):
            typed = str(override.input_line).partition("=")[2]
            message = f"{override.input_line}: {typed} is not {kind}. The default is {override.key_or_group}={default}."
            return message if is_text else f"{message} {FULL_ERROR}=1 shows the traceback."
    return None
