"""Curves of metrics.csv as the page's script wants them: charts of named series, thinned to what a screen can show."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lightning_apps.run_files.metrics import headlines_first, is_headline, is_interval_end

MOST_POINTS = 1_200
MOST_CHARTS = 60
FIRST_CHARTS = 6
"""Charts that are not folded away."""
HEALTH = ("train/learning_rate", "train/grad_norm", "train/tokens_per_s")
SPLITS = ("train", "val", "test")
"""In the order of their colours."""
Rows = Sequence[Mapping[str, Any]]


def charts(runs: Sequence[tuple[str, Rows]], *, monitor: str | None) -> list[dict[str, Any]]:
    """One chart for each metric: the splits of one run over each other, or several runs, without their tests.

    Args:
        runs: names, and rows of metrics.csv.
        monitor: the metric that chose the best; its chart stands first.
    """
    names = list(dict.fromkeys(key for _, rows in runs for row in rows for key in row if key != "step"))
    drawn: dict[str, list[dict[str, Any]]] = {}
    kept = [key for key in names if shown(key, names) and (len(runs) == 1 or not key.startswith("test/"))]
    ordered = headlines_first(kept, monitor=monitor)
    for name in sorted(ordered, key=lambda name: _group(name, monitor)):
        split, _, metric = name.partition("/")
        for place, (label, rows) in enumerate(runs):
            points = [(row["step"], row[name]) for row in rows if name in row]
            if not points:
                continue
            title, series = (metric, split) if len(runs) == 1 else (name, label)
            colour = SPLITS.index(split) if len(runs) == 1 and split in SPLITS else place
            drawn.setdefault(title, []).append({"name": series, "colour": colour, "points": thinned(points)})
    return [{"title": title, "series": series} for title, series in drawn.items()][:MOST_CHARTS]


def shown(name: str, names: Collection[str]) -> bool:
    """Whether a metric is drawn: no end of an interval, none of a single class."""
    return (name.startswith("train/") or name.count("/") < 2) and not is_interval_end(name, names)


def _group(name: str, monitor: str | None) -> int:
    """Headlines, then what tells whether training is healthy, then all others."""
    if is_headline(name, monitor=monitor):
        return 0
    return 1 if name in HEALTH else 2


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float | None]]:
    """Lowest and highest value of each stretch of a long series; None where a value is not finite."""
    if len(points) > MOST_POINTS:
        size = math.ceil(2 * len(points) / MOST_POINTS)
        kept: list[tuple[int, float]] = []
        for start in range(0, len(points), size):
            stretch = points[start : start + size]
            finite = [point for point in stretch if math.isfinite(point[1])] or stretch[:1]
            ends = {min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])}
            kept += sorted(ends)
        points = kept
    return [(step, value if math.isfinite(value) else None) for step, value in points]
