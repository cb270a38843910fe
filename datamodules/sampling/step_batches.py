"""Batches of the training stream, one optimizer step at a time.

A *step batch* is everything that one optimizer step sees. The loader yields step batches, so one Lightning batch is one
optimizer step: `val_check_interval`, checkpoint cadence and `batch_idx` all count the same thing (Lightning#12205,
#17903), no step is taken early at an epoch's end (Lightning#21808), and the number of targets of the whole step is
known before its first backward pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORED = -100
"""Label of what is no target, as in torch's cross-entropy."""
Batch = dict[str, Any]
"""What one forward pass takes: tensors by name, and facts about them as plain numbers and lists."""
Indices = NDArray[np.int64]
BuildBatch = Callable[[Indices, Indices], Batch]
"""(epochs (n,), indices (n,)) -> batch; epochs let a data set draw noise that is a pure function of the position."""
Draw = Callable[[int, Indices], Indices]
"""(epoch, places (n,) in the epoch) -> sample indices (n,): which samples an epoch holds, where it is not each once. A
pure function, so that any step of a run can be looked up."""
Weigh = Callable[[Batch], float]
"""Batch on the CPU -> sum of the weights of its targets, for a loss that does not weigh all of them alike."""
SampleKey = tuple[int, Indices]
"""Epoch and sample indices (n,) of a batch."""


@dataclass
class StepBatch:
    """Everything that one optimizer step sees on this rank; the collator makes it, with all counts, on the CPU.

    Attributes:
        micro_batches: one batch for each forward pass; empty on a rank that has no sample in this step.
        sample_ids: (n,) int64 ids of the samples; stays on the CPU wherever the micro-batches go.
        num_targets: what the loss is summed over: target tokens, or samples.
        num_tokens: tokens fed to the model, padding not counted.
        weight_sum: what the summed loss is divided by: `num_targets`, or where the loss weighs targets the sum of
            their weights.
        token_range: lowest and highest token id, see token_range; None without tokens.
    """

    micro_batches: list[Batch]
    sample_ids: Indices
    num_targets: int
    num_tokens: int
    weight_sum: float
    token_range: tuple[int, int] | None

    def pin_memory(self) -> "StepBatch":
        """The same in page-locked memory; DataLoader calls this, since it looks into no dataclass."""
        return replace(
            self,
            micro_batches=[
                {name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in batch.items()}
                for batch in self.micro_batches
            ],
        )


def step_batch(micro_batches: list[Batch], sample_ids: Indices, *, weigh: Weigh | None = None) -> StepBatch:
    """Count what some micro-batches hold, and say of each where its target tokens are.

    A micro-batch whose labels are tokens gets `target_positions` (targets,) int64: places in its flattened labels
    (n, T), counted without the first column, which is never a target. Any other with an `attention_mask` gets
    `is_padded`, whether that has a 0. Looking for either on a GPU would stall the CPU.

    Args:
        micro_batches: on the CPU, each as target_positions and tokens_fed take it.
        sample_ids: (n,) ids of their samples.
        weigh: sum of the weights of a batch's targets; None counts each as one.
    """
    num_targets = 0
    for batch in micro_batches:
        if labels_are_tokens(batch):
            batch["target_positions"] = target_positions(batch["labels"])
            num_targets += len(batch["target_positions"])
        else:
            num_targets += len(batch["labels"])
            if "attention_mask" in batch:
                batch["is_padded"] = not bool(batch["attention_mask"].all())
    return StepBatch(
        micro_batches=micro_batches,
        sample_ids=sample_ids,
        num_targets=num_targets,
        num_tokens=sum(tokens_fed(batch) for batch in micro_batches),
        weight_sum=float(num_targets) if weigh is None else sum(weigh(batch) for batch in micro_batches),
        token_range=token_range(micro_batches),
    )


def labels_are_tokens(batch: Batch) -> bool:
    """Whether every input token has a label; labels of classes have another shape, or are no integers."""
    ids, labels = batch.get("input_ids"), batch.get("labels")
    return ids is not None and labels is not None and labels.shape == ids.shape and not labels.is_floating_point()


