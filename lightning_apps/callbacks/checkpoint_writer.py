"""How the state of a run gets into its checkpoints: as one file or in shards, before training goes on or beside it."""

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch.distributed.fsdp import FSDPModule

from datamodules.storage.marker import MarkedFile
from lightning_apps.run_files.checkpoint_files import copied_to_cpu, name_atomically, remove
from lightning_apps.run_files.metrics_csv import MetricsCSV
from lightning_apps.run_files.sharded_checkpoint import (
    STATE,
    Shard,
    flushed,
    split,
    write_complete,
    write_shards,
)
from lightning_apps.training.optimizer_step import all_ranks, cpu_group, takes_steps
from lightning_apps.training.sharding import gathered, weights_as_shards

Files = Mapping[str, MarkedFile]
"""Shards that were written, of one rank."""


class CheckpointWriter:
    """Writes checkpoints, one at a time; what ranks say to each other, they say on their main threads.

    Args:
        folder: where the checkpoints go.
        in_background: training waits for a copy of the state alone; it is in memory twice until the write has ended.
        in_shards: each rank writes what it holds, in place of one file by the first.
    """

    def __init__(self, folder: Path, *, in_background: bool, in_shards: bool) -> None:
        self.new = folder / ".new.part"
        self.in_background = in_background
        self.in_shards = in_shards
        self._thread = ThreadPoolExecutor(1, "checkpoint") if in_background else None

    def begin(self, trainer: L.Trainer, names: Sequence[str]) -> "Future[Files]":
        """Begin a write, on all ranks; the result is an OSError where it failed.

        Args:
            trainer: of the run.
            names: of the checkpoint, the last one that takes its name first.
        """
        net = takes_steps(trainer.lightning_module).net
        targets = [self.new.with_name(name) for name in reversed(names)]
        shards: dict[str, Shard] = {}
        with weights_as_shards(net):  # an evaluation holds whole weights
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            if self.in_shards:
                checkpoint, shards = split(checkpoint)
            elif isinstance(net, FSDPModule):
                checkpoint = gathered(checkpoint, keep=trainer.is_global_zero)
        error = self._prepare(trainer)
        if self.in_shards and trainer.world_size > 1 and not all_ranks(error is None) and error is None:
            error = OSError("the first process could not make its folder")
        if error is not None or not (self.in_shards or trainer.is_global_zero):
            return _ended(error, {})
        if trainer.is_global_zero and self._thread is not None:
            checkpoint = copied_to_cpu(checkpoint)
        # not by Trainer.save_checkpoint, where the other ranks wait for a first one that has met a full disk
        files = trainer.strategy.checkpoint_io
        write = (
            partial(
                self._write_shards, files, checkpoint if trainer.is_global_zero else None, shards, trainer.global_rank
            )
            if self.in_shards
            else partial(self._write_file, files, checkpoint, targets)
        )
        if self._thread is not None:
            return self._thread.submit(write)
        try:
            return _ended(None, write())
        except OSError as failure:
            return _ended(failure, {})

    def _prepare(self, trainer: L.Trainer) -> OSError | None:
        if not trainer.is_global_zero:
            return None
        try:
            for logger in trainer.loggers:
                if isinstance(logger, MetricsCSV):
                    logger.save()  # else a power cut keeps the checkpoint and loses the rows that it builds on
            remove(self.new)
            if self.in_shards:
                self.new.mkdir()
        except OSError as error:
            return error
        return None

    def _write_file(self, files: CheckpointIO, checkpoint: dict[str, Any], targets: Sequence[Path]) -> Files:
        files.save_checkpoint(checkpoint, self.new)
        name_atomically(self.new, targets)
        return {}

    def _write_shards(
        self, files: CheckpointIO, state: dict[str, Any] | None, shards: Mapping[str, Shard], rank: int
    ) -> Files:
        written = write_shards(self.new, shards, rank=rank)
        if state is not None:
            files.save_checkpoint(state, self.new / STATE)
            written[STATE] = flushed(self.new / STATE)
        return written

    def finish(self, trainer: L.Trainer, files: Files, names: Sequence[str]) -> OSError | None:
        """Give shards that all ranks have written their names, on all ranks; one file has them already."""
        if not self.in_shards:
            return None
        of_ranks: list[Any] = [files]
        if trainer.world_size > 1:
            of_ranks = [None] * trainer.world_size
            torch.distributed.all_gather_object(of_ranks, dict(files), group=cpu_group(torch.distributed.group.WORLD))
        if trainer.is_global_zero:
            try:
                write_complete(self.new, {name: MarkedFile(*file) for each in of_ranks for name, file in each.items()})
                name_atomically(self.new, [self.new.with_name(name) for name in reversed(names)])
            except OSError as error:
                return error
        return None

    def clean(self) -> None:
        """Remove what a write that failed, or one of a start that was killed, has left; on the first rank."""
        for left in self.new.parent.glob(".*.part"):
            with contextlib.suppress(OSError):
                remove(left)


def _ended(error: OSError | None, files: Files) -> "Future[Files]":
    """A write in the foreground, or none."""
    future: Future[Files] = Future()
    future.set_exception(error) if error is not None else future.set_result(files)
    return future
