"""The axes of a sweep in the words of Hydra's grammar, and its jobs: each with a name and the overrides that make it.

Pure functions; nothing here starts a process or reads a file.
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from lightning_apps.config.override_value import override_value
from lightning_apps.config.overrides import name_of_parts, override_key
from lightning_apps.errors import ConfigError
from lightning_apps.process.safe_stop import max_time_seconds

OWN_KEYS = ("run.name", "run.resume", "run.overwrite", "run.group")
"""What a sweep sets for each of its jobs itself."""
NOT_SWEPT = ("run", "sweep", "hydra", "logger", "verify")
"""Root keys that cannot be swept: they say where and how a job runs."""
BUDGETS = ("trainer.max_tokens", "trainer.max_steps", "trainer.max_epochs")
"""Keys that a job's length is proportional to, in the order in which they count."""


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """The `sweep` node of a configuration; conf/sweep/grid.yaml says what each key means."""

    name: str | None
    grid: dict[str, Any]
    overrides: list[str]
    backend: Literal["local", "slurm", "ray"]
    slurm: dict[str, Any]
    ray: dict[str, Any]
    parallel: int | None
    devices: list[int | str] | None
    retries: int
    retry_failed: bool
    on_failure: Literal["continue", "stop"]
    job_time: str | None
    max_time: str | None
    search: Literal["optuna"] | None
    sampler: Literal["tpe", "random", "cmaes", "grid"]
    trials: int | None
    objective: str | dict[str, str] | None
    pruner: Literal["median", "hyperband"] | None
    seed: Annotated[int, Ge(0)]


def check_settings(settings: SweepSettings) -> None:
    """Reject numbers and names that make no sweep.

    Raises:
        ConfigError: with the key, what is allowed and the remedy.
    """
    if settings.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", settings.name):
        raise ConfigError(f"sweep.name={settings.name!r}: use letters, digits and . _ + -, starting with one")
    if settings.parallel is not None and settings.parallel < 1:
        raise ConfigError(f"sweep.parallel={settings.parallel}: must be at least 1, or null")
    if settings.retries < 0:
        raise ConfigError(f"sweep.retries={settings.retries}: must not be negative")
    if settings.devices is not None and (
        not settings.devices or len(set(map(str, settings.devices))) < len(settings.devices)
    ):
        raise ConfigError(f"sweep.devices={settings.devices}: name each device once, or null for no choice")
    max_time_seconds(settings.job_time, "sweep.job_time")
    max_time_seconds(settings.max_time, "sweep.max_time")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One key that is swept.

    Attributes:
        key: full key, `optimizer.lr`.
        prefix: `+` or `++` where the command line has it.
        values: what it takes in turn; none for an interval.
        bounds: lowest and highest value of an interval; None for what can be listed.
        step: of a range of numbers; None for everything else.
        tags: of Hydra's `tag(...)`.
        text: as it was written.
    """

    key: str
    prefix: str = ""
    values: tuple[Any, ...] = ()
    bounds: tuple[float, float] | None = None
    step: float | None = None
    tags: frozenset[str] = frozenset()
    text: str = ""


def read_axis(word: str, loader: ConfigLoader | None, *, name: str | None = None) -> Axis | None:
    """The axis that an override of the command line spans; None where it sets one value.

    Args:
        word: `optimizer.lr=1e-3,3e-3`, `model=glob(pythia*)`, `optimizer.lr=tag(log,interval(1e-4,1e-2))`.
        loader: knows the options of config groups, for `glob`.
        name: how messages call the axis.

    Raises:
        ConfigError: it cannot be read or swept, or holds a value twice.
    """
    try:
        (override,) = OverridesParser.create(config_loader=loader).parse_overrides([word])  # it hands the loader on
        if not override.is_sweep_override():
            return None
        listed = list(override.sweep_iterator()) if override.is_discrete_sweep() else []
    except (HydraException, ValueError) as error:
        raise ConfigError(f"{word}: {str(error).splitlines()[0]}") from error
    element, space = override.get_key_element(), override.value()
    key = element.lstrip("+")
    axis = Axis(
        key=key,
        prefix=element.removesuffix(key),
        values=tuple(map(Override._convert_value, listed)),
        bounds=(space.start, space.end) if isinstance(space, IntervalSweep) else None,  # type: ignore[arg-type]
        step=space.step if isinstance(space, RangeSweep) else None,
        tags=frozenset(getattr(space, "tags", ())),
        text=override.get_value_string(),
    )
    _check_axis(axis, name or word)
    return axis


def _check_axis(axis: Axis, name: str) -> None:
    root = re.split(r"[./@]", axis.key)[0]
    if root in NOT_SWEPT:
        raise ConfigError(f"{name}: {root} cannot be swept; start one sweep for each")
    if axis.bounds is None and not axis.values:
        raise ConfigError(f"{name}: give at least one value")
    written = [override_value(value) for value in axis.values]
    if twice := sorted({value for value in written if written.count(value) > 1}):
        raise ConfigError(f"{name} lists {', '.join(twice)} twice")


def grid_axes(grid: Mapping[str, Any], loader: ConfigLoader | None = None, prefix: str = "") -> dict[str, Axis]:
    """Axes of the node `sweep.grid` by their keys: `{trainer: {max_steps: [1, 2]}, seed: "range(0,3)"}`.

    Dots and trees are the same; null takes a key out of the grid.

    Raises:
        ConfigError: a value is neither a list nor words of Hydra's grammar, is empty, holds a value twice, or its key
            cannot be swept.
    """
    axes: dict[str, Axis] = {}
    for name, node in grid.items():
        key, where = f"{prefix}{name}", f"sweep.grid.{prefix}{name}"
        if isinstance(node, Mapping):
            entries = grid_axes(node, loader, f"{key}.")
        elif node is None:
            continue
        else:
            axis = None
            if isinstance(node, str):
                axis = read_axis(f"{key}={node}", loader, name=where)
            elif isinstance(node, list):
                axis = Axis(key=key, values=tuple(node), text=override_value(node))
                _check_axis(axis, f"{where}={axis.text}")
            if axis is None:
                raise ConfigError(f"{where}={node!r}: give a list of values, {where}=[{node}]")
            entries = {key: axis}
        for entry, axis in entries.items():
            if entry in axes:
                raise ConfigError(f"sweep.grid names {entry} twice, once with dots and once as a tree; keep one")
            axes[entry] = axis
    return axes


@dataclass(frozen=True)
class Job:
    """One combination of values.

    Attributes:
        name: short keys and values, unique within the sweep, the same in every start.
        values: full key -> value.
        overrides: the combination as command-line overrides.
    """

    name: str
    values: Mapping[str, Any]
    overrides: Sequence[str]


def make_job(axes: Mapping[str, Axis], values: Mapping[str, Any]) -> Job:
    """The job of one value for each axis; its name sorts its parts, so that the axes' order does not matter."""
    short = short_keys(axes)
    words = {key: override_value(value) for key, value in values.items()}
    name = name_of_parts([f"{short[key]}={word}" for key, word in words.items()])
    return Job(name, dict(values), [f"{axes[key].prefix}{key}={word}" for key, word in words.items()])


