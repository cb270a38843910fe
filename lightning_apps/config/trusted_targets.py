"""What a configuration that was read from a run may import and call: a run may be a stranger's.

`_target_: subprocess.getoutput` in a config.yaml would run under every command that builds what the file names, and
importing a module is already running its code. So a run may name what conf/ of this program names at the same key, and
nothing else; whoever has code of their own says so on the command line, `trust=[my_package]`. Everything is looked at
before anything is imported.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lightning_apps.config.binding import target
from lightning_apps.config.composition import CONF
from lightning_apps.errors import ConfigError

KEYS_OF_GROUPS = {
    "data": "data",
    "model": "model",
    "optimizer": "optimizer",
    "scheduler": "scheduler",
    "callbacks": "callbacks",
    "logger": "logger",
    "experiment": "",
    "module": "",
}
"""Groups of conf/ whose options name targets, and the key below which each of them goes."""
NAMED_FREELY = ("callbacks.extra", "logger")
"""Below these, a name is the user's to choose."""
FUNCTION_KEYS = ("verify_files",)
"""Keys that name a function without `_target_`."""
SHARED_MODULES = (
    "lightning_apps.experiments.classification.ClassificationExperiment",
    "lightning_apps.experiments.causal_lm.CausalLMExperiment",
)
"""Modules that an experiment of a user's own may take as they are; conf/ names none of them."""
BASES = {
    "data": "datamodules.contract.ExperimentData",
    "module": "lightning_apps.experiments.experiment.Experiment",
    "callbacks": "lightning.pytorch.callbacks.Callback",
    "logger": "lightning.pytorch.loggers.Logger",
}
"""What a trusted target of a section is derived from; the others are functions that the trusted package defines."""


def check_targets(config: Mapping[str, Any], source: Path, trust: Any) -> None:
    """Refuse a configuration that names code which neither this program nor the user vouches for.

    Args:
        config: as it was read from a run.
        source: the file that it was read from, for the message.
        trust: what the user vouches for on the command line: packages, modules, or the paths of single targets.

    Raises:
        ConfigError: naming the key, the target, what is allowed there, and the remedy.
    """
    names = trusted_names(trust)
    own = [(key, path) for key, path in targets_of(config) if not _is_ours(key, path, names, source)]
    for key, path in own:  # all names are known to be trusted now
        _check_kind(key, path, names, source)


def trusted_names(trust: Any) -> list[str]:
    """The names in `trust`, of which one may stand alone.

    Raises:
        ConfigError: one is no name of a package.
    """
    names = [trust] if isinstance(trust, str) else list(trust or ())
    for name in names:
        if not (isinstance(name, str) and all(part.isidentifier() for part in name.split("."))):
            raise ConfigError(f"trust={trust!r}: give names of packages, trust=[my_package]")
    return names


def targets_of(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Each key of a configuration that names code, at any depth, with what it names."""
    entries = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for name, value in entries:
        place = f"{key}.{name}" if key else str(name)
        if name == "_target_" or (place in FUNCTION_KEYS and value is not None):
            yield place, value
        else:
            yield from targets_of(value, place)


@cache
def known_targets() -> dict[str, frozenset[str]]:
    """What conf/ names, by key; `*` stands for a name that a user chooses."""
    found: dict[str, set[str]] = {"module._target_": set(SHARED_MODULES)}
    for group, above in KEYS_OF_GROUPS.items():
        for file in sorted((CONF / group).glob("*.yaml")):
            for key, path in targets_of(yaml.safe_load(file.read_text(encoding="utf-8")), above):
                found.setdefault(_pattern(key), set()).add(path)
    return {key: frozenset(paths) for key, paths in found.items()}


def _pattern(key: str) -> str:
    """`callbacks.extra.picture._target_` -> `callbacks.extra.*._target_`; other keys stay."""
    above, _, last = key.rpartition(".")
    section, _, name = above.rpartition(".")
    return f"{section}.*.{last}" if section in NAMED_FREELY and name else key


def _is_ours(key: str, path: Any, names: Sequence[str], source: Path) -> bool:
    """Whether conf/ names this target at this key; False where the user vouches for it.

    Raises:
        ConfigError: neither is so.
    """
    allowed = known_targets().get(_pattern(key), frozenset())
    if isinstance(path, str):
        if path in allowed:
            return True
        if any(path == name or path.startswith(f"{name}.") for name in names) and _may_name_code(key):
            return False
    remedy = "leave the key out"
    if isinstance(path, str) and _may_name_code(key):
        remedy = f"if that code is yours, or you trust who wrote it, add trust=[{path.partition('.')[0]}]"
    raise ConfigError(
        f"{source}: {key}={path!r} would run code that is not this program's; allowed there: "
        f"{', '.join(sorted(allowed)) or 'nothing'}; {remedy}"
    )


def _may_name_code(key: str) -> bool:
    """Whether the program ever calls what this key names."""
    return _pattern(key) in known_targets()


def _check_kind(key: str, path: str, names: Sequence[str], source: Path) -> None:
    """Refuse what a trusted module merely imported, such as `os.system`, and what its key does not take.

    Raises:
        ConfigError: it is.
    """
    kind = target(key.removesuffix("._target_"), {"_target_": path})
    home = f"{getattr(kind, '__module__', None)}.{getattr(kind, '__qualname__', None)}"
    if not any(home == name or home.startswith(f"{name}.") for name in names):
        raise ConfigError(
            f"{source}: {key}={path} is {home}, which trust={list(names)} does not cover; name in the configuration "
            "what the trusted package itself defines"
        )
    base_path = BASES.get(key.partition(".")[0])
    if base_path is None:
        if not (inspect.isfunction(kind) or inspect.isclass(kind)):
            raise ConfigError(f"{source}: {key}={path} is neither a function nor a class")
        return
    base = target(key, {"_target_": base_path})
    if not (inspect.isclass(kind) and issubclass(kind, base)):
        raise ConfigError(f"{source}: {key}={path} is not derived from {base_path}; derive it, or mend the key")
