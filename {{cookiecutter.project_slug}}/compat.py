"""What other libraries get wrong or have changed, each with the public issue and until when."""

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

# Until the lower bound of hydra-core is 1.4, which deprecates version_base; 1.3 warns where it is missing.
IS_HYDRA_1_3 = hydra.__version__.startswith("1.3.")
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if IS_HYDRA_1_3 else {}

# Replaces a config of the same name, which 1.4 warns of unless it is told so and 1.3 does unasked.
REPLACE: dict[str, Any] = {} if IS_HYDRA_1_3 else {"replace": True}


def _without_help_check(build: Callable[..., Any]) -> Callable[..., Any]:
    """``build``, during which argparse does not check the help of each argument."""

    @functools.wraps(build)
    def build_unchecked() -> Any:
        check = argparse._ActionsContainer._check_help  # pyrefly: ignore  (new in Python 3.14)
        argparse._ActionsContainer._check_help = lambda self, action: None  # pyrefly: ignore
        try:
            return build()
        finally:
            argparse._ActionsContainer._check_help = check  # pyrefly: ignore

    return build_unchecked


# Python 3.14 refuses the help of Hydra 1.3's --shell-completion, which is no str (facebookresearch/hydra#3121).
# `hydra.main` is the function; its module is found here only.
if IS_HYDRA_1_3 and sys.version_info >= (3, 14):
    _module: Any = sys.modules["hydra.main"]
    _module.get_args_parser = _without_help_check(_module.get_args_parser)

# Hydra 1.4 warns of every target that no whitelist names, and 1.5 refuses it. What you compose may use any class.
if not IS_HYDRA_1_3:
    hydra.utils.execution_whitelist(hydra.utils.UNSAFE_DISABLE_EXECUTION_CHECKS).__enter__()


def instantiate_only_targets_of(config: DictConfig) -> contextlib.AbstractContextManager[Any]:
    """Within, Hydra 1.4 instantiates nothing but the targets that ``config`` names; 1.3 has no such list.

    Args:
        config: of an untrusted run folder, after trust.py has allowed each of its targets. Whatever appears as a target
            later, by a merge or a nested call, is refused.
    """
    if IS_HYDRA_1_3:
        return contextlib.nullcontext()
    targets = sorted(set(_targets(OmegaConf.to_container(config, resolve=True))))
    return hydra.utils.execution_whitelist(targets, reset=True)


def _targets(config: Any) -> Iterator[str]:
    values = config.values() if isinstance(config, dict) else config if isinstance(config, list) else ()
    if isinstance(config, dict) and isinstance(config.get("_target_"), str):
        yield config["_target_"]
    for value in values:
        yield from _targets(value)
