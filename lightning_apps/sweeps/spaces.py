"""From axes in Hydra's words to the distributions and samplers of Optuna, which is imported here and not before."""

import importlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from lightning_apps.config.override_value import override_value
from lightning_apps.errors import ConfigError
from lightning_apps.sweeps.grid import Axis, SweepSettings

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

MOST_TRIALS = 2**31
"""Where time is the budget."""


def check_search(settings: SweepSettings, axes: Mapping[str, Axis]) -> None:
    """Reject what is no search; Optuna is not needed for it.

    Raises:
        ConfigError: with the key, what is allowed and the remedy.
    """
    for package in ("optuna", *(("cmaes",) if settings.sampler == "cmaes" else ())):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"sweep.search={settings.search} needs the package {package}: pip install 'lightning-apps[optuna]'"
            )
    if not axes:
        raise ConfigError(
            "sweep.search: nothing is searched; give a space, --multirun 'optimizer.lr=tag(log,interval(1e-4,1e-2))'"
        )
    for axis in axes.values():
        _check_space(axis)
    if settings.trials is None and settings.max_time is None:
        raise ConfigError("sweep.trials=null: give sweep.max_time, or a number of trials")
    if settings.trials is not None and settings.trials < 1:
        raise ConfigError(f"sweep.trials={settings.trials}: must be at least 1")
    endless = [axis for axis in axes.values() if axis.bounds is not None]
    if settings.sampler == "grid" and endless:
        raise ConfigError(
            f"sweep.sampler=grid: {endless[0].key}={endless[0].text} has no values to list; use range or choice, or "
            "another sampler"
        )
    if settings.sampler == "cmaes" and not any(axis.bounds or axis.step for axis in axes.values()):
        raise ConfigError("sweep.sampler=cmaes searches numbers, and no axis is an interval or a range; use tpe")


def _check_space(axis: Axis) -> None:
    written = f"{axis.key}={axis.text}"
    if unknown := sorted(axis.tags - {"log"}):
        raise ConfigError(f"{written}: unknown tag {unknown[0]}; tag(log, ...) is the one that a search knows")
    is_log = "log" in axis.tags
    if is_log and axis.bounds is None and axis.step is None:
        raise ConfigError(f"{written}: only an interval or a range can be logarithmic")
    if is_log and axis.step is not None and axis.step != 1:
        raise ConfigError(f"{written}: a range with steps cannot be logarithmic; use an interval")
    if axis.bounds is not None:
        low, high = axis.bounds
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(f"{written}: the lower end must be below the upper one")
        if is_log and low <= 0:
            raise ConfigError(f"{written}: a logarithmic interval begins above 0")
    elif is_log and min(axis.values) <= 0:
        raise ConfigError(f"{written}: a logarithmic range begins above 0")


def distribution(axis: Axis) -> "BaseDistribution":
    """What Optuna calls this axis; values that are no numbers are the words that set them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    is_log = "log" in axis.tags
    if axis.bounds is not None:
        low, high = axis.bounds
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=is_log)
        return FloatDistribution(low, high, log=is_log)
    if axis.step is not None:
        low, high = min(axis.values), max(axis.values)
        if all(isinstance(value, int) for value in axis.values):
            return IntDistribution(low, high, log=is_log, step=abs(int(axis.step)))
        return FloatDistribution(low, high, step=abs(axis.step), log=is_log)
    return CategoricalDistribution([override_value(value) for value in axis.values])


def read_values(params: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a trial: its words are read, its numbers are numbers."""
    parser = OverridesParser.create()
    return {
        key: parser.parse_override(f"x={value}").value() if isinstance(value, str) else value
        for key, value in params.items()
    }


def make_sampler(settings: SweepSettings, axes: Mapping[str, Axis], number: int) -> "BaseSampler":
    """The sampler of one trial, seeded by the trial's number: what is drawn does not depend on earlier starts."""
    import numpy as np
    from optuna.samplers import CmaEsSampler, GridSampler, RandomSampler, TPESampler

    seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
    if settings.sampler == "random":
        return RandomSampler(seed=seed)
    if settings.sampler == "cmaes":
        return CmaEsSampler(seed=seed, warn_independent_sampling=False)
    if settings.sampler == "grid":
        words = {key: [_as_stored(axis, value) for value in axis.values] for key, axis in axes.items()}
        return GridSampler(words, seed=settings.seed)  # it numbers the combinations by its seed
    return TPESampler(seed=seed, constant_liar=True)  # jobs that run count as bad, so that others are tried meanwhile


def _as_stored(axis: Axis, value: Any) -> Any:
    return value if axis.step is not None else override_value(value)


def make_pruner(settings: SweepSettings) -> "BasePruner":
    """What gives jobs up; the unit of a resource is an evaluation."""
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    if settings.pruner == "median":
        return MedianPruner()
    return HyperbandPruner() if settings.pruner == "hyperband" else NopPruner()
