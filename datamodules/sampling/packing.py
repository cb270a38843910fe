"""Batches of documents of unequal lengths: packed end to end, or padded.

Packing happens inside a step batch: its samples are dealt to rows in an order of their own, since their gradients are
summed anyway; the order of samples over the run, its sample log and its resumption know nothing of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.sampling.step_batches import IGNORED, Batch, StepBatch, Weigh, step_batch


@dataclass(frozen=True)
class Document:
    """One sample: `ids` and `labels` (length,) int64; the first label always is -100, nothing comes before it."""

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Deal items to bins: each, the longest first, goes into the first bin that has room (Johnson 1973).

    Args:
        lengths: sizes of the items, none above `capacity`.
        capacity: of a bin.

    Returns:
        Bins as lists of item numbers, at most 11/9 of the fewest possible plus one; equal lengths keep their order, so
        that the same step always makes the same bins.

    Raises:
        ValueError: an item is larger than a bin.
    """
    if lengths and max(lengths) > capacity:
        raise ValueError(f"an item of {max(lengths)} does not fit into a bin of {capacity}")
    bins: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        place = next((number for number, left in enumerate(room) if lengths[item] <= left), None)
        if place is None:
            bins.append([])
            room.append(capacity)
            place = len(bins) - 1
        bins[place].append(item)
        room[place] -= lengths[item]
    return bins


def packed_batch(documents: Sequence[Document], *, shared_prefix_length: int = 0) -> Batch:
    """Documents end to end in one row, without any padding.

    Returns:
        `input_ids`, `labels`, `position_ids` (restarting at 0) and `attention_mask` (all 1), each (1, T) int64, and
        `borders`: where each document starts, and the end, documents + 1 numbers. `shared_prefix_length` says how many
        leading tokens all documents share.
    """
    lengths = [len(document.ids) for document in documents]
    ids = torch.from_numpy(np.concatenate([document.ids for document in documents]))
    return {
        "input_ids": ids[None],
        "labels": torch.from_numpy(np.concatenate([document.labels for document in documents]))[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "attention_mask": torch.ones_like(ids)[None],
        "borders": np.cumsum([0, *lengths]).tolist(),
        "shared_prefix_length": shared_prefix_length,
    }


def padded_batch(documents: Sequence[Document], *, pad_token_id: int) -> Batch:
    """Documents as rows, padded on the right.

    Returns:
        `input_ids`, `labels` (-100 at padding) and `attention_mask` (0 at padding), each (n, longest) int64.
    """
    ids = [document.ids for document in documents]
    return {
        "input_ids": padded_rows(ids, pad_token_id),
        "labels": padded_rows([document.labels for document in documents], IGNORED),
        "attention_mask": padded_rows([np.ones_like(row) for row in ids], 0),
        "shared_prefix_length": 0,
    }


def padded_rows(rows: Sequence[NDArray[Any]], value: int) -> torch.Tensor:
    """Rows of whole numbers, (n, longest) int64, with `value` on the right of those that are shorter."""
    padded = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return torch.from_numpy(padded)


ReadDocuments = Callable[[NDArray[np.int64]], list[Document]]


@dataclass(frozen=True, eq=False)
class PackingCollator:
    """Builds step batches, as StepCollator does, whose micro-batches are packed rows with `sample_ids` of their own.

    Documents are dealt to rows of at most `max_length` tokens, first fit decreasing; a micro-batch is some rows end to
    end.

    Args:
        read: makes documents of sample indices.
        max_length: tokens of a row.
        rows_per_micro_batch: rows in a micro-batch; None for all of the step.
        shared_prefix_length: leading tokens that all documents share.
        weigh: see step_batch.
    """

    read: ReadDocuments
    max_length: int
    rows_per_micro_batch: int | None
    shared_prefix_length: int
    weigh: Weigh | None = None

    def __call__(self, key: Any) -> StepBatch:  # a SampleKey; torch types collate functions for lists only
        """Key of one step -> its batch."""
        _, indices = key
        documents = self.read(indices)
        rows = first_fit_decreasing([len(document.ids) for document in documents], self.max_length)
        size = self.rows_per_micro_batch or max(1, len(rows))
        groups = [[item for row in rows[start : start + size] for item in row] for start in range(0, len(rows), size)]
        micro_batches = [
            packed_batch([documents[item] for item in group], shared_prefix_length=self.shared_prefix_length)
            for group in groups
        ]
        for batch, group in zip(micro_batches, groups, strict=True):
            batch["sample_ids"] = torch.from_numpy(indices[group])
        return step_batch(micro_batches, indices, weigh=self.weigh)
