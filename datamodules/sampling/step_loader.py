"""Which samples feed which optimizer step, and the loaders that deliver them.

The whole run is one Lightning epoch of `num_steps` step batches; epochs of the data are positions in that stream
(Lightning#19764: mid-epoch resume of a shuffling loader repeats samples).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.sampling.order import sample_indices
from datamodules.sampling.step_batches import Batch, Draw, Indices, SampleKey, StepBatch, evaluation_batch


def steps_per_epoch(num_samples: int, global_batch_size: int) -> int:
    """Optimizer steps in one pass over the data; the last step batch may be smaller."""
    return math.ceil(num_samples / global_batch_size)


@dataclass(kw_only=True, eq=False)
class StepSampler(Sampler[SampleKey]):
    """The key of each step batch of a run, holding this rank's share of its samples.

    `len()` counts the steps of the whole run, as Lightning's progress does; iteration begins at `start_step`.

    Args:
        num_samples: in the data set.
        global_batch_size: samples in a step, over all ranks.
        num_steps: of the run.
        seed: of the order.
        start_step: steps that are behind the run already.
        rank: of this process.
        world_size: number of processes.
        draw: which samples an epoch holds; None for each once.
        epoch_steps: leave an epoch after so many steps; None goes through all samples.
        repeats_first_epoch: whether every epoch is the first one again.
        inner_steps: optimizer steps in a row that the same samples feed.
    """

    num_samples: int
    global_batch_size: int
    num_steps: int
    seed: int
    start_step: int = 0
    rank: int = 0
    world_size: int = 1
    draw: Draw | None = None
    epoch_steps: int | None = None
    repeats_first_epoch: bool = False
    inner_steps: int = 1

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError("there is no training sample: relax the data filters")

    def __len__(self) -> int:
        return self.num_steps

    def key(self, step: int) -> SampleKey:
        """Epoch and sample indices that feed optimizer step `step` (0-based), over all ranks."""
        steps = self.epoch_steps or steps_per_epoch(self.num_samples, self.global_batch_size)
        epoch, place = divmod(step // self.inner_steps, steps)
        epoch = 0 if self.repeats_first_epoch else epoch
        start = place * self.global_batch_size
        stop = min(start + self.global_batch_size, self.num_samples)
        places = sample_indices(start, stop, num_samples=self.num_samples, seed=self.seed, epoch=epoch)
        return epoch, places if self.draw is None else self.draw(epoch, places)

    def __iter__(self) -> Iterator[SampleKey]:
        for step in range(self.start_step, self.num_steps):
            epoch, indices = self.key(step)
            yield epoch, indices[self.rank :: self.world_size]


class KeyDataset(Dataset[SampleKey]):
    """Hands the sampler's keys to the collate function, which reads all samples of a batch at once."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: SampleKey) -> SampleKey:
        return key


class StepLoader(DataLoader):
    """A DataLoader over step batches that can be saved and resumed at an optimizer step.

    The saved state names the order, not a position in a prefetch queue: loading it into a loader over other data, or
    with another seed or batch size, is refused instead of silently training on a different stream.

    Args:
        sampler: of the run's steps.
        collate: makes a StepBatch of a key.
        completed_steps: how many optimizer steps are behind the run, asked when the state is saved.
        **options: of DataLoader.
    """

    def __init__(
        self,
        sampler: StepSampler,
        collate: Callable[[Any], StepBatch],
        completed_steps: Callable[[], int],
        **options: Any,
    ) -> None:
        self.step_sampler = sampler
        self.completed_steps = completed_steps
        # a private generator: creating an iterator must not draw from the global one (it would shift dropout)
        generator = torch.Generator().manual_seed(sampler.seed)
        # batch_size=None: the sampler yields whole steps
        super().__init__(
            KeyDataset(sampler.num_samples),
            batch_size=None,
            sampler=sampler,
            collate_fn=collate,
            generator=generator,
            **options,
        )

    def _identity(self) -> dict[str, int]:
        sampler = self.step_sampler
        return {
            "num_samples": sampler.num_samples,
            "global_batch_size": sampler.global_batch_size,
            "seed": sampler.seed,
        }

    def state_dict(self) -> dict[str, int]:
        """Order identity and the number of optimizer steps completed."""
        return {**self._identity(), "step": self.completed_steps()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after `state["step"]` steps.

        Raises:
            ValueError: the checkpoint was made with other data, batch size or seed.
        """
        for name, value in self._identity().items():
            if state[name] != value:
                raise ValueError(
                    f"cannot resume: the checkpoint was trained with {name}={state[name]}, this run has {value}; "
                    "restore that setting or start a new run (run.name=...)"
                )
        self.step_sampler.start_step = state["step"]


def evaluation_loader(
    build_batch: Callable[[Indices], Batch],
    indices: Indices,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    **options: Any,
) -> DataLoader:
    """A loader over these samples, each once, in their order; none is repeated to even out the ranks.

    Args:
        build_batch: makes a batch of some samples.
        indices: (n,) samples of all ranks; sorted by length, batches need little padding.
        batch_size: samples in a batch.
        rank: of this process.
        world_size: number of processes.
        **options: of DataLoader.
    """
    mine = indices[rank::world_size]
    batches = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    return DataLoader(
        batches,  # type: ignore[arg-type]  # a list is all that DataLoader asks for
        batch_size=None,
        collate_fn=partial(evaluation_batch, build_batch),
        generator=torch.Generator().manual_seed(0),
        **options,
    )
