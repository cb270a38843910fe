"""Loss by position in the window, by category, with intervals: what a model gains from the context before a token."""

import csv
import io
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_apps.run_files.atomic_files import write_text_atomically
from lightning_apps.statistics.bootstrap import cluster_bootstrap_interval

Array = NDArray[np.float64]
LARGEST_LOSS = math.log(sys.float_info.max)


@dataclass(frozen=True)
class WindowLosses:
    """Losses of evaluation windows.

    Attributes:
        losses: (n, T) nats of each target; column t was predicted from t + 1 tokens.
        category: (n,) position in `categories`.
        document: (n,) number of the document that a window is from.
        num_bytes: (n,) float64 bytes of text behind a window's targets.
        categories: names, the chosen ones first.
        num_chosen: how many were trained on.
    """

    losses: NDArray[np.float32]
    category: NDArray[np.int64]
    document: NDArray[np.int64]
    num_bytes: Array
    categories: list[str]
    num_chosen: int

    def group(self, name: str) -> NDArray[np.bool_]:
        """Windows of `chosen` or `held_out` categories, or of one category, (n,)."""
        if name == "chosen":
            return self.category < self.num_chosen
        if name == "held_out":
            return self.category >= self.num_chosen
        return self.category == self.categories.index(name)

    @property
    def groups(self) -> list[str]:
        """`chosen`, `held_out` where there is any, then the categories."""
        held_out = ["held_out"] if len(self.categories) > self.num_chosen else []
        return ["chosen", *held_out, *self.categories]


@dataclass(frozen=True)
class GroupLoss:
    """What was measured on one group of windows; intervals resample documents.

    Attributes:
        mean: (T,) loss by position.
        low: (T,) lower end of its 95 % interval.
        high: (T,) upper end of its 95 % interval.
        loss: mean over all positions, with its interval, in nats: (value, low, high).
        bits_per_byte: bits per byte of text.
        gain: loss over the first tenth of the positions minus loss over the last tenth, with its interval.
        num_windows: windows that were measured.
        num_documents: documents that these windows are from.
    """

    mean: Array
    low: Array
    high: Array
    loss: tuple[float, float, float]
    bits_per_byte: float
    gain: tuple[float, float, float]
    num_windows: int
    num_documents: int

    @property
    def perplexity(self) -> tuple[float, float, float]:
        """Exponential of the loss and of its interval."""
        value, low, high = (math.inf if loss > LARGEST_LOSS else math.exp(loss) for loss in self.loss)
        return value, low, high


def measure_group(windows: WindowLosses, name: str, *, num_resamples: int) -> GroupLoss:
    """Means and intervals of one group of windows."""
    rows = windows.group(name)
    losses = windows.losses[rows].astype(np.float64)
    documents, cluster = np.unique(windows.document[rows], return_inverse=True)
    counts = np.bincount(cluster).astype(np.float64)
    tenth = max(1, losses.shape[1] // 10)
    # by position, over all positions, and first minus last tenth: one resampling for all
    columns = np.column_stack(
        [losses, losses.mean(axis=1), losses[:, :tenth].mean(axis=1) - losses[:, -tenth:].mean(axis=1)]
    )
    sums = np.zeros((len(documents), columns.shape[1]))
    np.add.at(sums, cluster, columns)
    mean = columns.mean(axis=0)
    low, high = cluster_bootstrap_interval(sums, counts, num_resamples=num_resamples)
    positions = losses.shape[1]
    total_bits = losses.sum() / math.log(2)
    return GroupLoss(
        mean=mean[:positions],
        low=low[:positions],
        high=high[:positions],
        loss=(float(mean[positions]), float(low[positions]), float(high[positions])),
        bits_per_byte=float(total_bits / windows.num_bytes[rows].sum()),
        gain=(float(mean[-1]), float(low[-1]), float(high[-1])),
        num_windows=len(losses),
        num_documents=len(documents),
    )


def measure(windows: WindowLosses, *, num_resamples: int) -> dict[str, GroupLoss]:
    """Every group of `windows.groups`."""
    return {name: measure_group(windows, name, num_resamples=num_resamples) for name in windows.groups}


def save_in_context(folder: Path, split: str, windows: WindowLosses, measured: dict[str, GroupLoss]) -> None:
    """Write `<split>.npz`, `<split>.csv` (one row a group and position) and `<split>_categories.csv`.

    Args:
        folder: where they go; made if need be.
        split: what the files are called.
        windows: what was measured.
        measured: group -> its losses, as measure gives them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    length = windows.losses.shape[1]
    nothing = np.full(length, np.nan)
    arrays: dict[str, Any] = {
        "position": np.arange(1, length + 1),
        "categories": np.array(windows.categories),
        "category_chosen": np.arange(len(windows.categories)) < windows.num_chosen,
    }
    for end in ("mean", "low", "high"):
        for name in ("chosen", "held_out"):
            arrays[f"{name}_{end}"] = getattr(measured[name], end) if name in measured else nothing
        arrays[f"category_{end}"] = np.stack([getattr(measured[name], end) for name in windows.categories])
    aside = folder / f".{split}.npz"
    with aside.open("wb") as file:
        np.savez(file, **arrays)
    aside.replace(folder / f"{split}.npz")

    curves = [["group", "position", "loss", "loss_low", "loss_high"]]
    table = [[
        "group", "chosen", "windows", "documents", "loss", "loss_low", "loss_high", "perplexity", "perplexity_low",
        "perplexity_high", "bits_per_byte", "in_context_gain", "in_context_gain_low", "in_context_gain_high",
    ]]  # fmt: skip
    for name, group in measured.items():
        chosen = name == "chosen" or name in windows.categories[: windows.num_chosen]
        for position in range(length):
            ends = (group.mean[position], group.low[position], group.high[position])
            curves.append([name, str(position + 1), *(f"{value:.6g}" for value in ends)])
        values = (*group.loss, *group.perplexity, group.bits_per_byte, *group.gain)
        counts = [str(group.num_windows), str(group.num_documents)]
        table.append([name, str(chosen).lower(), *counts, *(f"{value:.6g}" for value in values)])
    for file_name, rows in ((f"{split}.csv", curves), (f"{split}_categories.csv", table)):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        write_text_atomically(folder / file_name, text.getvalue())
