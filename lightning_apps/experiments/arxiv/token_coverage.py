"""How much text a run has seen, and how often: unique tokens and repeats, in all and by category."""

from typing import Any

import lightning as L
import numpy as np
from numpy.typing import NDArray

from datamodules.arxiv import ArxivDataModule
from lightning_apps.callbacks.sample_log import step_sampler

Array = NDArray[np.int64]
STEPS_AT_ONCE = 1024


class TokenCoverage(L.Callback):
    """Logs `train/unique_tokens`, `train/repeats` and `train/repeats_<category>` with every evaluation.

    A token counts as seen when it was in a window, as input or target; repeats are tokens in windows over distinct
    ones. Windows are a pure function of (seed, step), so that nothing has to be saved: a resumed run counts again from
    the first step. Memory: 16 bytes for each stretch of text that was seen.
    """

    needs = ArxivDataModule

    def __init__(self) -> None:
        self._counted_steps = 0
        self._covered: list[Array] = []  # of each category, disjoint intervals (n, 2) of tokens.bin
        self._seen: list[int] = []

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count up to this step."""
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        ranges = trainer.datamodule.train_documents  # type: ignore[attr-defined]
        if not self._covered:
            self._covered = [np.empty((0, 2), dtype=np.int64) for _ in ranges.categories]
            self._seen = [0] * len(ranges.categories)
        for first in range(self._counted_steps, trainer.global_step, STEPS_AT_ONCE):
            self._count(trainer, range(first, min(first + STEPS_AT_ONCE, trainer.global_step)))
        self._counted_steps = trainer.global_step
        unique = [int((covered[:, 1] - covered[:, 0]).sum()) for covered in self._covered]
        values = {"train/unique_tokens": float(sum(unique)), "train/repeats": sum(self._seen) / sum(unique)}
        for name, seen, distinct in zip(ranges.categories, self._seen, unique, strict=True):
            if distinct:
                values[f"train/repeats_{name}"] = seen / distinct
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def _count(self, trainer: L.Trainer, steps: range) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        sampler = step_sampler(trainer)
        keys = [sampler.key(step) for step in steps]
        epochs = np.concatenate([np.full_like(ids, epoch) for epoch, ids in keys])
        rows, starts = data.training_windows(epochs, np.concatenate([ids for _, ids in keys]))
        ranges = data.train_documents
        for number, (row, count) in enumerate(zip(ranges.starts, ranges.counts, strict=True)):
            own = starts[(row <= rows) & (rows < row + count)]
            new = np.stack([own, own + ranges.length], axis=1)
            self._covered[number] = union(np.concatenate([self._covered[number], new]))
            self._seen[number] += len(own) * ranges.length


def union(intervals: Array) -> Array:
    """Disjoint, sorted intervals [start, stop) that cover the same numbers, (n, 2) -> (m, 2); touching ones merge."""
    if not len(intervals):
        return intervals
    ordered = intervals[np.argsort(intervals[:, 0], kind="stable")]
    reach = np.maximum.accumulate(ordered[:, 1])
    opens = np.concatenate([[True], ordered[1:, 0] > reach[:-1]])
    first = np.flatnonzero(opens)
    last = np.concatenate([first[1:] - 1, [len(ordered) - 1]])
    return np.stack([ordered[first, 0], reach[last]], axis=1)
