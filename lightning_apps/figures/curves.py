"""What the pictures of all experiments share: style, curves over optimizer steps, labels that do not collide."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from datamodules.storage.atomic_files import written_aside

BLACK, ORANGE, SKY_BLUE, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
"""Palette of Okabe and Ito (2008), told apart under all common forms of colour blindness."""
GREY = "#6E6E6E"

STYLE: dict[Any, Any] = {  # Any: newer matplotlib types the keys, older does not
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same picture on every machine
    "font.size": 10.0,
    "text.parse_math": False,  # a `$` in a name is a dollar sign
    "text.usetex": False,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.labelsize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.7,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.4,
    "figure.facecolor": "white",
    "savefig.bbox": "standard",  # a user's "tight" would change the size in pixels
    "savefig.facecolor": "white",
    "savefig.transparent": False,
}
DPI = 125
TITLE_PAD = 24.0
"""Points between axes and a title that `legend_above` has room under."""
MAX_MARKED_EVALUATIONS = 60
"""More evaluations than this get a line without markers."""

_style_lock = threading.Lock()  # rcParams are one for the process


@contextmanager
def png_figure(path: Path, width_px: int, height_px: int) -> Iterator[Figure]:
    """A figure in the common style, written to `path` when the block ends well; the file is whole or not at all.

    No pyplot, so that no figure outlives the block and any thread may draw (one at a time).
    """
    with _style_lock, rc_context(STYLE):
        figure = Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI)
        canvas: Any = FigureCanvasAgg(figure)
        yield figure
        with written_aside(path) as file:
            figure.savefig(file, format="png", dpi=DPI)
        # figure and artists hold each other, and texts the renderer: its pixels, ten megabytes, would wait for the
        # garbage collector, which looks at a process as large as this one too rarely, and takes half a second
        canvas.renderer = None
        texts: list[Any] = figure.findobj(Text)
        for text in texts:
            text._renderer = None


def add_axes_px(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place of a figure, in pixels from its lower left corner."""
    total_width, total_height = figure.get_size_inches() * figure.dpi
    return figure.add_axes((left / total_width, bottom / total_height, width / total_width, height / total_height))


