"""Pictures of a search: what came out trial by trial, which key decided, and how values and results go together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from lightning_apps.figures.curves import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    add_axes_px,
    draw_title,
    drawable,
    legend_above,
    png_figure,
    printable,
)
from lightning_apps.sweeps.grid import short_keys

Trial = Mapping[str, Any]
Picture = tuple[Path, str, str]
"""File, text in place of the picture, caption."""


def draw_search(search: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], folder: Path) -> list[Picture]:
    """Draw what there are trials for, into a folder; returns the pictures in the order of the page.

    Args:
        search: of the sweep's state.
        grid: of the sweep's state: key -> its space, in words.
        folder: where the pictures go.
    """
    trials = {int(number): trial for number, trial in search.get("trials", {}).items()}
    complete = {number: trial for number, trial in sorted(trials.items()) if trial["state"] == "complete"}
    if not complete:
        return []
    pictures = []
    for index, (metric, mode) in enumerate(search["objective"].items()):
        name = metric.replace("/", "_")
        said = f"{metric} of every trial, in the order of their start; the line is the best so far"
        path = folder / f"search_history_{name}.png"
        draw_history(path, trials, index, metric, mode)
        pictures.append((path, f"Chart. {said}.", f"{said}."))
        if shares := search.get("importance", {}).get(metric):
            said = f"How much each key decided about {metric}, as shares of 1 (PED-ANOVA)"
            path = folder / f"search_importance_{name}.png"
            draw_importance(path, shares, metric)
            pictures.append((path, f"Chart. {said}.", f"{said}."))
        said = f"A line for every complete trial, through its values and its {metric}; dark lines are better"
        path = folder / f"search_parallel_{name}.png"
        draw_parallel(path, list(complete.values()), grid, index, metric, mode)
        pictures.append((path, f"Chart. {said}.", f"{said}."))
    return pictures


def draw_history(path: Path, trials: Mapping[int, Trial], index: int, metric: str, mode: str) -> None:
    """Values over the trials' numbers; of a pruned one its last evaluation, of a failed one a mark at the edge."""
    points: dict[str, list[tuple[int, float]]] = {"complete": [], "pruned": [], "fail": []}
    for number, trial in sorted(trials.items()):
        if trial["state"] == "complete":
            points["complete"].append((number, trial["values"][index]))
        elif trial["state"] == "pruned" and trial["evaluations"]:
            points["pruned"].append((number, trial["evaluations"][-1]))
        elif trial["state"] == "fail":
            points["fail"].append((number, 0.02))
    with png_figure(path, 1200, 700) as figure:
        draw_title(figure, f"{metric} ({mode})")
        axes = add_axes_px(figure, 120, 80, 1040, 520)
        for state, colour, marker in (("complete", BLUE, "o"), ("pruned", ORANGE, "v"), ("fail", BLACK, "x")):
            if points[state]:
                numbers, values = np.array(points[state]).T
                transform = axes.get_xaxis_transform() if state == "fail" else axes.transData
                label = {"fail": "failed"}.get(state, state)
                axes.plot(
                    numbers, drawable(values), marker, color=colour, markersize=5, label=label, transform=transform
                )
        numbers, values = np.array(points["complete"]).T
        best = np.minimum.accumulate(values) if mode == "min" else np.maximum.accumulate(values)
        axes.step(numbers, drawable(best), where="post", color=BLUE, label="best so far")
        axes.set_xlabel("trial")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(axes)


def draw_importance(path: Path, shares: Mapping[str, float], metric: str) -> None:
    """A bar for every key, the largest at the top."""
    names, short = sorted(shares, key=lambda key: shares[key]), short_keys(shares)
    with png_figure(path, 1000, 160 + 44 * len(names)) as figure:
        draw_title(figure, f"what decided about {metric}")
        axes = add_axes_px(figure, 260, 60, 700, 20 + 44 * len(names))
        axes.barh([printable(short[name], 28) for name in names], [shares[name] for name in names], color=BLUE)
        axes.set_xlim(0, 1)


def draw_parallel(
    path: Path, trials: Sequence[Trial], grid: Mapping[str, Sequence[Any]], index: int, metric: str, mode: str
) -> None:
    """One axis a key and one for the result; the better a trial, the darker its line, and the later it is drawn."""
    results = np.array([trial["values"][index] for trial in trials], dtype=np.float64)
    order = np.argsort(results if mode == "max" else -results, kind="stable")  # the best comes last
    names, short = list(grid), short_keys(grid)
    columns = [_positions([trial["params"][key] for trial in trials], log="log" in str(grid[key][0])) for key in names]
    columns.append(_positions(list(results), log=False))
    labels = [printable(short[key], 24) for key in names] + [printable(metric, 24)]
    colours = matplotlib.colormaps["Blues"](np.linspace(0.25, 1.0, len(order)))
    with png_figure(path, max(800, 240 * len(columns)), 700) as figure:
        axes = add_axes_px(figure, 60, 100, max(800, 240 * len(columns)) - 200, 540)
        for rank, row in enumerate(order):
            axes.plot(range(len(columns)), [column[0][row] for column in columns], color=colours[rank], linewidth=1.5)
        for place, (_, ticks) in enumerate(columns):
            _draw_scale(axes, place, ticks)
        axes.set_xticks(range(len(columns)), labels)
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_locator(NullLocator())
        for side in ("left", "right", "top", "bottom"):
            axes.spines[side].set_visible(False)


def _draw_scale(axes: Axes, place: int, ticks: Mapping[str, float]) -> None:
    axes.axvline(place, color=GREY, linewidth=0.8)
    for text, height in ticks.items():
        label = axes.annotate(text, (place, height), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1})


def _positions(values: Sequence[Any], *, log: bool) -> tuple[list[float], dict[str, float]]:
    """Heights from 0 to 1 of values on their axis, and what stands beside it at which height."""
    if any(isinstance(value, str) for value in values):
        words = sorted(set(map(str, values)))
        heights = dict(zip(words, np.linspace(0, 1, len(words)) if len(words) > 1 else [0.5], strict=True))
        return [heights[str(value)] for value in values], {printable(word, 16): heights[word] for word in words}
    numbers = np.array(values, dtype=np.float64)
    scaled = np.log(numbers) if log else numbers
    low, high = scaled.min(), scaled.max()
    if low == high:
        return [0.5] * len(values), {f"{numbers[0]:.4g}": 0.5}
    ticks = {}
    for height in (0.0, 0.5, 1.0):
        at = low + height * (high - low)
        ticks[f"{np.exp(at) if log else at:.4g}"] = height
    return list((scaled - low) / (high - low)), ticks
