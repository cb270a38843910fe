"""How far answers of `location` are off, by continent and by how many training cities share the city's cell."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from lightning_apps.experiments.location.great_circle import ANTIPODE_KM
from lightning_apps.figures.curves import BLACK, BLUE, ORANGE, TITLE_PAD, VERMILLION, legend_above, say_empty
from lightning_apps.statistics.bootstrap import bootstrap_interval

SMALLEST_KM = 1.0
"""Distances below are drawn here: a square of milliradians is 6 km wide, and zero has no place on a log axis."""
CONTINENTS = {
    "AF": "Africa",
    "AN": "Antarctica",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}


@dataclass(frozen=True)
class Group:
    """Answers about cities that have something in common."""

    name: str
    distances_km: NDArray[np.float64]
    """(n,) of each answer; one that names no place counts 20,015."""
    median_km: float
    interval_km: tuple[float, float]
    """95 % percentile bootstrap interval of the median."""
    cell_mean_km: float | None
    """Median distance of the mean of the training cities in each cell, as far as a spatial id goes."""


def by_continent(predictions: Sequence[dict[str, Any]]) -> list[Group]:
    """Groups of rows of predictions.jsonl, most cities first; rows of older runs, which lack it, are left out."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in predictions:
        if row.get("continent") is not None:
            rows[CONTINENTS.get(row["continent"], "elsewhere")].append(row)
    return [_group(name, found) for name, found in sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))]


def by_density(predictions: Sequence[dict[str, Any]]) -> list[Group]:
    """Groups of rows by the training cities in the city's cell: 0, 1, 2 to 3, 4 to 7 and so on."""
    rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in predictions:
        if row.get("cities_in_cell") is not None:
            rows[int(row["cities_in_cell"]).bit_length()].append(row)
    return [_group(_range_of(bits), found) for bits, found in sorted(rows.items())]


def _range_of(bits: int) -> str:
    """The numbers that many binary digits can write, the first one being 1."""
    return str(bits) if bits < 2 else f"{2 ** (bits - 1)} to {2**bits - 1}"


def _group(name: str, rows: Sequence[dict[str, Any]]) -> Group:
    distances = np.array([ANTIPODE_KM if row["score"] is None else row["score"] for row in rows], dtype=np.float64)
    limits = [row["cell_mean_km"] for row in rows]
    return Group(
        name=name,
        distances_km=distances,
        median_km=float(np.median(distances)),
        interval_km=bootstrap_interval(distances, np.median),
        cell_mean_km=None if None in limits else float(np.median(limits)),
    )


def draw_groups(axes: Axes, groups: Sequence[Group], *, title: str, kind: str) -> None:
    """A line for each group: its answers as dots, their median with its interval, and what the id allows.

    Args:
        axes: to draw on.
        groups: from top to bottom.
        title: above the axes.
        kind: what the groups' names are.
    """
    axes.set_title(title, pad=TITLE_PAD)
    axes.set_xscale("log")
    shown = [distance for group in groups for distance in group.distances_km.tolist()]
    low, high = max(min(shown, default=100.0), SMALLEST_KM), max(shown, default=1000.0)
    axes.set_xlim(low / 1.4, max(high, 10 * low) * 1.4)
    axes.xaxis.set_major_locator(FixedLocator([10.0**power for power in range(5)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda km, _: f"{km:,.0f} km"))
    axes.set_ylim(len(groups) - 0.4 if groups else 1, -0.6)
    axes.set_yticks(range(len(groups)), labels=[f"{group.name} ({len(group.distances_km)})" for group in groups])
    axes.set_ylabel(kind)
    axes.grid(visible=True, axis="x")
    for row, group in enumerate(groups):
        is_first = row == 0  # the legend names each mark once
        dots = np.maximum(group.distances_km, SMALLEST_KM)
        axes.plot(
            dots, np.full(len(dots), row), "o", color=BLUE, alpha=0.25, markersize=4, markeredgewidth=0,
            label="a city" if is_first else None,
        )  # fmt: skip
        interval = [max(end, SMALLEST_KM) for end in group.interval_km]
        axes.plot(interval, [row, row], color=VERMILLION, linewidth=2.5, solid_capstyle="butt", zorder=3)
        axes.plot(
            [max(group.median_km, SMALLEST_KM)], [row], "o", color=VERMILLION, markersize=6, zorder=4,
            label="median with 95 % interval" if is_first else None,
        )  # fmt: skip
        if group.cell_mean_km is not None:
            axes.plot(
                [max(group.cell_mean_km, SMALLEST_KM)], [row], "D", markerfacecolor=ORANGE, markeredgecolor=BLACK,
                markeredgewidth=0.8, markersize=6, zorder=5, label="hint limit, cell mean" if is_first else None,
            )  # fmt: skip
    if not groups:
        say_empty(axes, "no answers yet")
    legend_above(axes)
