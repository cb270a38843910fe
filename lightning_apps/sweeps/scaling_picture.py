"""Pictures of a sweep: a final metric against a key of the grid, loss against tokens, loss by position."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from lightning_apps.figures.curves import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    VERMILLION,
    add_axes_px,
    label_log_axis,
    log_ticks,
    png_figure,
    printable,
    say_empty,
)
from lightning_apps.statistics.t_interval import Estimate
from lightning_apps.sweeps.scaling_fit import PowerLaw

Array = NDArray[np.float64]
CATEGORICAL = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY_BLUE, BLACK, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MAX_SERIES = 10
"""More lines than this cannot be told apart; the table has the rest."""
LEFT, BOTTOM, TOP, PANEL_WIDTH, PANEL_HEIGHT, GAP, LEGEND_WIDTH, COLUMNS = 95, 70, 60, 420, 340, 115, 350, 2
"""Pixels, and panels side by side; a third one leaves the fourth place to the legend."""


class MetricLine(NamedTuple):
    """A metric over the values of a grid key, for one combination of the other keys, which is its label."""

    label: str
    means: Mapping[float, Estimate]
    """Place on the horizontal axis -> mean over seeds."""
    points: Sequence[tuple[float, float]]
    """(place, value) of every run."""


class TokenLine(NamedTuple):
    """Loss against tokens of the runs of one combination, which is its label."""

    label: str
    curves: Sequence[tuple[Array, Array]]
    """Tokens and losses of each run's evaluations."""
    finals: Sequence[tuple[float, float]]
    """Tokens and final loss of each run."""
    law: PowerLaw | None
    """The fit to draw, if any."""


class PositionLine(NamedTuple):
    """Loss (T,) in nats by position in the window (tokens seen before, or means of groups), and its band, if any."""

    label: str
    position: Array
    mean: Array
    low: Array | None
    high: Array | None


def colours(number: int, *, ordered: bool) -> list[str]:
    """Colours for so many lines: from dark to light where they have an order, else Okabe and Ito's."""
    if ordered and number > 1:
        return [to_hex(matplotlib.colormaps["viridis"](share)) for share in np.linspace(0, 0.87, number)]
    return [CATEGORICAL[index % len(CATEGORICAL)] for index in range(number)]


def draw_final_metrics(
    path: Path, panels: Mapping[str, Sequence[MetricLine]], *, key: str, ticks: Mapping[float, str], log: bool,
    ordered: bool, joined: bool,
) -> None:  # fmt: skip
    """One panel a metric: a point for every run, the mean over seeds and its interval.

    Args:
        path: where the PNG is written.
        panels: metric -> lines, the same combinations in each.
        key: short name of the grid key on the horizontal axis.
        ticks: places on that axis -> their names.
        log: whether the axis is logarithmic.
        ordered: whether the lines have an order.
        joined: whether the values of the key have one, so that a line may join them.
    """
    number = max(len(lines) for lines in panels.values())
    with png_figure(path, *_size(len(panels))) as figure:
        for index, (metric, lines) in enumerate(panels.items()):
            axes = _panel(figure, index, len(panels), printable(metric, 40), metric_unit(metric))
            palette = colours(min(number, MAX_SERIES), ordered=ordered)
            places = np.array(sorted(ticks))
            axes.set_xlabel(printable(key, 40))
            if log:
                axes.set_xscale("log")
            step = float(np.diff(np.log(places) if log else places).min()) if len(places) > 1 else 1.0
            for rank, line in enumerate(lines[:MAX_SERIES]):
                slot = 0.8 * step / min(number, MAX_SERIES)
                shift = slot * (rank + 0.5) - 0.4 * step
                _draw_metric_line(
                    axes, line, palette[rank], MARKERS[rank % len(MARKERS)], shift, slot, log=log, joined=joined
                )
            margin = 0.6 * step
            low, high = float(places.min()), float(places.max())
            axes.set_xlim(*((low / np.exp(margin), high * np.exp(margin)) if log else (low - margin, high + margin)))
            axes.xaxis.set_major_locator(FixedLocator([float(place) for place in places]))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _nearest(x, ticks)))
            axes.yaxis.set_major_locator(MaxNLocator(6))
            axes.margins(y=0.08)
        note = "small: runs; large: mean over seeds\nbars: 95 % t interval of the mean"
        _legend(figure, len(panels), note, hidden=max(0, number - MAX_SERIES))


