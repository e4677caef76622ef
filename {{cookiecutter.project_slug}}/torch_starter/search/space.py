"""Read a search space: a file with the values of each key, and the overrides that all trials have."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .. import project
from ..explanations import explanation
from ..files import display_path
from ..mistakes import UserError, nearest

SPACES = project.CONFIGS / "sweep"
# Keys that a trial must not vary: it would not be comparable, or not be in its folder.
FIXED = ("callbacks.best_checkpoint", "ckpt_path", "run_dir", "hydra")
# Words that Hydra does not read as text.
WORDS = ("null", "true", "false", "nan", "inf")


def find_space(words: Sequence[str]) -> Path:
    """Return the file that the first of ``words`` names.

    Raises:
        UserError: If there is no such file.
    """
    names = sorted(path.stem for path in SPACES.glob("*.yaml"))
    if not words or "=" in words[0]:
        raise UserError(f"No search space given: python sweep.py SPACE\nChoices: {', '.join(names)}, or a file")
    for path in (SPACES / f"{words[0]}.yaml", Path(words[0])):
        if path.is_file():
            return display_path(path)
    raise UserError(f"{words[0]} is neither a file nor a space in configs/sweep." + nearest(words[0], names))


def read_space(path: Path, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Read the search space and the overrides that all trials have.

    Args:
        path: A YAML file with ``space`` and optionally ``overrides``.
        words: More overrides, from the command line. They take precedence over those of the file.

    Returns:
        The space, which maps keys to a list of choices or to a dict with ``low``, ``high`` and optionally ``log`` and
        ``step``; and the overrides.

    Raises:
        UserError: If the file has another form, or a key is in the space and in the overrides.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))  # unlike PyYAML, it reads 1e-4 as a number
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    keys = content if isinstance(content, dict) else {}
    for key in keys:
        if key not in ("overrides", "space"):
            raise UserError(f"{path}: there is no key {key}." + nearest(str(key), ["overrides", "space"]))
    space, overrides = keys.get("space"), keys.get("overrides") or []
    if not isinstance(space, dict) or not space:
        raise UserError(f"{path} has no space. Add one, for example:\nspace:\n  optimizer: [sgd, adam]")
    if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
        raise UserError(
            f"{path}: overrides is {overrides}; it must be a list, for example overrides: [experiment=mnist]"
        )
    for key, values in space.items():
        if problem := problem_of(key, values) if isinstance(key, str) else "it must be a key, for example optimizer.lr":
            raise UserError(f"{path}: {key}: {problem}")

    for word in words:
        if "=" not in word and not word.startswith("~"):
            raise UserError(
                f"{word} is not an override. Pass key=value after the space, for example trainer.max_epochs=5"
            )
    parser = OverridesParser.create()
    said = {override.key_or_group for override in parser.parse_overrides(list(words))}
    kept = [line for line in overrides if parser.parse_override(line).key_or_group not in said]
    for override in parser.parse_overrides([*kept, *words]):
        if override.key_or_group in space:
            source = "on the command line" if override.key_or_group in said else "in its overrides"
            raise UserError(
                f"{override.key_or_group} is in the space of {path} and {source} ({override.input_line}): "
                "remove one of them."
            )
        if override.key_or_group.split(".")[0] in ("hydra", "run_dir"):
            raise UserError(
                f"{override.input_line} cannot be set, because a study has its own folder. Name it: --study NAME"
            )
    return space, [*kept, *words]


def problem_of(key: str, values: Any) -> str | None:
    """Return the problem with an entry of a space, or None if it is valid."""
    if key.startswith(FIXED):
        return "it must be the same in all trials"
    if isinstance(values, list):
        return None if values else "it has no choices; list some, for example [sgd, adam]"
    if project.is_group(key):
        return f"it is {values}; a group must be a list of its choices"
    if not isinstance(values, dict):
        return f"it is {values}; it must be a list of choices, or a range such as {{low: 1, high: 10}}"
    for name, value in values.items():
        if name not in ("low", "high", "log", "step"):
            return f"there is no key {name}." + nearest(str(name), ["low", "high", "log", "step"])
        if name == "log" and not isinstance(value, bool):
            return f"log is {value}; it must be true or false"
        if name != "log" and (type(value) not in (int, float) or not math.isfinite(value)):
            return f"{name} is {value}; it must be a number"
    if not {"low", "high"} <= values.keys():
        return "it needs low and high"
    low, high = values["low"], values["high"]
    if low > high:
        return f"low is {low}; it must not be above high ({high})"
    if values.get("log") and low <= 0:
        return f"low is {low}; with log: true it must be above 0"
    if values.get("log") and "step" in values:
        return "log: true and step exclude each other; remove one of them"
    if values.get("step", 1) <= 0:
        return f"step is {values['step']}; it must be above 0"
    if "step" in values and abs(math.remainder(high - low, values["step"])) > 1e-9 * values["step"]:
        return f"steps of {values['step']} from low ({low}) do not reach high ({high})"
    return None


def as_text(value: Any) -> str:
    """Return a value from a YAML file in Hydra's override grammar."""
    if isinstance(value, list):
        return f"[{','.join(map(as_text, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_text(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, str):
        is_word = re.fullmatch(r"[A-Za-z_][\w./-]*", value) and value.lower() not in WORDS
        return value if is_word else QuotedString(value, Quote.single).with_quotes()
    return json.dumps(value)  # null, true, false and numbers


def compose_all(path: Path, space: dict[str, Any], overrides: list[str]) -> DictConfig:
    """Check that every choice of a group has every key of the space, and return the config of one trial.

    Raises:
        UserError: If a key is missing, or the trials would not have a common metric.
    """
    first = {key: as_text(values[0] if isinstance(values, list) else values["low"]) for key, values in space.items()}
    groups = [key for key in space if project.is_group(key)]
    others = [first | {group: as_text(choice)} for group in groups for choice in space[group][1:]]
    config, metric = None, ""
    for values in (first, *others):
        choices = " ".join(f"{group}={values[group]}" for group in groups)
        where = f"\nThis refers to {path}" + (f" with {choices}." if choices else ".")
        try:
            composed = hydra.compose("train", [*overrides, *(f"{key}={value}" for key, value in values.items())])
        except Exception as error:
            message = explanation(error)
            if message is None:
                raise
            raise UserError(message + where) from error
        best = composed.callbacks.get("best_checkpoint")
        if not best or not best.monitor:
            raise UserError("callbacks.best_checkpoint is missing, but trials are compared by its monitor." + where)
        if best.mode not in ("min", "max"):
            raise UserError(f"callbacks.best_checkpoint.mode is {best.mode}; it must be min or max." + where)
        if config is None:
            config, metric = composed, f"{best.mode} {best.monitor}"
        elif metric != f"{best.mode} {best.monitor}":
            raise UserError(
                f"callbacks.best_checkpoint selects {best.mode} {best.monitor}, but {metric} in other trials, so they "
                "cannot be compared." + where
            )
    assert config is not None
    return config
