"""What mixing more categories does to text that stays the same: the categories that every run of a seed trained on.

A run's own loss is measured on the categories it was trained on, so that it changes with K for two reasons at once.
Categories are chosen nested in K: those of the smallest K are in every run of the seed, and their test loss compares.
"""

from dataclasses import dataclass

import numpy as np

from lightning_apps.statistics.t_interval import Estimate, mean_interval, slope_interval
from lightning_apps.sweeps.results import IN_CONTEXT_FILES, REPEAT, JobResult, SweepResults, sort_key

CATEGORIES = "data.num_categories"


@dataclass(frozen=True)
class SharedText:
    """Loss on the categories that all runs of a seed share, against K.

    Attributes:
        categories: seed -> names of the shared categories.
        means: K -> mean over seeds, nats per token.
        slope: change for each further category; None where no seed has two runs.
    """

    categories: dict[str, list[str]]
    means: dict[int, Estimate]
    slope: Estimate | None


def shared_text(results: SweepResults) -> SharedText | None:
    """Measure it for runs of the largest budget; None where the sweep does not vary K, or has no tables."""
    if CATEGORIES not in results.factors:
        return None
    budget = results.budget_key
    jobs = results.completed
    if budget:
        largest = max((job.values[budget] for job in jobs), default=None, key=sort_key)
        jobs = [job for job in jobs if job.values[budget] == largest]
    seeds: dict[str, list[tuple[int, dict[str, float], set[str]]]] = {}
    for job in jobs:
        if (found := _category_losses(job)) is not None:
            k = job.values[CATEGORIES]
            k = len(found[1]) if k is None else int(k)  # null takes all
            seeds.setdefault(str(job.values.get(REPEAT)), []).append((k, *found))
    lines: dict[object, list[tuple[float, float]]] = {}
    shared: dict[str, list[str]] = {}
    for seed, runs in seeds.items():
        names = set.intersection(*(chosen for _, _, chosen in runs))
        if len(runs) > 1 and names:
            shared[seed] = sorted(names)
            lines[seed] = [(float(k), float(np.mean([losses[name] for name in names]))) for k, losses, _ in runs]
    by_k: dict[int, list[float]] = {}
    for points in lines.values():
        for k, loss in points:
            by_k.setdefault(int(k), []).append(loss)
    if not by_k:
        return None
    means = {k: mean_interval(by_k[k]) for k in sorted(by_k)}
    return SharedText(shared, means, slope_interval(lines))


def _category_losses(job: JobResult) -> tuple[dict[str, float], set[str]] | None:
    """Mean loss of each category in a run's table, and the names of those it was trained on."""
    for name in IN_CONTEXT_FILES:
        path = job.directory / name
        if path.is_file():
            with np.load(path, allow_pickle=False) as arrays:
                if "category_mean" not in arrays:
                    continue
                names = arrays["categories"].tolist()
                losses = dict(zip(names, arrays["category_mean"].mean(axis=1).tolist(), strict=True))
                chosen = {name for name, flag in zip(names, arrays["category_chosen"], strict=True) if flag}
            return losses, chosen
    return None