def _draw_metric_line(
    axes: Axes, line: MetricLine, colour: str, marker: str, shift: float, slot: float, *, log: bool, joined: bool
) -> None:
    def moved(x: float, aside: float = 0.0) -> float:
        return float(x * np.exp(shift + aside)) if log else x + shift + aside

    xs = sorted(line.means)
    means = [line.means[x].value for x in xs]
    axes.plot(
        [moved(x) for x in xs], means, marker=marker, markersize=6, color=colour, linewidth=1.4, label=line.label,
        linestyle="-" if joined else "none",
        zorder=3, markeredgecolor="white", markeredgewidth=0.8,
    )  # fmt: skip
    for x, mean in line.means.items():
        if mean.low is not None and mean.high is not None:
            reach = [[mean.value - mean.low], [mean.high - mean.value]]
            axes.errorbar([moved(x)], [mean.value], reach, color=colour, capsize=4, linewidth=1.4, zorder=2)
    # runs stand beside their mean, so that neither hides the other; a single one is its mean
    several = [(x, value) for x, value in line.points if line.means[x].n > 1]
    axes.plot(
        [moved(x, 0.35 * slot) for x, _ in several], [value for _, value in several], linestyle="none",
        marker=marker, markersize=3.5, color=colour, alpha=0.75, zorder=4,
    )  # fmt: skip


def draw_loss_against_tokens(path: Path, lines: Sequence[TokenLine], *, ordered: bool) -> None:
    """Evaluations of the longest runs, thin; final losses, marked; fits that can be believed, dashed."""
    with png_figure(path, LEFT + 640 + LEGEND_WIDTH + 50, TOP + PANEL_HEIGHT + BOTTOM) as figure:
        axes = add_axes_px(figure, LEFT, BOTTOM, 640, PANEL_HEIGHT)
        axes.set_title("Validation loss against tokens")
        axes.set_xlabel("training tokens")
        axes.set_ylabel("nats per token")
        shown = lines[:MAX_SERIES]
        points = [np.stack(curve, axis=1) for line in shown for curve in line.curves]
        points += [np.array(line.finals).reshape(-1, 2) for line in shown]
        tokens, losses = np.concatenate(points or [np.empty((0, 2))]).T
        label_log_axis(axes, losses)
        axes.grid(visible=True)
        if not len(tokens):
            say_empty(axes, "no evaluation yet")
            return
        _label_counts(axes, float(tokens.min()), float(tokens.max()))
        for rank, (line, colour) in enumerate(zip(shown, colours(len(shown), ordered=ordered), strict=True)):
            for curve in line.curves:
                axes.plot(*curve, color=colour, linewidth=0.8, alpha=0.5, zorder=2)
            label = line.label
            if line.law is not None:
                grid = np.geomspace(*line.law.tokens, 100)
                axes.plot(grid, line.law.loss(grid), "--", color=colour, linewidth=1.8, zorder=3)
                label += f"\nα = {line.law.exponent.value:.3g}"
                if line.law.exponent.low is not None:
                    label += f" ({line.law.exponent.low:.3g} to {line.law.exponent.high:.3g})"
                label += ", bends" if line.law.cautions else ""
            axes.plot(
                *np.array(line.finals).reshape(-1, 2).T, linestyle="none", marker=MARKERS[rank % len(MARKERS)],
                markersize=6, color=colour, markeredgecolor="white", markeredgewidth=0.7, zorder=4, label=label,
            )  # fmt: skip
        note = "marks: ends of runs\nthin: evaluations of the longest runs"
        if any(line.law is not None for line in shown):
            note += "\ndashed: fitted power law and its exponent α"
        _legend_at(figure, LEFT + 640 + 25, note, bottom=BOTTOM, hidden=len(lines) - len(shown))


def _label_counts(axes: Axes, low: float, high: float) -> None:
    axes.set_xscale("log")
    margin = max((high / low) ** 0.05, 1.05)
    low, high = low / margin, high * margin
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: short_count(count)))
    axes.xaxis.set_minor_locator(NullLocator())