def expand(axes: Mapping[str, Axis]) -> list[Job]:
    """Every combination, in the axes' order: the last key changes fastest.

    Raises:
        ConfigError: there is no axis, one has no values to list, or two combinations would have one name.
    """
    if not axes:
        raise ConfigError(
            "nothing is swept: list values, --multirun seed=0,1,2 optimizer.lr=1e-3,3e-3, "
            "or '+sweep.grid.seed=[0,1,2]' without --multirun"
        )
    if endless := [axis for axis in axes.values() if axis.bounds is not None]:
        raise ConfigError(
            f"{endless[0].key}={endless[0].text}: an interval has no values to list; search it with "
            "sweep.search=optuna, or list some"
        )
    combinations = itertools.product(*(axis.values for axis in axes.values()))
    jobs = [make_job(axes, dict(zip(axes, combination, strict=True))) for combination in combinations]
    _check_names(jobs)
    return jobs


def _check_names(jobs: Sequence[Job]) -> None:
    names = Counter(job.name for job in jobs)
    if same := sorted(name for name, number in names.items() if number > 1):
        raise ConfigError(f"two jobs would be called {same[0]}; change one of their values")


def corners(axes: Mapping[str, Axis]) -> list[Job]:
    """Jobs at the ends of a search's space, one key after the other: what is wrong with a space shows there.

    Raises:
        ConfigError: two values of a key would have one name, and so one result.
    """
    ends = {key: list(axis.values) if axis.bounds is None else list(axis.bounds) for key, axis in axes.items()}
    first = {key: values[0] for key, values in ends.items()}
    jobs = [make_job(axes, {**first, key: value}) for key, values in ends.items() for value in values]
    jobs = list({repr(job.values): job for job in jobs}.values())
    _check_names(jobs)
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


def default_name(given: Sequence[str], axes: Mapping[str, Axis]) -> str:
    """Name of a sweep from what it sweeps and what it fixes, but not from the values: those may be added later.

    Args:
        given: overrides for all jobs; where runs go and what logs them does not count.
        axes: what is swept.
    """
    counted = sorted(word for word in given if override_key(word).split(".")[0] not in ("run", "logger"))
    whole = "\n".join([*counted, *sorted(axes)])
    keys = re.sub(r"[^A-Za-z0-9._+-]+", "_", "+".join(sorted(short_keys(axes).values())))
    return f"{keys[:48]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def check_overrides(overrides: Sequence[str], grid_keys: Sequence[str] | Mapping[str, Any], where: str) -> None:
    """Reject overrides for all jobs that the sweep decides itself.

    Args:
        overrides: as on the command line, those of `sweep` taken out.
        grid_keys: full keys that are swept.
        where: how to name the place that they stand in; empty for the command line, which may choose the experiment.

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
            raise ConfigError(f"{where}{override}: the sweep sets {key}; change it with 'sweep.grid.{key}=[...]'")
        if key == "experiment" and where:
            raise ConfigError(
                f"{where}{override}: the experiment is chosen before these are read; write {override} on the command "
                "line, or 'override /experiment@_global_.experiment: <name>' in the defaults of the sweep's file"
            )


def describe_axes(axes: Mapping[str, Axis]) -> str:
    """`5 num_categories x 3 seed`, in the axes' order."""
    short = short_keys(axes)
    return " x ".join(f"{len(axis.values) or axis.text} {short[key]}" for key, axis in axes.items())


def job_size(values: Mapping[str, Any]) -> float:
    """How much longer a job takes than another one of the sweep, as far as its values tell."""
    lengths = [values.get(key) for key in BUDGETS]
    return next((float(length) for length in lengths if isinstance(length, int | float)), 1.0)


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
