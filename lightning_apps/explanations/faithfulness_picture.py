"""Deletion and insertion curves, and how well each method finds known evidence."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from lightning_apps.explanations.faithfulness import EVIDENCE, METHOD_NAMES, RANDOM
from lightning_apps.figures.curves import (
    BLUE,
    GREEN,
    GREY,
    VERMILLION,
    add_axes_px,
    png_figure,
    printable,
    say_empty,
)

WIDTH_PX, HEIGHT_PX = 1800, 660
METHOD_STYLE = {
    "chunk_attention": (BLUE, "-", "o"),
    "integrated_gradients": (VERMILLION, "-", "s"),
    "occlusion": (GREEN, "-", "^"),
    RANDOM: (GREY, "--", "D"),
}


def draw_faithfulness(path: Path, results: Mapping[str, Any], *, title: str) -> None:
    """Write a PNG of 1800 x 660 pixels: deletion, insertion, and evidence.

    Args:
        path: where the PNG is written.
        results: what faithfulness.json holds.
        title: above all three; cut where it is too long.
    """
    with png_figure(path, WIDTH_PX, HEIGHT_PX) as figure:
        figure.text(0.012, 0.965, printable(title, 120, tail=48), fontsize=13, fontweight="bold", va="center")
        left = add_axes_px(figure, 80, 80, 480, 460)
        right = add_axes_px(figure, 650, 80, 480, 460)
        draw_curve(left, results, "deletion", "Deletion: lower is better")
        draw_curve(right, results, "insertion", "Insertion: higher is better")
        draw_evidence(add_axes_px(figure, 1240, 80, 530, 460), results)
        handles, labels = left.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.04, 0.945), ncols=len(handles))


def draw_curve(axes: Axes, results: Mapping[str, Any], curve: str, title: str) -> None:
    """Mean probability over the share of words, with a 95 % band over documents, for each method.

    Args:
        axes: to draw on.
        results: what faithfulness.json holds.
        curve: `deletion` or `insertion`.
        title: above the axes.
    """
    axes.set_title(title)
    found = results["curves"][curve]["curves"] if results["num_documents"] else {}
    fractions = np.array(results["fractions"]) * 100
    for method, values in found.items():
        color, style, marker = METHOD_STYLE[method]
        mean, low, high = (np.array(values[end], dtype=np.float64) for end in ("mean", "low", "high"))
        axes.fill_between(fractions, low, high, color=color, alpha=0.13, linewidth=0)
        face = "white" if method == RANDOM else color
        size = 8 if marker == "s" else 5  # two methods that agree are both seen
        axes.plot(fractions, mean, style, color=color, marker=marker, markersize=size, markerfacecolor=face,
                  linewidth=1.7, label=METHOD_NAMES[method])  # fmt: skip
    if not found:
        say_empty(axes, "not measured")
    axes.set_xlim(-2, 102)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(f"{'words removed' if curve == 'deletion' else 'words put in'}, % of those read")
    axes.set_ylabel(f"{results['measured']}, 95 % band" if curve == "deletion" else "")
    axes.grid(visible=True)


def draw_evidence(axes: Axes, results: Mapping[str, Any]) -> None:
    """Pointing game and average precision of each method with intervals, side by side."""
    evidence = results["evidence"]["scores"]
    number = results["evidence"]["num_documents"]
    axes.set_title("Known evidence: higher is better")
    if not evidence:
        say_empty(axes, "no document with known evidence")
        axes.set_axis_off()
        return
    names = list(EVIDENCE)
    methods = list(evidence[names[0]])
    for rank, method in enumerate(methods):
        color, _, marker = METHOD_STYLE[method]
        places = np.arange(len(names)) + (rank - (len(methods) - 1) / 2) * 0.17
        for place, name in zip(places, names, strict=True):
            entry = evidence[name][method]
            axes.plot([place, place], [entry["low"], entry["high"]], color=color, linewidth=2.2, solid_capstyle="butt")
        values = [evidence[name][method]["value"] for name in names]
        hollow = "white" if method == RANDOM else color
        axes.plot(places, values, linestyle="none", marker=marker, markersize=7, color=color, markerfacecolor=hollow)
    for edge in range(1, len(names)):
        axes.axvline(edge - 0.5, color="#DDDDDD", linewidth=0.7)
    axes.set_xticks(range(len(names)), labels=[fill(name, 12) for name in EVIDENCE.values()])
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel(f"mean over {number:,} documents, 95 % interval")
    axes.grid(visible=True, axis="y")
