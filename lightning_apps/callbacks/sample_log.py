"""Writes the sample log, and checks now and then that the loader delivers what the order says."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from numpy.typing import NDArray

from datamodules.sampling.step_loader import StepSampler
from lightning_apps.diagnostics.sample_log import SampleLogWriter
from lightning_apps.errors import GuardError

CHECK_EVERY = 50  # computing a step's key costs 0.3 ms (order.py, 64 samples); one check in fifty is 7 µs a step


class SampleLog(L.Callback):
    """Records the samples of every completed step in sample_log.bin, those of all ranks, and compares with the order.

    On one process the record is what the loader delivered, compared at the first step after a start and at every
    fiftieth. On several it is what the order says for all of them, and this rank's share is compared at every step.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: SampleLogWriter | None = None
        self._next_check = 0
        self._ids: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop what an interrupted run recorded after its last checkpoint."""
        self._next_check = trainer.global_step + 1
        if not trainer.is_global_zero:
            return
        sampler = step_sampler(trainer)
        self._writer = SampleLogWriter(
            self.path, ids_per_step=sampler.global_batch_size, num_samples=sampler.num_samples
        )
        self._writer.start_after(trainer.global_step)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Compare what the loader delivered with the order.

        Raises:
            GuardError: it delivered other samples.
        """
        step, ids = trainer.global_step + 1, batch.sample_ids
        if trainer.world_size > 1 or step >= self._next_check:
            self._next_check = step + CHECK_EVERY
            sampler = step_sampler(trainer)
            expected = planned_ids(sampler, step)
            check_order(step, ids, expected[sampler.rank :: sampler.world_size])
            ids = expected
        self._ids = ids

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the completed step, before any checkpoint of it."""
        if self._writer is not None:
            self._writer.append(trainer.global_step, self._ids)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def step_sampler(trainer: L.Trainer) -> StepSampler:
    """The sampler behind the training loader."""
    sampler: StepSampler = trainer.train_dataloader.step_sampler  # type: ignore[union-attr]
    return sampler


def planned_ids(sampler: StepSampler, step: int) -> NDArray[np.int64]:
    """Samples (n,) that the order gives to optimizer step `step` (1 is the first), over all ranks."""
    return sampler.key(step - 1)[1]


def check_order(step: int, delivered: NDArray[np.int64], expected: NDArray[np.int64]) -> None:
    """Compare what a loader delivered with what the order says.

    Raises:
        GuardError: naming the first position that differs.
    """
    if np.array_equal(delivered, expected):
        return
    shared = min(len(delivered), len(expected))
    differs = np.flatnonzero(delivered[:shared] != expected[:shared])
    position = int(differs[0]) if len(differs) else shared
    raise GuardError(
        "sample_order",
        f"step {step}: the loader delivered {delivered[position : position + 1].tolist()} at position {position}, the "
        f"order says {expected[position : position + 1].tolist()}: the data changed, or the loader is broken",
    )
