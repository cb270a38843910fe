"""The jobs of a sweep: every combination of a grid, each with a name and the overrides that make it.

Pure functions; nothing here starts a process or reads a file.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_apps.config.override_value import override_value
from lightning_apps.config.overrides import name_of_parts
from lightning_apps.errors import ConfigError

OWN_KEYS = ("run.name", "run.resume", "run.overwrite")
"""What a sweep sets for each of its jobs itself."""
NOT_SWEPT = ("experiment", "run", "sweep", "hydra", "logger", "verify")
"""Root keys that cannot be in a grid: they say where and how a job runs, or would mix two experiments."""
BUDGETS = ("trainer.max_tokens", "trainer.max_steps", "trainer.max_epochs")
"""Keys that a job's length is proportional to, in the order in which they count."""


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """The `sweep` node of a configuration; conf/sweep/grid.yaml says what each key means."""

    name: str
    grid: dict[str, Any]
    overrides: list[str]
    parallel: int | None
    devices: list[int | str] | None
    retries: int
    retry_failed: bool
    on_failure: Literal["continue", "stop"]


@dataclass(frozen=True)
class Job:
    """One combination of the grid.

    Attributes:
        name: short keys and values, unique within the sweep, the same in every start.
        values: full key -> value.
    """

    name: str
    values: Mapping[str, Any]

    @property
    def overrides(self) -> list[str]:
        """The combination as command-line overrides."""
        return [f"{key}={override_value(value)}" for key, value in self.values.items()]

    @property
    def size(self) -> float:
        """How much longer this job takes than another one of the sweep, as far as the grid tells."""
        lengths = [self.values.get(key) for key in BUDGETS]
        return next((float(length) for length in lengths if isinstance(length, int | float)), 1.0)


def check_settings(settings: SweepSettings) -> None:
    """Reject numbers and names that make no sweep.

    Raises:
        ConfigError: with the key, what is allowed and the remedy.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", settings.name):
        raise ConfigError(f"sweep.name={settings.name!r}: use letters, digits and . _ + -, starting with one")
    if settings.parallel is not None and settings.parallel < 1:
        raise ConfigError(f"sweep.parallel={settings.parallel}: must be at least 1, or null")
    if settings.retries < 0:
        raise ConfigError(f"sweep.retries={settings.retries}: must not be negative")
    if settings.devices is not None and (
        not settings.devices or len(set(map(str, settings.devices))) < len(settings.devices)
    ):
        raise ConfigError(f"sweep.devices={settings.devices}: name each device once, or null for no choice")


def flat_grid(grid: Mapping[str, Any], prefix: str = "") -> dict[str, list[Any]]:
    """`{trainer: {max_steps: [1, 2]}}` -> `{"trainer.max_steps": [1, 2]}`; null takes a key out of the grid.

    Raises:
        ConfigError: a value is no list, is empty, holds a value twice, or its key cannot be swept.
    """
    flat: dict[str, list[Any]] = {}
    for name, node in grid.items():
        key = f"{prefix}{name}"
        if isinstance(node, Mapping):
            entries = flat_grid(node, f"{key}.")
        elif node is None:
            continue
        elif not isinstance(node, list):
            raise ConfigError(f"sweep.grid.{key}={node!r}: give a list of values, sweep.grid.{key}=[{node}]")
        else:
            entries = {key: node}
        for entry, values in entries.items():
            _check_axis(entry, values)
            if entry in flat:
                raise ConfigError(f"sweep.grid names {entry} twice, once with dots and once as a tree; keep one")
            flat[entry] = values
    return flat


def _check_axis(key: str, values: Sequence[object]) -> None:
    if key.split(".")[0] in NOT_SWEPT:
        raise ConfigError(f"sweep.grid.{key}: {key.split('.')[0]} cannot be swept; start one sweep for each")
    if not values:
        raise ConfigError(f"sweep.grid.{key}=[]: give at least one value, or null to leave the key out of the grid")
    written = [override_value(value) for value in values]
    twice = sorted({value for value in written if written.count(value) > 1})
    if twice:
        raise ConfigError(f"sweep.grid.{key} lists {', '.join(twice)} twice")


def expand(grid: Mapping[str, Any]) -> list[Job]:
    """Every combination of the grid, in its order: the last key changes fastest.

    Raises:
        ConfigError: the grid is empty or flawed, or two combinations would have one name.
    """
    axes = flat_grid(grid)
    if not axes:
        raise ConfigError(
            "sweep.grid is empty: add lists of values, "
            "'+sweep.grid.seed=[0,1,2]' '+sweep.grid.optimizer.lr=[1e-3,3e-3]'"
        )
    short = short_keys(axes)
    jobs = []
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        # the name sorts its parts, so that a grid written in another order finds its jobs again
        jobs.append(
            Job(name_of_parts([f"{short[key]}={override_value(value)}" for key, value in values.items()]), values)
        )
    names = [job.name for job in jobs]
    if same := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"sweep.grid: two jobs would be called {same[0]}; change one of their values")
    return jobs


def short_keys(keys: Sequence[str] | Mapping[str, Any]) -> dict[str, str]:
    """The last part of each dotted key, with as many parts before it as tell it from the other keys."""
    short = {}
    for key in keys:
        parts = key.split(".")
        for number in range(1, len(parts) + 1):
            end = ".".join(parts[-number:])
            if sum(other == end or other.endswith(f".{end}") for other in keys) == 1:
                break
        short[key] = end
    return short


def check_overrides(overrides: Sequence[str], grid_keys: Sequence[str] | Mapping[str, Any], where: str) -> None:
    """Reject overrides for all jobs that the sweep decides itself.

    Args:
        overrides: as on the command line, those of `sweep` taken out.
        grid_keys: full keys of the grid.
        where: how to name the place that they stand in.

    Raises:
        ConfigError: naming the override and the way to say what was meant.
    """
    for override in overrides:
        key = override_key(override)
        if key in OWN_KEYS:
            raise ConfigError(
                f"{where}{override}: a sweep names and resumes its jobs itself; choose another sweep.name, or delete "
                "the runs that are to start anew"
            )
        if key in grid_keys:
            raise ConfigError(f"{where}{override}: the grid sets {key}; change it with 'sweep.grid.{key}=[...]'")


def override_key(override: str) -> str:
    """`+optimizer.lr=1e-3` -> `optimizer.lr`."""
    return override.split("=")[0].lstrip("+~")


def describe_grid(axes: Mapping[str, Sequence[object]]) -> str:
    """`5 num_categories x 3 seed`, in the grid's order."""
    short = short_keys(axes)
    return " x ".join(f"{len(values)} {short[key]}" for key, values in axes.items())


def time_left(done: Sequence[tuple[float, float]], running: Sequence[tuple[float, float]], waiting: Sequence[float],
              parallel: int) -> float | None:  # fmt: skip
    """Seconds until a sweep ends, from the jobs that are done; None before the first one is.

    Args:
        done: size and seconds of each finished job.
        running: size of each running job, and seconds since it started.
        waiting: sizes of the jobs that have not started.
        parallel: jobs at once.
    """
    if not done or not sum(size for size, _ in done):
        return None
    rate = sum(seconds for _, seconds in done) / sum(size for size, _ in done)
    left = [max(0.0, size * rate - seconds) for size, seconds in running]
    total = sum(left) + rate * sum(waiting)
    return max(total / parallel, max(left, default=0.0))
