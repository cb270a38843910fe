"""What kind of class a node names: a run needs more than Lightning's hooks, and says so before it begins."""

import inspect
from collections.abc import Mapping
from typing import Any

from lightning_apps.config.binding import target
from lightning_apps.errors import ConfigError

BASES = {"data": "datamodules.contract.ExperimentData", "module": "lightning_apps.experiments.experiment.Experiment"}
"""By name, as every target: experiments stand above the configuration and may import it."""
MUST_HAVE = {"data": ("num_samples", "batch", "net_arguments"), "module": ("loss_sum",)}
"""What a class of one's own writes; everything else comes with the base class."""


def check_kinds(config: Mapping[str, Any]) -> None:
    """Data and module are of the classes that a run is driven through.

    Raises:
        ConfigError: naming what is missing, and where the way to it is written.
    """
    for key, path in BASES.items():
        base = target(key, {"_target_": path})
        kind, called = target(key, config[key]), f"{key}._target_={config[key]['_target_']}"
        if not (isinstance(kind, type) and issubclass(kind, base)):
            missing = [name for name in MUST_HAVE[key] if not hasattr(kind, name)]
            lacks = f": it lacks {', '.join(missing)}, and all that comes with the class" if missing else ""
            raise ConfigError(
                f"{called} is no {base.__name__} ({base.__module__}){lacks}; derive it from {base.__name__}, "
                "docs/own-experiment.md shows how"
            )
        if lacking := getattr(kind, "__abstractmethods__", None):
            raise ConfigError(f"{called} lacks {', '.join(sorted(lacking))}; docs/own-experiment.md shows how")


def check_needs(config: Mapping[str, Any]) -> None:
    """The data's class has the methods that the callbacks need; looked at before data are prepared.

    Raises:
        ConfigError: naming what is missing.
    """
    data = target("data", config["data"])
    for name, node in config["callbacks"]["extra"].items():
        needs = getattr(target(f"callbacks.extra.{name}", node), "needs", None) if node else None
        if needs is not None and (missing := missing_methods(data, needs)):
            raise ConfigError(unmet_need(f"callbacks.extra.{name}", needs, data, missing))


def missing_methods(kind: type, needed: type) -> list[str]:
    """Methods that a protocol (or a class of data) asks for and a class does not have; attributes come with setup."""
    if needed in kind.__mro__:
        return []
    methods = [
        name
        for base in needed.__mro__[:-1]
        for name, value in vars(base).items()
        if inspect.isfunction(value) and not name.startswith("_")
    ]
    missing = sorted({name for name in methods if not hasattr(kind, name)})
    return missing or ([] if getattr(needed, "_is_protocol", False) else [f"the base class {needed.__name__}"])


def unmet_need(callback: str, needs: type, data: type, missing: list[str]) -> str:
    """The message for a callback that the data do not suit.

    Args:
        callback: its name.
        needs: the protocol, or class, that it names.
        data: class of the data.
        missing: what the data do not have.
    """
    return (
        f"{callback} needs {needs.__name__} ({needs.__module__}), and {data.__name__} lacks {', '.join(missing)}: give "
        "it those, or switch the callback off in callbacks.extra"
    )