def target_positions(labels: Tensor) -> Tensor:
    """Places (targets,) int64 of the target tokens of labels (n, T), flattened without their first column."""
    return (labels[:, 1:] != IGNORED).flatten().nonzero().squeeze(1)


def tokens_fed(batch: Batch) -> int:
    """Tokens of a batch that the model sees: `num_tokens` where the batch states it, else those that are no padding."""
    return int(batch["num_tokens"]) if "num_tokens" in batch else int(batch["attention_mask"].sum())


def token_range(micro_batches: Sequence[Batch]) -> tuple[int, int] | None:
    """Lowest and highest id among the inputs, and among the labels where those are tokens; None without any.

    Taken where the batch is made, on the CPU: comparing two numbers with the vocabulary costs a step nothing, and on
    a GPU an id out of range is an assertion that names neither the sample nor the id.
    """
    columns = [ids for batch in micro_batches for _, ids in token_columns(batch)]
    if not columns:
        return None
    return min(int(ids.min()) for ids in columns), max(int(ids.max()) for ids in columns)


def token_columns(batch: Batch) -> list[tuple[str, Tensor]]:
    """Name and ids of what holds tokens in a batch: `input_ids`, and `labels` of the same shape, -100 taken out."""
    if "input_ids" not in batch or not batch["input_ids"].numel():
        return []
    columns = [("input_ids", batch["input_ids"])]
    if labels_are_tokens(batch):
        labels = batch["labels"]
        columns.append(("labels", torch.where(labels == IGNORED, batch["input_ids"], labels)))
    return columns


def micro_batch_ids(batch: StepBatch) -> list[list[int]]:
    """Sample ids of each micro-batch: its own where it names them, else those of its rows in the step's order.

    Where rows are not samples and nothing is named, every id of the step stands for each.
    """
    ids = batch.sample_ids.tolist()
    if all("sample_ids" in part for part in batch.micro_batches):
        return [part["sample_ids"].tolist() for part in batch.micro_batches]
    sizes = [len(part["input_ids"]) if "input_ids" in part else -1 for part in batch.micro_batches]
    if sum(sizes) != len(ids) or -1 in sizes:
        return [ids for _ in sizes]
    ends = np.cumsum(sizes).tolist()
    return [ids[end - size : end] for size, end in zip(sizes, ends, strict=True)]


@dataclass(frozen=True, eq=False)
class StepCollator:
    """Builds a StepBatch from its key, cut into micro-batches of at most `device_batch_size` samples.

    With `lengths` the samples of a step are sorted, longest first, before they are cut into micro-batches, so that
    those of like length share one and little is padded; each micro-batch then names its own `sample_ids`. Which
    samples feed the step, and so the gradient, stays the same.

    Args:
        build_batch: makes a batch of some samples.
        device_batch_size: samples in a micro-batch.
        lengths: tokens of each training sample, (num_samples,).
        weigh: see step_batch.
    """

    build_batch: BuildBatch
    device_batch_size: int
    lengths: Indices | None = None
    weigh: Weigh | None = None

    def __call__(self, key: Any) -> StepBatch:  # a SampleKey; torch types collate functions for lists only
        """Key of one step -> its batch."""
        epoch, indices = key
        epochs = np.full_like(indices, epoch)
        size = self.device_batch_size
        order = np.arange(len(indices))
        if self.lengths is not None:  # stable: a function of the step alone; the longest first, where memory runs out
            order = np.argsort(-self.lengths[indices], kind="stable")
        micro_batches = []
        for start in range(0, len(indices), size):
            rows = order[start : start + size]
            batch = self.build_batch(epochs[rows], indices[rows])
            if self.lengths is not None:
                batch["sample_ids"] = torch.from_numpy(indices[rows])
            micro_batches.append(batch)
        return step_batch(micro_batches, indices, weigh=self.weigh)


def evaluation_batch(build_batch: Callable[[Indices], Batch], indices: Indices) -> Batch:
    """One evaluation batch of samples (n,), with `sample_ids` (n,) int64 beside the tensors."""
    return {**build_batch(indices), "sample_ids": torch.from_numpy(indices)}
