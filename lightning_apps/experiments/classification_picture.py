"""Picture of a classification run: losses, metrics with intervals beside baselines, confusions, reliability."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from lightning_apps.experiments.classification_metrics import confusion_matrix, reliability
from lightning_apps.figures.curves import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    TITLE_PAD,
    VERMILLION,
    add_axes_px,
    draw_best,
    draw_evaluations,
    draw_references,
    draw_title,
    draw_training,
    label_steps,
    legend_above,
    png_figure,
    printable,
    say_empty,
    series,
)
from lightning_apps.statistics.proportions import wilson_interval

WIDTH_PX, HEIGHT_PX = 1600, 1160
MAX_CLASSES_COUNTED = 12
"""Confusion matrices of more classes are drawn without the counts in their cells."""
MAX_LABEL_BARS = 20
"""Labels with bars of their own, where samples bear several."""
NAME_PX = 11
"""Least distance of two names along an axis; of more classes than have room every so many-th is named."""
BLUES = LinearSegmentedColormap.from_list("blues", ["#FFFFFF", BLUE])
REFERENCE_COLORS = (GREY, ORANGE, GREEN)
NUM_BINS = 10


def draw_classification_summary(
    path: Path,
    *,
    rows: list[dict[str, Any]],
    predictions: list[dict[str, Any]],
    label_names: Sequence[str],
    references: Mapping[str, Mapping[str, float]],
    title: str,
    best_step: int | None = None,
) -> None:
    """Write the picture of a run, a PNG of 1600 x 1160 pixels: whole or not at all, from any thread.

    Args:
        path: where to.
        rows: what metrics.csv holds, a logged step each.
        predictions: rows of predictions.jsonl; may be empty.
        label_names: the classes in order.
        references: metrics of each baseline by its name.
        title: above the picture.
        best_step: optimizer step of the evaluation to mark; None marks none.
    """
    with png_figure(path, WIDTH_PX, HEIGHT_PX) as figure:
        draw_title(figure, title)
        draw_training(
            figure, rows, losses=(115, 800, 590, 240), learning_rate=(115, 690, 590, 75), best_step=best_step,
            unit="nats per sample",
        )  # fmt: skip
        draw_scores(add_axes_px(figure, 830, 690, 535, 350), rows, references, best_step=best_step)
        draw_confusion(figure, add_axes_px(figure, *confusion_place(len(label_names))), predictions, label_names)
        draw_reliability(figure, predictions, label_names)


def confusion_place(num_classes: int) -> tuple[int, int, int, int]:
    """Left, bottom, width and height of the matrix in pixels: some names lean below it, many stand upright."""
    if num_classes > MAX_CLASSES_COUNTED:
        return 215, 210, 320, 320
    return (185, 90, 430, 430) if num_classes <= 4 else (185, 140, 380, 380)


def draw_scores(
    axes: Axes,
    rows: Sequence[dict[str, Any]],
    references: Mapping[str, Mapping[str, float]],
    *,
    best_step: int | None = None,
) -> None:
    """Accuracy and macro F1 over steps with their 95 % bands, and the baselines' accuracy.

    Args:
        axes: to draw on.
        rows: what metrics.csv holds, a logged step each.
        references: baseline -> its metrics, `accuracy` among them.
        best_step: optimizer step of the evaluation to mark; None marks none.
    """
    axes.set_title("Scores on validation", pad=TITLE_PAD)
    label_steps(axes, rows)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    references = {name: entry for name, entry in references.items() if np.isfinite(entry["accuracy"])}
    shown: list[float] = [reference["accuracy"] for reference in references.values()]
    curves = (("val/accuracy", "accuracy", BLUE, False), ("val/f1_macro", "macro F1", VERMILLION, True))
    for key, _, color, _ in curves:
        banded = [row for row in rows if {f"{key}_low", f"{key}_high"} <= row.keys()]
        steps, low = series(banded, f"{key}_low")
        high = series(banded, f"{key}_high")[1]
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        axes.vlines(steps, low, high, color=color, alpha=0.35, linewidth=1)  # a lone band has no area
        shown += [*low[np.isfinite(low)], *high[np.isfinite(high)]]
    for key, name, color, dashed in curves:
        steps, values = series(rows, key)
        draw_evaluations(axes, steps, values, color=color, label=f"{name} (95 % band)", dashed=dashed)
        shown += values[np.isfinite(values)].tolist()
        if name == "macro F1":
            draw_best(axes, steps, values, best_step, "best {:.1%}")
    measured = series(rows, "val/accuracy")[1]
    if not np.isfinite(measured).any():
        say_empty(axes, "no accuracy is a finite number" if len(measured) else "no evaluation yet")
    bottom, top = (float(min(shown)), float(max(shown))) if shown else (0.0, 1.0)
    margin = max(0.06 * (top - bottom), 0.01)
    axes.set_ylim(max(bottom - margin, -0.02), min(top + margin, 1.02))
    draw_references(
        axes,
        [
            (reference["accuracy"], f"{printable(name)}\naccuracy {reference['accuracy']:.1%}", color)
            for (name, reference), color in zip(references.items(), REFERENCE_COLORS, strict=False)
        ],
    )
    legend_above(axes)


def draw_confusion(
    figure: Figure, axes: Axes, predictions: Sequence[dict[str, Any]], label_names: Sequence[str]
) -> None:
    """Counts of true against predicted classes, shaded by the share of the true class.

    Where samples bear several labels, the recall and precision of each label as bars.

    Args:
        figure: that the axes belong to.
        axes: to draw on.
        predictions: what predictions.jsonl holds, a sample each; may be empty.
        label_names: the classes in order.
    """
    if not predictions:
        axes.set_title("Confusion matrix")
        axes.set(xticks=[], yticks=[])
        say_empty(axes, "no predictions yet")
        return
    if isinstance(predictions[0]["target"], list):
        _draw_label_bars(axes, predictions, label_names)
        return
    position = {name: number for number, name in enumerate(label_names)}
    predicted, targets = (
        np.array([position[row[key]] for row in predictions], dtype=np.int64) for key in ("output", "target")
    )
    counts = confusion_matrix(predicted, targets, len(label_names))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap=BLUES, vmin=0, vmax=1, aspect="equal")
    axes.set_title(f"Confusion matrix, last evaluation ({len(predictions):,} samples)")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for spine in axes.spines.values():
        spine.set(visible=True, color="#A6A6A6")
    if len(label_names) > MAX_CLASSES_COUNTED:
        every = int(np.ceil(len(label_names) * NAME_PX / axes.get_window_extent().height))
        named = range(0, len(label_names), every)
        names = [printable(label_names[number], 17, tail=7) for number in named]
        size = 8.5 if len(label_names) <= 24 else 7.5
        axes.set_xticks(named, labels=names, rotation=90, fontsize=size)
        axes.set_yticks(named, labels=names, fontsize=size)
        if every > 1:
            axes.set_ylabel(f"true ({len(label_names)} classes, every {ordinal(every)} named)")
    else:
        names = [printable(name, 12) for name in label_names]
        many = len(names) > 4
        axes.set_xticks(range(len(names)), labels=names, rotation=35 if many else 0, ha="right" if many else "center")
        axes.set_yticks(range(len(names)), labels=names)
        for row, column in np.ndindex(*counts.shape):
            color = "white" if shares[row, column] > 0.55 else BLACK
            text = f"{counts[row, column]:,}" + (f"\n{shares[row, column]:.0%}" if len(names) <= 6 else "")
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=13 if len(names) <= 3 else 9.5)
    frame = axes.get_position()
    bar = figure.add_axes((frame.x1 + 0.012, frame.y0, 0.009, frame.height))
    figure.colorbar(image, cax=bar, format=PercentFormatter(1.0, decimals=0))
    bar.set_ylabel("share of the true class")
    bar.spines[:].set_visible(False)


def ordinal(number: int) -> str:
    """2nd, 3rd, 4th ..."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _draw_label_bars(axes: Axes, predictions: Sequence[dict[str, Any]], label_names: Sequence[str]) -> None:
    names = list(label_names)[:MAX_LABEL_BARS]
    true = np.array([[name in row["target"] for name in names] for row in predictions])
    said = np.array([[name in row["output"] for name in names] for row in predictions])
    hits = (true & said).sum(axis=0)
    places = np.arange(len(names))
    which = "Labels" if len(names) == len(label_names) else f"First {len(names)} of {len(label_names)} labels"
    axes.set_title(f"{which}, last evaluation ({len(predictions):,} samples)", pad=TITLE_PAD)
    axes.barh(places - 0.2, hits / np.maximum(true.sum(axis=0), 1), 0.38, color=BLUE, label="recall")
    axes.barh(places + 0.2, hits / np.maximum(said.sum(axis=0), 1), 0.38, color=ORANGE, label="precision")
    axes.set_yticks(
        places,
        labels=[f"{printable(name, 14)} ({n:,})" for name, n in zip(names, true.sum(axis=0), strict=True)],
        fontsize=10 if len(names) <= 12 else 8.5,
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(visible=True, axis="x")
    legend_above(axes)


def draw_reliability(figure: Figure, predictions: Sequence[dict[str, Any]], label_names: Sequence[str]) -> None:
    """Share of right answers against the confidence in them, and how many answers each bin of confidence holds."""
    axes = add_axes_px(figure, 830, 190, 535, 330)
    counts_axes = add_axes_px(figure, 830, 90, 535, 70)
    confidence, right = answers(predictions, label_names)
    mean, accuracy, counts = reliability(confidence, right, NUM_BINS)
    filled = (counts > 0) & np.isfinite(mean) & np.isfinite(accuracy)
    # the most probable of n classes has at least 1 / n
    start = 0.5 if len(label_names) == 2 else np.floor(NUM_BINS / max(len(label_names), 1)) / NUM_BINS
    error = float((np.abs(accuracy - mean)[filled] * counts[filled]).sum() / max(counts.sum(), 1))
    axes.set_title("Reliability: is confidence earned?", pad=TITLE_PAD)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (5, 2.5)), linewidth=1.3, label="perfectly calibrated")
    axes.errorbar(
        mean[filled],
        accuracy[filled],
        yerr=wilson_reach(accuracy[filled], counts[filled]),
        color=BLUE,
        marker="o",
        markersize=6,
        linewidth=1.6,
        elinewidth=1.0,
        capsize=3,
        label=f"model (95 % bars); mean gap {error:.1%}",
    )
    if not filled.any():
        say_empty(axes, "no predictions yet")
    axes.set_ylabel("answers that are right")
    axes.set_ylim(-0.02, 1.02)
    counts_axes.bar(
        (np.arange(NUM_BINS) + 0.5) / NUM_BINS, counts, 0.92 / NUM_BINS, color=BLUE, alpha=0.55, linewidth=0
    )
    counts_axes.set_ylim(0, 1.1 * max(int(counts.max()), 1))
    counts_axes.set_ylabel("answers")
    counts_axes.set_xlabel("confidence (probability of the answer given)")
    counts_axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    counts_axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.tick_params(labelbottom=False)
    for panel in (axes, counts_axes):
        panel.set_xlim(start, 1.0 + 0.015 * (1 - start))
        panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panel.grid(visible=True)
    legend_above(axes)


def answers(
    predictions: Sequence[dict[str, Any]], label_names: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Confidence of each answer and whether it is right, both (n,); n counts labels where samples bear several."""
    if predictions and isinstance(predictions[0]["target"], list):
        probabilities = np.array([row["probabilities"] for row in predictions], dtype=np.float64)
        true = np.array([[name in row["target"] for name in label_names] for row in predictions])
        said = np.array([[name in row["output"] for name in label_names] for row in predictions])
        return np.where(said, probabilities, 1 - probabilities).ravel(), (true == said).ravel()
    confidence = np.array([row["confidence"] for row in predictions], dtype=np.float64)
    right = np.array([row["output"] == row["target"] for row in predictions], dtype=np.bool_)
    return confidence, right


def wilson_reach(shares: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far the 95 % Wilson interval reaches below and above each share, (2, n)."""
    ends = [wilson_interval(round(share * count), count) for share, count in zip(shares, counts.tolist(), strict=True)]
    return np.abs(np.array(ends).reshape(-1, 2).T - shares)
