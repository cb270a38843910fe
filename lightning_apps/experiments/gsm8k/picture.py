"""Picture of a gsm8k run: losses, accuracies with their intervals, how answers go wrong, how long they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from lightning_apps.figures.curves import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    TITLE_PAD,
    VERMILLION,
    add_axes_px,
    draw_evaluations,
    draw_title,
    draw_training,
    label_steps,
    legend_above,
    png_figure,
    say_empty,
    series,
)

WIDTH_PX, HEIGHT_PX = 1600, 1080
ACCURACIES = (("numeric", BLUE, False), ("lmeval_flexible", ORANGE, True), ("lmeval_strict", GREEN, True))
FAULTS = (("no_answer", GREY, False), ("truncated", VERMILLION, False), ("collapsed", BLACK, True))
NUM_BINS = 16


def draw_gsm8k_summary(
    path: Path,
    *,
    rows: list[dict[str, Any]],
    predictions: list[dict[str, Any]],
    title: str,
    best_step: int | None = None,
) -> None:
    """Write the picture of a run, a PNG of 1600 x 1080 pixels: whole or not at all, from any thread.

    Args:
        path: where to.
        rows: what metrics.csv holds, a logged step each.
        predictions: rows of predictions.jsonl; may be empty.
        title: above the picture.
        best_step: optimizer step of the evaluation to mark; None marks none.
    """
    with png_figure(path, WIDTH_PX, HEIGHT_PX) as figure:
        draw_title(figure, title)
        draw_training(
            figure, rows, losses=(115, 650, 590, 310), learning_rate=(115, 540, 590, 75), best_step=best_step,
            unit="nats per target token",
        )  # fmt: skip
        draw_accuracies(add_axes_px(figure, 880, 540, 680, 420), rows)
        draw_faults(add_axes_px(figure, 115, 85, 590, 330), rows)
        draw_lengths(add_axes_px(figure, 880, 85, 680, 330), predictions)


def draw_accuracies(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Accuracies over steps; the band is the Wilson interval of the first."""
    axes.set_title("Right answers, validation (band: 95 % of numeric)", pad=TITLE_PAD)
    label_steps(axes, rows)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    highest = 0.05
    for name, color, dashed in ACCURACIES:
        key = f"val/accuracy_{name}"
        steps, values = series(rows, key)
        if name == "numeric" and len(steps):
            low, high = (series(rows, f"{key}_{end}")[1] for end in ("low", "high"))
            axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
            axes.vlines(steps, low, high, color=color, alpha=0.35, linewidth=1)  # a lone band has no area
            highest = max(highest, float(high.max()))
        highest = max([highest, *values.tolist()])
        draw_evaluations(axes, steps, values, color=color, label=name, dashed=dashed)
    axes.set_ylim(0, min(1.02, 1.06 * highest))
    if not len(series(rows, "val/accuracy_numeric")[0]):
        say_empty(axes, "no question has been asked yet")
    legend_above(axes)


def draw_faults(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Shares of outputs without an answer, cut at the longest allowed, and repeating themselves."""
    axes.set_title("Outputs that went wrong", pad=TITLE_PAD)
    label_steps(axes, rows)
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel("share of the outputs")
    for name, color, dashed in FAULTS:
        steps, values = series(rows, f"val/{name}_ratio")
        draw_evaluations(axes, steps, values, color=color, label=name.replace("_", " "), dashed=dashed)
    if not len(series(rows, "val/no_answer_ratio")[0]):
        say_empty(axes, "no question has been asked yet")
    legend_above(axes)


def draw_lengths(axes: Axes, predictions: Sequence[dict[str, Any]]) -> None:
    """Lengths of the answers of the last evaluation, right and wrong ones stacked."""
    axes.set_title("Length of the answers, last evaluation", pad=TITLE_PAD)
    axes.set_xlabel("tokens")
    axes.set_ylabel("answers")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if not predictions:
        axes.set_xticks([])
        say_empty(axes, "no answer yet")
        return
    lengths = [[row["num_tokens"] for row in predictions if row["score"] is wanted] for wanted in (True, False)]
    longest = max(max(part, default=0) for part in lengths)
    axes.hist(
        lengths,
        bins=np.linspace(0, max(longest, 1), NUM_BINS + 1),  # type: ignore[arg-type]
        stacked=True,
        color=[BLUE, VERMILLION],
        alpha=0.8,
        edgecolor="white",
        label=[f"right ({len(lengths[0]):,})", f"wrong ({len(lengths[1]):,})"],
    )
    axes.set_xlim(0, max(longest, 1))
    legend_above(axes)
