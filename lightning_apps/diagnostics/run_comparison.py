"""Whether two runs ended the same: every leaf of their checkpoints, bit for bit."""

from typing import Any

import torch

FREE_TO_DIFFER = frozenset({"train_s", "wall_s", "_batches_that_stepped"})
"""Clocks, and Lightning's counter for its own logging, which comes back one too low from a checkpoint that was written
in on_train_batch_end and which nothing here reads."""


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Paths at which two checkpoints, or parts of them, differ in structure, type or bits; NaN equals NaN."""
    if type(first) is not type(second):
        return [f"{path}: {type(first).__name__} and {type(second).__name__}"]
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [f"{path}: other keys"]
        kept = [key for key in first if key not in FREE_TO_DIFFER]
        return [found for key in kept for found in differences(first[key], second[key], f"{path}/{key}")]
    if isinstance(first, list | tuple):
        if len(first) != len(second):
            return [f"{path}: {len(first)} and {len(second)} entries"]
        pairs = enumerate(zip(first, second, strict=True))
        return [found for number, (one, other) in pairs for found in differences(one, other, f"{path}/{number}")]
    if isinstance(first, torch.Tensor):
        return [] if first.equal(second) else [path]
    return [] if repr(first) == repr(second) else [path]
