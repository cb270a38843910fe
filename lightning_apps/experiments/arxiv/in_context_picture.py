"""Loss by position in the window."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lightning_apps.experiments.arxiv.in_context_loss import GroupLoss, WindowLosses
from lightning_apps.figures.curves import (
    BLUE,
    TITLE_PAD,
    VERMILLION,
    add_axes_px,
    legend_above,
    png_figure,
    printable,
)

WIDTH_PX, HEIGHT_PX = 1600, 620
GROUP_STYLE = {"chosen": (BLUE, "-", "trained categories"), "held_out": (VERMILLION, "--", "held-out categories")}


def draw_in_context(path: Path, *, windows: WindowLosses, measured: dict[str, GroupLoss], title: str) -> None:
    """Write a PNG of 1600 x 620 pixels: curves of both groups with their band, and loss of each category.

    Args:
        path: where to.
        windows: what was measured.
        measured: by group, see metrics.in_context.measure.
        title: above everything.
    """
    with png_figure(path, WIDTH_PX, HEIGHT_PX) as figure:
        figure.text(0.012, 0.965, printable(title, 100), fontsize=13, fontweight="bold", va="center")
        draw_curves(add_axes_px(figure, 85, 75, 800, 440), measured)
        draw_categories(add_axes_px(figure, 1060, 75, 500, 440), windows, measured)


def draw_curves(axes: Axes, measured: dict[str, GroupLoss]) -> None:
    """Mean loss by position with its 95 % band, one curve for each group."""
    axes.set_title("Loss by position in the window", pad=TITLE_PAD)
    for name, (color, style, label) in GROUP_STYLE.items():
        if name not in measured:
            continue
        group = measured[name]
        position = np.arange(1, len(group.mean) + 1)
        axes.fill_between(position, group.low, group.high, color=color, alpha=0.18, linewidth=0)
        axes.plot(
            position, group.mean, style, color=color, linewidth=1.6, label=f"{label} ({group.num_windows:,} windows)"
        )
    axes.set_xlabel("tokens of context before the predicted one")
    axes.set_ylabel("nats per token, with 95 % band")
    axes.set_xlim(0, len(measured["chosen"].mean) + 1)
    axes.grid(visible=True)
    legend_above(axes)


def draw_categories(axes: Axes, windows: WindowLosses, measured: dict[str, GroupLoss]) -> None:
    """Perplexity of each category with its interval; trained ones filled, held-out ones hollow."""
    axes.set_title("Perplexity by category", pad=TITLE_PAD)
    labelled: set[str] = set()
    for place, name in enumerate(reversed(windows.categories)):
        chosen = windows.categories.index(name) < windows.num_chosen
        value, low, high = measured[name].perplexity
        color, label = (BLUE, "trained") if chosen else (VERMILLION, "held out")
        axes.plot([low, high], [place, place], color=color, linewidth=2.2, solid_capstyle="butt")
        axes.plot(
            [value],
            [place],
            marker="o",
            markersize=7,
            color=color,
            markerfacecolor=color if chosen else "white",
            linestyle="none",
            label=None if label in labelled else label,
        )
        labelled.add(label)
    names = [printable(name, 16) for name in reversed(windows.categories)]
    axes.set_yticks(range(len(names)), labels=names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel("perplexity, 95 % interval over documents")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    legend_above(axes)
    axes.grid(visible=True, axis="x")
