"""Batches of the training stream, one optimizer step at a time.

A *window* is everything that one optimizer step sees. The loader yields windows, so one Lightning batch is one
optimizer step: `val_check_interval`, checkpoint cadence and `batch_idx` all count the same thing (Lightning#12205,
#17903), no step is taken early at an epoch's end (Lightning#21808), and the number of target tokens of the whole
window is known before its first backward pass. The whole run is one Lightning epoch of `num_steps` windows; epochs of
the data are positions in that stream (Lightning#19764: mid-epoch resume of a shuffling loader repeats samples).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.sampling.order import sample_indices

IGNORED = -100
Batch = dict[str, Any]
BuildBatch = Callable[[NDArray[np.int64], NDArray[np.int64]], Batch]
"""(epochs (n,), indices (n,)) -> batch; epochs let a data set draw noise that is a pure function of the position."""
Draw = Callable[[int, NDArray[np.int64]], NDArray[np.int64]]
"""(epoch, places (n,) in the epoch) -> sample indices (n,): which samples an epoch holds, where it is not each once. A
pure function, so that any step of a run can be looked up."""
WindowKey = tuple[int, NDArray[np.int64]]
"""Epoch and sample indices (n,) of a window."""


def steps_per_epoch(num_samples: int, global_batch_size: int) -> int:
    """Optimizer steps in one pass over the data; the last window may be smaller."""
    return math.ceil(num_samples / global_batch_size)


def window_keys(step: int, *, num_samples: int, global_batch_size: int, seed: int) -> tuple[int, NDArray[np.int64]]:
    """Epoch and sample indices that feed optimizer step `step` (0-based), over all ranks."""
    epoch, window = divmod(step, steps_per_epoch(num_samples, global_batch_size))
    start = window * global_batch_size
    stop = min(start + global_batch_size, num_samples)
    return epoch, sample_indices(start, stop, num_samples=num_samples, seed=seed, epoch=epoch)


class WindowSampler(Sampler[WindowKey]):
    """The key of each window of a run, holding this rank's share of its samples.

    `len()` counts the windows of the whole run, as Lightning's progress does; iteration begins at `start_step`. Without
    `draw` an epoch holds each sample once.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        global_batch_size: int,
        num_steps: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        draw: Draw | None = None,
    ) -> None:
        if num_samples < 1:
            raise ValueError("there is no training sample: relax the data filters")
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.num_steps = num_steps
        self.seed = seed
        self.start_step = start_step
        self.rank = rank
        self.world_size = world_size
        self.draw = draw

    def __len__(self) -> int:
        return self.num_steps

    def keys(self, step: int) -> WindowKey:
        """Epoch and sample indices that feed optimizer step `step` (0-based), over all ranks."""
        epoch, places = window_keys(
            step, num_samples=self.num_samples, global_batch_size=self.global_batch_size, seed=self.seed
        )
        return epoch, places if self.draw is None else self.draw(epoch, places)

    def __iter__(self) -> Iterator[WindowKey]:
        for step in range(self.start_step, self.num_steps):
            epoch, indices = self.keys(step)
            yield epoch, indices[self.rank :: self.world_size]