def draw_in_context(path: Path, panels: Mapping[str, Sequence[PositionLine]], *, ordered: bool, band: str) -> None:
    """One panel for the chosen and one for the held-out categories, on one vertical scale.

    Args:
        path: where the PNG is written.
        panels: title -> lines, one for each combination of the grid.
        ordered: whether the lines have an order.
        band: what the bands are, in words.
    """
    names = list(dict.fromkeys(line.label for lines in panels.values() for line in lines))
    shown = dict(zip(names, colours(min(len(names), MAX_SERIES), ordered=ordered), strict=False))
    with png_figure(path, *_size(len(panels))) as figure:
        low, high = _limits([line for lines in panels.values() for line in lines if line.label in shown])
        for index, (name, lines) in enumerate(panels.items()):
            axes = _panel(figure, index, len(panels), printable(name, 40), "nats per token")
            axes.set_xlabel("position in the window (tokens seen)")
            axes.set_ylim(low, high)
            drawn = [line for line in lines if line.label in shown]
            for line in drawn:
                colour = shown[line.label]
                axes.plot(line.position, line.mean, color=colour, linewidth=1.5, label=line.label, zorder=3)
                if line.low is not None and line.high is not None:
                    axes.fill_between(line.position, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
            places = np.concatenate([line.position for line in drawn])
            _label_counts(axes, float(places.min()), float(places.max()))
        note = f"means of growing groups of positions\nband: {band}"
        _legend(figure, len(panels), note, hidden=len(names) - len(shown))


def _limits(lines: Sequence[PositionLine]) -> tuple[float, float]:
    """Vertical limits around the means, and around the bands as far as these stay within half of the means' range."""
    means = np.concatenate([line.mean for line in lines])
    low, high = float(np.nanmin(means)), float(np.nanmax(means))
    room = 0.5 * (high - low)
    bands = [end for line in lines for end in (line.low, line.high) if end is not None]
    band = np.concatenate(bands) if bands else means
    low, high = max(low - room, min(low, float(np.nanmin(band)))), min(high + room, max(high, float(np.nanmax(band))))
    margin = 0.04 * (high - low or 1.0)
    return low - margin, high + margin


def metric_unit(metric: str) -> str:
    """Unit of a metric, as far as its name tells."""
    units = {"loss": "nats per token", "bits_per_byte": "bits per byte", "_km": "km", "perplexity": "perplexity"}
    return next((unit for part, unit in units.items() if part in metric), printable(metric, 40))


def short_count(count: float) -> str:
    """`500 k`, `16 M`, `1.5 B`."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:.4g}"


def _nearest(x: float, ticks: Mapping[float, str]) -> str:
    return printable(ticks[min(ticks, key=lambda place: abs(place - x))], 16)


def _size(panels: int) -> tuple[int, int]:
    columns, rows = min(panels, COLUMNS), -(-panels // COLUMNS)
    beside = 30 if panels % COLUMNS and panels > 1 else LEGEND_WIDTH
    return LEFT + columns * (PANEL_WIDTH + GAP) - GAP + beside, rows * (TOP + PANEL_HEIGHT + BOTTOM)


def _corner(index: int, panels: int) -> tuple[int, int]:
    """Lower left corner of a panel in pixels."""
    rows_below = -(-panels // COLUMNS) - 1 - index // COLUMNS
    return LEFT + index % COLUMNS * (PANEL_WIDTH + GAP), BOTTOM + rows_below * (PANEL_HEIGHT + BOTTOM + TOP)


def _panel(figure: Figure, index: int, panels: int, title: str, unit: str) -> Axes:
    axes = add_axes_px(figure, *_corner(index, panels), PANEL_WIDTH, PANEL_HEIGHT)
    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.grid(visible=True)
    return axes


def _legend(figure: Figure, panels: int, note: str, *, hidden: int) -> None:
    if panels % COLUMNS and panels > 1:
        left, bottom = _corner(panels, panels)
        _legend_at(figure, left, note, bottom=bottom, hidden=hidden)
    else:
        right = LEFT + min(panels, COLUMNS) * (PANEL_WIDTH + GAP) - GAP
        _legend_at(figure, right + 25, note, bottom=_corner(0, panels)[1], hidden=hidden)


def _legend_at(figure: Figure, left_px: float, note: str, *, bottom: float, hidden: int) -> None:
    """Names of the lines in a free place, with a note below on what the marks mean."""
    width, height = figure.get_size_inches() * figure.dpi
    # a panel may lack a line that others have
    entries = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    handles, labels = list(entries.values()), list(entries)
    labels = ["\n".join(printable(part, 38) for part in label.split("\n")) for label in labels]
    if hidden:
        note += f"\nand {hidden} more in the table"
    figure.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(left_px / width, (bottom + PANEL_HEIGHT) / height),
        borderaxespad=0, labelspacing=0.7,
    )  # fmt: skip
    figure.text(left_px / width, bottom / height, note, fontsize=8.5, color=GREY, va="bottom", linespacing=1.3)
