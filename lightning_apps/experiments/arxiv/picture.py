"""Picture of an `arxiv` run: losses, what the context gives, categories, learning rate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from lightning_apps.experiments.arxiv.in_context_loss import GroupLoss, WindowLosses
from lightning_apps.experiments.arxiv.in_context_picture import draw_categories, draw_curves
from lightning_apps.figures.curves import (
    BLUE,
    ORANGE,
    TITLE_PAD,
    VERMILLION,
    add_axes_px,
    draw_evaluations,
    draw_learning_rate,
    draw_losses,
    drawable,
    label_steps,
    legend_above,
    png_figure,
    printable,
    series,
)

WIDTH_PX, HEIGHT_PX = 1600, 1160


def draw_arxiv_summary(
    path: Path,
    *,
    rows: list[dict[str, Any]],
    windows: WindowLosses,
    measured: dict[str, GroupLoss],
    title: str,
    best_step: int | None = None,
) -> None:
    """Write the picture of a run, a PNG of 1600 x 1160 pixels.

    Args:
        path: where the PNG is written.
        rows: what metrics.csv holds, a logged step each.
        windows: losses of the last evaluation's windows.
        measured: group -> what the last evaluation measured of it.
        title: above everything; cut where it is too long.
        best_step: optimizer step of the evaluation to mark; None marks none.
    """
    with png_figure(path, WIDTH_PX, HEIGHT_PX) as figure:
        figure.text(0.012, 0.98, printable(title, 150, tail=24), fontsize=13, fontweight="bold", va="center")
        losses = add_axes_px(figure, 85, 715, 640, 340)
        draw_losses(losses, rows, best_step=best_step)
        steps, held_out = series(rows, "val/held_out_loss")
        draw_evaluations(losses, steps, drawable(held_out), color=ORANGE, label="held out", dashed=True)
        legend_above(losses)
        draw_learning_rate(add_axes_px(figure, 85, 590, 640, 60), rows)
        draw_bits_per_byte(add_axes_px(figure, 880, 590, 680, 465), rows)
        draw_curves(add_axes_px(figure, 85, 70, 640, 400), measured)
        draw_categories(add_axes_px(figure, 960, 70, 600, 400), windows, measured)


def draw_bits_per_byte(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Bits per byte of text, which compares between tokenizers, and how often a token was repeated."""
    axes.set_title("Bits per byte of text", pad=TITLE_PAD)
    steps, chosen = series(rows, "val/bits_per_byte")
    draw_evaluations(axes, steps, chosen, color=BLUE, label="trained categories")
    steps, held_out = series(rows, "val/held_out_bits_per_byte")
    draw_evaluations(axes, steps, held_out, color=VERMILLION, label="held-out categories", dashed=True)
    label_steps(axes, rows)
    axes.set_ylabel("bits per byte")
    repeated = series(rows, "train/repeats")[1]
    tokens = series(rows, "train/tokens")[1]
    if len(repeated) and len(tokens) and np.isfinite(repeated[-1]):
        text = f"{tokens[-1]:,.0f} tokens seen, each token of text {repeated[-1]:.1f} times"
        axes.text(0.02, 0.03, text, transform=axes.transAxes, ha="left", va="bottom", fontsize=9.5)
    legend_above(axes)
