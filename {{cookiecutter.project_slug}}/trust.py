"""What the config of a run folder may do, which may come from somebody else: configure, and run no code."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra

from errors import Mistake

# What the config of a run folder may name as `_target_`: the classes of these modules, and the functions of some. Not
# all of torch and torchvision, which have functions that run a command or load a pickle. Add what your configs need.
PACKAGES = tuple(path.parent.name for path in Path(__file__).parent.glob("*/__init__.py"))
FUNCTIONS_OF = (
    *PACKAGES,
    "torch.nn",
    "torch.distributed.fsdp.wrap",
    "torchvision.models",
    "torchvision.transforms",
    "torchmetrics.functional",
)
CLASSES_OF = (
    *FUNCTIONS_OF,
    "torch.optim",
    "torch.utils.data",
    "torchvision.ops",
    "torchmetrics",
    *(
        f"lightning.pytorch.{module}"
        for module in ("callbacks", "loggers", "plugins", "profilers", "strategies", "trainer")
    ),
)


def refuse_resolvers(config: Any, replaced: set[str], key: str = "") -> None:
    """Refuses values such as ``${oc.env:HOME}``, which call a function when they are read.

    Args:
        config: dicts, lists and values, not resolved.
        replaced: keys with dots whose values do not matter, for they will be replaced.
        key: where ``config`` is.

    Raises:
        Mistake: if there is one.
    """
    for name, value in _items(config):
        path = f"{key}.{name}" if key else str(name)
        # Nested ones too, such as ${${a}:b}.
        if isinstance(value, str) and "${" in value and ":" in value.partition("${")[2] and path not in replaced:
            raise Mistake(f"{path} of the run's config is {value}, which could run code: refused. Set {path}=…")
        refuse_resolvers(value, replaced, path)


def refuse_untrusted_targets(config: Any, key: str = "") -> None:
    """Refuses a ``_target_``, however deep, that is not in the lists above.

    Args:
        config: dicts, lists and values, resolved.
        key: where ``config`` is.

    Raises:
        Mistake: if there is one.
    """
    for name, value in _items(config):
        path = f"{key}.{name}" if key else str(name)
        if name == "_target_" and not _is_trusted(value):
            raise Mistake(
                f"{path} of the run's config is {value}, which a run may not use: refused, and nothing was run.\n"
                "If your own project needs it, add its module to CLASSES_OF in trust.py."
            )
        refuse_untrusted_targets(value, path)


def _items(config: Any) -> Iterator[tuple[Any, Any]]:
    yield from config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()


def _is_trusted(target: Any) -> bool:
    """Whether ``target`` is a class or function that is allowed by where it is defined, not by where it is found."""
    if not isinstance(target, str) or target.partition(".")[0] not in {name.partition(".")[0] for name in CLASSES_OF}:
        return False  # before anything of it is imported
    found = hydra.utils.get_object(target)
    modules = CLASSES_OF if inspect.isclass(found) else FUNCTIONS_OF if inspect.isfunction(found) else ()
    is_method = "." in getattr(found, "__qualname__", ".")
    return not is_method and any(f"{found.__module__}.".startswith(f"{module}.") for module in modules)