def series(rows: Sequence[dict[str, Any]], key: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps (n,) and values (n,) of the rows that logged `key`; a value that is NaN stays NaN."""
    logged = [(row["step"], row[key]) for row in rows if key in row]
    steps, values = zip(*logged, strict=True) if logged else ((), ())
    return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)


def smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred moving mean (n,) over an odd `window` up to n, cut off at both ends; NaN and infinity do not count."""
    finite = np.isfinite(values)
    ones = np.ones(window)
    total, count = (np.convolve(part, ones, "same") for part in (np.where(finite, values, 0.0), finite))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def drawable(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values a log axis can show; NaN, a gap in the line, for the others."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def draw_title(figure: Figure, title: str) -> None:
    """The title above a run's picture, cut where it is long."""
    figure.text(0.0125, 0.985, printable(title, 90, tail=24), fontsize=15, fontweight="bold", va="top")


def draw_losses(
    axes: Axes,
    rows: Sequence[dict[str, Any]],
    *,
    best_step: int | None = None,
    train_key: str = "train/loss",
    validation_key: str = "val/loss",
    unit: str = "nats per token",
) -> None:
    """Training loss, thin as logged and bold as moving mean, and validation loss with markers, on a log axis.

    Args:
        axes: to draw on.
        rows: what metrics.csv holds, a logged step each.
        best_step: optimizer step of the evaluation to mark; None marks none.
        train_key: column of the training loss.
        validation_key: column of the validation loss.
        unit: label of the vertical axis.
    """
    steps, losses = series(rows, train_key)
    validation_steps, validation = series(rows, validation_key)
    losses, validation = drawable(losses), drawable(validation)
    shown = np.concatenate([losses, validation])
    axes.set_title("Loss (cross-entropy)", pad=TITLE_PAD)
    axes.set_ylabel(unit)
    label_log_axis(axes, shown)
    label_steps(axes, rows)
    if np.isfinite(losses).any():
        window = 1 + 2 * (len(losses) // 100)
        marker = "o" if len(losses) == 1 else None
        axes.plot(steps, losses, color=SKY_BLUE, linewidth=0.8, alpha=0.55 if window > 1 else 1, marker=marker)
        label = "train" if window == 1 else f"train (bold: mean of {window})"
        axes.plot(steps, smooth(losses, window), color=BLUE, linewidth=1.6, label=label)
    draw_evaluations(axes, validation_steps, validation, color=VERMILLION, label="validation")
    draw_best(axes, validation_steps, validation, best_step, "best {:.4g}")
    if not np.isfinite(shown).any():
        say_empty(axes, "no finite loss yet")
    legend_above(axes)


def draw_training(
    figure: Figure,
    rows: Sequence[dict[str, Any]],
    *,
    losses: tuple[float, float, float, float],
    learning_rate: tuple[float, float, float, float],
    best_step: int | None = None,
    unit: str = "nats per token",
) -> None:
    """Losses over the strip of the learning rate, one axis of steps below; places are those of `add_axes_px`."""
    axes = add_axes_px(figure, *losses)
    draw_losses(axes, rows, best_step=best_step, unit=unit)
    axes.set_xlabel("")
    axes.tick_params(labelbottom=False)
    draw_learning_rate(add_axes_px(figure, *learning_rate), rows)


def draw_evaluations(
    axes: Axes, steps: NDArray[np.int64], values: NDArray[np.float64], *, color: str, label: str, dashed: bool = False
) -> None:
    """A curve over optimizer steps (n,) with a marker per evaluation; NaN leaves a gap, no finite value no curve."""
    if np.isfinite(values).any():
        marker = ("s" if dashed else "o") if len(steps) <= MAX_MARKED_EVALUATIONS else None
        style = "--" if dashed else "-"
        axes.plot(steps, values, style, color=color, marker=marker, markersize=4, linewidth=1.6, label=label, zorder=3)


def draw_best(
    axes: Axes, steps: NDArray[np.int64], values: NDArray[np.float64], best_step: int | None, label: str
) -> None:
    """A dotted line at the best of the steps (n,), and a ring around its value; `label` may be `best {:.3f}`."""
    if best_step is None:
        return
    axes.axvline(best_step, color=GREY, linestyle=":", linewidth=1.2, zorder=1)
    at_best = values[steps == best_step]
    if np.isfinite(at_best).any():
        axes.plot(
            [best_step], at_best[-1:], "o", markersize=10, markerfacecolor="none", markeredgecolor=BLACK,
            markeredgewidth=1.4, zorder=4, label=label.format(at_best[-1]),
        )  # fmt: skip


def draw_learning_rate(axes: Axes, rows: Sequence[dict[str, Any]], *, key: str = "train/learning_rate") -> None:
    """Learning rate over steps, from zero, as a strip that needs little height."""
    steps, rates = series(rows, key)
    rates = np.where(np.isfinite(rates), rates, np.nan)
    top = float(np.nanmax(rates, initial=0.0)) or 1.0
    axes.set_ylim(0, top * 1.12)
    axes.set_yticks([0, top], labels=["0", f"{top:.2g}"])
    axes.set_title("learning rate", fontsize=9.5, fontweight="normal", pad=3)
    label_steps(axes, rows)
    axes.fill_between(steps, 0, rates, color=GREY, alpha=0.25, linewidth=0)
    axes.plot(steps, rates, color=GREY, linewidth=1.2, marker="o" if len(rates) == 1 else None)


def label_steps(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Horizontal axis of optimizer steps, the same for every panel drawn from `rows`."""
    last = max((row["step"] for row in rows), default=0)
    axes.set_xlim(0, max(last, 1) * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.set_xlabel("optimizer step")
    axes.grid(visible=True)


def label_log_axis(axes: Axes, values: NDArray[np.float64]) -> None:
    """Vertical log axis around the values (n,), with decimal ticks: matplotlib labels powers of ten only.

    Comes before the curves: limits found from a single value would be singular.
    """
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 10.0)
    margin = max((high / low) ** 0.06, 1.02)
    low, high = low / margin, high * margin
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def log_ticks(low: float, high: float) -> list[float]:
    """Three to eight round numbers between two positive limits."""
    exponents = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    stride = 1 + len(exponents) // 8
    candidates = [[float(f"1e{exponent}") for exponent in exponents if exponent % stride == 0]]
    candidates += [[float(f"{digit}e{exponent}") for exponent in exponents for digit in (1, 2, 5)]]
    for ticks in candidates:
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 3:
            return inside
    return [float(tick) for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]


def draw_references(axes: Axes, references: Sequence[tuple[float, str, str]]) -> None:
    """Dashed horizontal lines, named to the right of the axes; the names move apart where lines are close.

    Args:
        axes: with final limits.
        references: height in data units, name in two lines, and colour of each.
    """
    frame = axes.get_window_extent()
    heights = [float(axes.transData.transform((1, value))[1] - frame.y0) / frame.height for value, _, _ in references]
    line_height = 20 / frame.height
    label_heights = spread(heights, 2.1 * line_height, line_height, 1 - line_height)
    for (value, name, color), height, label_height in zip(references, heights, label_heights, strict=True):
        axes.axhline(value, color=color, linestyle=(0, (5, 2.5)), linewidth=1.5, zorder=2)
        arrow = {"arrowstyle": "-", "color": color, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)}
        axes.annotate(
            name, (1, height), (1.035, label_height), xycoords="axes fraction", fontsize=9.5, va="center",
            linespacing=1.05, arrowprops=arrow,
        )  # fmt: skip


def legend_above(axes: Axes) -> None:
    """Legend in one line between title and axes, where it hides no curve."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), borderpad=0, borderaxespad=0.4
        )


def say_empty(axes: Axes, text: str) -> None:
    """Words in the middle of axes that have nothing to show."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=12).set_bbox(
        {"facecolor": "white", "edgecolor": "none"}
    )


def printable(text: str, max_length: int = 30, *, tail: int = 0) -> str:
    """The text in one line, with U+FFFD where the font lacks a character (matplotlib would warn).

    Shortened to `max_length` characters where it is longer, its last `tail` ones kept.
    """
    text = " ".join(text.split())
    if len(text) > max_length:
        text = text[: max_length - 1 - tail].rstrip() + "…" + text[len(text) - tail :]
    return "".join(char if _has_glyph(char) else "\ufffd" for char in text)


@cache
def _has_glyph(char: str) -> bool:
    return bool(get_font(findfont("DejaVu Sans")).get_char_index(ord(char)))


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions moved as little as keeps them `gap` apart, in their order, between `low` and `high`.

    Neighbours that collide share a block around the mean of their wishes. More labels than fit are evenly spaced.
    """
    if not positions:
        return []
    gap = min(gap, (high - low) / max(len(positions) - 1, 1))
    order = np.argsort(positions, kind="stable")
    ranks = gap * np.arange(len(positions))
    starts = isotonic_regression(np.asarray(positions)[order] - ranks).x
    placed = np.clip(starts, low, high - ranks[-1]) + ranks
    moved = np.empty(len(positions))
    moved[order] = placed
    return [float(position) for position in moved]


def place_labels(
    anchors: NDArray[np.float64],
    sizes: NDArray[np.float64],
    obstacles: NDArray[np.float64],
    width: float,
    height: float,
) -> list[NDArray[np.float64]]:
    """Lower left corners (2,) for boxes near their anchors, inside a frame, apart from each other if there is room.

    Args:
        anchors: (n, 2) points in pixels that the labels belong to.
        sizes: (n, 2) width and height of each label.
        obstacles: (m, 2) points that a label should rather not cover.
        width: pixels of the frame, whose lower left corner is the origin.
        height: pixels of the frame.
    """
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    radii = np.repeat([14.0, 35.0, 60.0, 90.0, 130.0, 180.0], len(angles))[:, None]
    rays = np.tile(directions, (len(radii) // len(angles), 1))
    placed: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    leaders = np.empty((0, 2))
    along = np.linspace(0, 1, 12)[:, None, None]
    for anchor, size in zip(anchors, sizes, strict=True):
        low = anchor + rays * (radii + size / 2) - size / 2
        low = np.clip(low, 4, np.maximum(np.array([width, height]) - size - 4, 4))
        high = low + size
        nearest = np.clip(anchor, low, high)
        leader = anchor + along * (nearest - anchor)  # (12, candidates, 2)
        cost = np.linalg.norm(nearest - anchor, axis=-1)
        for points, weight in ((obstacles, 8.0), (anchors, 200.0), (leaders, 200.0)):
            cost += weight * ((low[:, None] - 3 <= points) & (points <= high[:, None] + 3)).all(axis=-1).sum(axis=-1)
        for other_low, other_high in placed:
            cost += 1e4 * ((low < other_high + 6) & (other_low - 6 < high)).all(axis=-1)
            cost += 200 * ((other_low <= leader) & (leader <= other_high)).all(axis=-1).sum(axis=0)
        best = int(cost.argmin())
        placed.append((low[best], high[best]))
        leaders = np.concatenate([leaders, leader[:, best]])
    return [low for low, _ in placed]