class KeyDataset(Dataset[WindowKey]):
    """Hands the sampler's keys to the collate function, which reads all samples of a window at once."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: WindowKey) -> WindowKey:
        return key


class WindowCollator:
    """Builds a window `{"micro_batches": [batch, ...], "sample_ids": (n,) int64, "token_range": ...}` from its key.

    Micro-batches hold at most `device_batch_size` samples. A rank without a sample gets an empty list and still takes
    part in the step's reductions.

    With `lengths` the samples of a window are sorted, longest first, before they are cut into micro-batches, so that
    those of like length share one and little is padded; each micro-batch then names its own `sample_ids`. Which
    samples feed the step, and so the gradient, stays the same.

    Args:
        build_batch: makes a batch of some samples.
        device_batch_size: samples in a micro-batch.
        lengths: tokens of each training sample, (num_samples,).
    """

    def __init__(
        self, build_batch: BuildBatch, device_batch_size: int, lengths: NDArray[np.int64] | None = None
    ) -> None:
        self.build_batch = build_batch
        self.device_batch_size = device_batch_size
        self.lengths = lengths

    def __call__(self, key: Any) -> Batch:  # a WindowKey; torch types collate functions for lists only
        """Key of one window -> the window."""
        epoch, indices = key
        epochs = np.full_like(indices, epoch)
        size = self.device_batch_size
        order = np.arange(len(indices))
        if self.lengths is not None:  # stable: a function of the window alone; the longest first, where memory runs out
            order = np.argsort(-self.lengths[indices], kind="stable")
        micro_batches = []
        for start in range(0, len(indices), size):
            rows = order[start : start + size]
            batch = self.build_batch(epochs[rows], indices[rows])
            if self.lengths is not None:
                batch["sample_ids"] = torch.from_numpy(indices[rows])
            micro_batches.append(batch)
        return {
            "micro_batches": micro_batches,
            "sample_ids": torch.from_numpy(indices),
            "token_range": token_range(micro_batches),
        }


def token_range(micro_batches: Sequence[Batch]) -> tuple[int, int] | None:
    """Lowest and highest id among the inputs, and among the labels where those are tokens; None without any.

    Taken where the batch is made, on the CPU: comparing two numbers with the vocabulary costs a step nothing, and on
    a GPU an id out of range is an assertion that names neither the sample nor the id.
    """
    columns = [ids for batch in micro_batches for _, ids in token_columns(batch)]
    if not columns:
        return None
    return min(int(ids.min()) for ids in columns), max(int(ids.max()) for ids in columns)


def token_columns(batch: Batch) -> list[tuple[str, torch.Tensor]]:
    """Name and ids of what holds tokens in a batch: `input_ids`, and `labels` of the same shape, -100 taken out."""
    if "input_ids" not in batch or not batch["input_ids"].numel():
        return []
    columns = [("input_ids", batch["input_ids"])]
    labels = batch.get("labels")
    # labels of classes have another shape, or, where there are several for each sample, are no integers
    if labels is not None and labels.shape == batch["input_ids"].shape and not labels.is_floating_point():
        columns.append(("labels", torch.where(labels == IGNORED, batch["input_ids"], labels)))
    return columns


def micro_batch_ids(window: Batch) -> list[list[int]]:
    """Sample ids of each micro-batch: its own where it names them, else those of its rows in the window's order.

    Where rows are not samples and nothing is named, every id of the window stands for each.
    """
    ids = window["sample_ids"].tolist()
    if all("sample_ids" in batch for batch in window["micro_batches"]):
        return [batch["sample_ids"].tolist() for batch in window["micro_batches"]]
    sizes = [len(batch["input_ids"]) if "input_ids" in batch else -1 for batch in window["micro_batches"]]
    if sum(sizes) != len(ids) or -1 in sizes:
        return [ids for _ in sizes]
    ends = np.cumsum(sizes).tolist()
    return [ids[end - size : end] for size, end in zip(sizes, ends, strict=True)]


class WindowLoader(DataLoader):
    """A DataLoader over windows that can be saved and resumed at an optimizer step.

    The saved state names the order, not a position in a prefetch queue: loading it into a loader over other data, or
    with another seed or batch size, is refused instead of silently training on a different stream.
    """

    def __init__(
        self, sampler: WindowSampler, collate: Callable[[Any], Batch], completed_steps: Callable[[], int], **kw: Any
    ):
        self.window_sampler = sampler
        self.completed_steps = completed_steps
        # a private generator: creating an iterator must not draw from the global one (it would shift dropout)
        generator = torch.Generator().manual_seed(sampler.seed)
        # batch_size=None: the sampler yields whole windows
        super().__init__(
            KeyDataset(sampler.num_samples),
            batch_size=None,
            sampler=sampler,
            collate_fn=collate,
            generator=generator,
            **kw,
        )

    def _identity(self) -> dict[str, int]:
        sampler = self.window_sampler
        return {
            "num_samples": sampler.num_samples,
            "global_batch_size": sampler.global_batch_size,
            "seed": sampler.seed,
        }

    def state_dict(self) -> dict[str, int]:
        """Order identity and the number of optimizer steps completed."""
        return {**self._identity(), "step": self.completed_steps()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after `state["step"]` windows.

        Raises:
            ValueError: the checkpoint was made with other data, batch size or seed.
        """
        for name, value in self._identity().items():
            if state[name] != value:
                raise ValueError(
                    f"cannot resume: the checkpoint was trained with {name}={state[name]}, this run has {value}; "
                    "restore that setting or start a new run (run.name=...)"
                )
        self.window_sampler.start_step = state["step"]


def training_loader(
    build_batch: BuildBatch,
    trainer: L.Trainer,
    *,
    num_samples: int,
    global_batch_size: int,
    device_batch_size: int | None,
    seed: int,
    lengths: NDArray[np.int64] | None = None,
    draw: Draw | None = None,
    **kw: Any,
) -> WindowLoader:
    """Windows of the whole run, this rank's share, from the trainer's current optimizer step on.

    `device_batch_size` None takes a device's whole share of the global batch; `lengths` is WindowCollator's, `draw`
    WindowSampler's; `kw` goes to DataLoader.
    """
    sampler = WindowSampler(
        num_samples=num_samples,
        global_batch_size=global_batch_size,
        num_steps=trainer.max_steps,
        seed=seed,
        start_step=trainer.global_step,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        draw=draw,
    )
    per_device = -(-global_batch_size // trainer.world_size)
    collate = WindowCollator(build_batch, device_batch_size or per_device, lengths)
    return WindowLoader(sampler, collate, lambda: trainer.global_step, **kw)


class EvaluationSampler(Sampler[WindowKey]):
    """Every sample once, in order, this rank's share; no sample is repeated to even out the ranks.

    Args:
        num_samples: size of the split.
        batch_size: samples in a batch.
        rank: of this process.
        world_size: number of processes.
        order: the samples in another order, (num_samples,): sorted by length, batches need little padding.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        order: NDArray[np.int64] | None = None,
    ) -> None:
        indices = np.arange(num_samples, dtype=np.int64) if order is None else order
        self.indices = indices[rank::world_size]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.batch_size)

    def __iter__(self) -> Iterator[WindowKey]:
        for start in range(0, len(self.indices), self.batch_size):
            yield 0, self.indices[start : start + self.batch_size]


class EvaluationCollator:
    """Builds one evaluation batch from its key, with `sample_ids` (n,) int64 beside the tensors."""

    def __init__(self, build_batch: BuildBatch) -> None:
        self.build_batch = build_batch

    def __call__(self, key: Any) -> Batch:  # a WindowKey; torch types collate functions for lists only
        """Key of one batch -> the batch."""
        epoch, indices = key
        return {**self.build_batch(np.full_like(indices, epoch), indices), "sample_ids": torch.from_numpy(indices)}


def evaluation_loader(
    build_batch: BuildBatch,
    trainer: L.Trainer | None,
    *,
    num_samples: int,
    batch_size: int,
    order: NDArray[np.int64] | None = None,
    **kw: Any,
) -> DataLoader:
    """A loader over each sample once, this rank's share, in order or in the `order` given; None is a single rank."""
    rank, world_size = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
    return DataLoader(
        KeyDataset(num_samples),
        batch_size=None,
        sampler=EvaluationSampler(num_samples, batch_size, rank, world_size, order),
        collate_fn=EvaluationCollator(build_batch),
        generator=torch.Generator().manual_seed(0),
        **kw,
    )
