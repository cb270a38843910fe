"""What an experiment's data must do, and what they may do beyond that.

A data module of this project is an ExperimentData: it says how many samples a split has, makes a batch from their
indices, and tells what the network must know of the data; loaders, sampling, resuming, splits and limits come with it.
What else an experiment's data can do are the protocols of protocols.py, to be had from here. A callback names the one
that it needs (`needs`), and what lacks it is told before anything is made; a command asks once, with isinstance.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired  # pydantic refuses typing's before Python 3.12

import lightning as L
import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase
from typing_extensions import TypedDict, Unpack

from datamodules.protocols import (
    SPLITS,
    AnswersPrompts,
    Check,
    CollateStep,
    CutsTexts,
    DataReport,
    DescribesPreparation,
    Example,
    LabelledData,
    NeedsData,
    PacksSamples,
    ProvesData,
    ReadsTexts,
    Split,
    missing_members,
)
from datamodules.sampling.step_batches import IGNORED, Batch, Draw, Indices, StepBatch, StepCollator, Weigh, tokens_fed
from datamodules.sampling.step_loader import StepLoader, StepSampler, evaluation_loader, steps_per_epoch
from datamodules.storage.memory_maps import send_maps_by_path

__all__ = [
    "IGNORED",
    "SPLITS",
    "AnswersPrompts",
    "Batch",
    "Check",
    "CollateStep",
    "CutsTexts",
    "DataReport",
    "DescribesPreparation",
    "Example",
    "ExperimentData",
    "Indices",
    "LabelledData",
    "Limits",
    "Loading",
    "NeedsData",
    "PacksSamples",
    "ProvesData",
    "ReadsTexts",
    "Split",
    "StepBatch",
    "Weigh",
    "digest_of",
    "missing_members",
]

SAMPLES_MEASURED = 256
"""So many training samples tell the mean number of tokens, where a data module does not say it."""


class Loading(TypedDict):
    """How samples become batches; the same settings in every experiment, with their values in conf/loading.yaml.

    Attributes:
        seed: of the training order.
        global_batch_size: samples in one optimizer step, over all devices.
        device_batch_size: samples in one forward pass; None takes a device's whole share of the global batch.
        evaluation_batch_size: samples in one evaluation batch.
        num_workers: loader processes.
        worker_start_method: how loader processes start: fork, spawn or forkserver; None is Python's choice.
        pin_memory: page-locked host memory, for faster copies to a GPU.
        cache_root: where prepared data is kept.
    """

    seed: int
    global_batch_size: Annotated[int, Ge(1)]
    device_batch_size: Annotated[int, Ge(1)] | None
    evaluation_batch_size: Annotated[int, Ge(1)]
    num_workers: Annotated[int, Ge(0)]
    worker_start_method: NotRequired[Literal["fork", "spawn", "forkserver"] | None]  # an older run has none
    pin_memory: bool
    cache_root: str


@dataclass(frozen=True)
class Limits:
    """What a run leaves out of its data (`trainer.limit_*_batches`, `overfit_batches`), for a quick look.

    Attributes:
        epoch_steps: steps after which an epoch ends; None for all of its samples.
        repeats_first_epoch: whether every epoch trains the samples of the first one again.
        batches: evaluation batches on each device, by split: a number, or as a float a share of all; a split that is
            not named is evaluated whole.
    """

    epoch_steps: int | None = None
    repeats_first_epoch: bool = False
    batches: dict[Split, int | float] | None = None


class ExperimentData(L.LightningDataModule, ABC):
    """Data of an experiment; a subclass gives what is abstract here, and prepares data in Lightning's two hooks.

    `prepare_data` writes what is costly into a cache, once; `setup` opens it, and may be called again.

    Args:
        **loading: see Loading.

    Attributes:
        tokenizer: of the texts; exported beside the model. None where the data are no text.
        evaluation_split: what `validate` evaluates; the evaluate command changes it.
        lengths: tokens of each training sample, (num_train_samples,): those of like length share a micro-batch. None
            keeps the samples of a step in their order.
        draw: which samples an epoch holds; None for each once.
        weigh: sum of the weights of a batch's targets, where the loss weighs them; the run sets it from its module.
        inner_steps: optimizer steps in a row that the same samples feed; the run sets it from its module.
        limits: what the run leaves out; the run sets it.
        notices: what a user should know of the data, one line each.
        length_key: setting that makes sequences shorter.
        test_size_key: setting that makes the test smaller; None where there is none but trainer.limit_test_batches.
    """

    length_key = "data.max_length"
    test_size_key: str | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    lengths: NDArray[np.int64] | None = None
    draw: Draw | None = None
    weigh: Weigh | None = None
    inner_steps: int = 1

    def __init__(self, **loading: Unpack[Loading]) -> None:
        super().__init__()
        self.seed = loading["seed"]
        self.global_batch_size = loading["global_batch_size"]
        self.device_batch_size = loading["device_batch_size"]
        self.evaluation_batch_size = loading["evaluation_batch_size"]
        self.loader_options: dict[str, Any] = {
            "num_workers": loading["num_workers"],
            "pin_memory": loading["pin_memory"],
        }
        if loading["num_workers"]:  # DataLoader refuses a start method without workers
            self.loader_options["multiprocessing_context"] = loading.get("worker_start_method")
            send_maps_by_path()
        self.cache_root = Path(loading["cache_root"])
        self.evaluation_split: Split = "validation"
        self.limits = Limits()
        self.notices: list[str] = []

    # ------------------------------------------------------------------ what only the experiment knows

    @abstractmethod
    def num_samples(self, split: Split) -> int:
        """Samples of a split after setup; 0 where there is no such split."""

    @abstractmethod
    def batch(self, split: Split, indices: Indices) -> Batch:
        """Some samples of a split as one batch on the CPU.

        Args:
            split: train, validation or test.
            indices: (n,) int64 numbers of the samples, 0 to num_samples(split) - 1.

        Returns:
            What the module's `loss_sum` takes. `labels` must be among it; `attention_mask` (1 for tokens, 0 for
            padding), or `num_tokens`, tells what is fed to the model. Labels of tokens have the shape of `input_ids`,
            (n, T) int64, and are -100 where nothing is to be learned; labels of classes are (n,).
        """

    @property
    @abstractmethod
    def net_arguments(self) -> dict[str, Any]:
        """What the network must know of the data, such as `vocab_size` or `label_names`; after setup."""

    # ------------------------------------------------------------------ what it may say besides

    def setup(self, stage: str | None = None) -> None:
        """Open what prepare_data has written; called more than once."""

    @property
    def module_arguments(self) -> dict[str, Any]:
        """What the module must know of the data, such as `class_counts`; after setup."""
        return {}

    def training_batch(self, epochs: Indices, indices: Indices) -> Batch:
        """Some training samples as one batch.

        Args:
            epochs: (n,) int64 pass over the data that each sample belongs to, for noise that is a pure function of
                (seed, epoch, sample).
            indices: (n,) int64 numbers of the samples.
        """
        return self.batch("train", indices)

    @property
    def longest_sequence(self) -> int | None:
        """Tokens of the longest sequence that the network meets, to be compared with its positions; None: unknown."""
        return None

    @property
    def tokens_per_sample(self) -> float:
        """Mean number of tokens that one training sample feeds to the model."""
        if self.lengths is not None:
            return float(self.lengths.mean())
        count = min(self.num_train_samples, SAMPLES_MEASURED)
        indices = np.linspace(0, self.num_train_samples - 1, count).astype(np.int64)
        return tokens_fed(self.training_batch(np.zeros_like(indices), indices)) / count

    def fingerprint(self) -> dict[str, Any]:
        """What tells these data from others, as JSON values; after setup, and cheap.

        Returns:
            `samples`, the number of each split; `digests`, of some of their batches, evenly spread, as training reads
            them; data of classes add `label_names` and a digest of all labels.
        """
        splits = [split for split in SPLITS if split != "test" or self.has_test_split]
        samples = {split: self.num_samples(split) for split in splits}
        digests = {}
        for split, total in samples.items():
            rows = np.linspace(0, total - 1, min(total, SAMPLES_MEASURED)).round().astype(np.int64)
            batch = self.training_batch(np.zeros_like(rows), rows) if split == "train" else self.batch(split, rows)
            digests[split] = digest_of(batch)
        return {"samples": samples, "digests": digests}

    def describe(self) -> dict[str, str]:
        """Lines for the banner of a run, by their names: what the data are."""
        sizes = [f"{self.num_samples(split):,} {split}" for split in SPLITS if self.num_samples(split)]
        return {"data": f"{', '.join(sizes)} samples"}

    # ------------------------------------------------------------------ what comes with it

    @property
    def num_train_samples(self) -> int:
        """Training samples; one epoch."""
        return self.num_samples("train")

    @property
    def awaits_samples(self) -> bool:
        """Whether the run's module adds training samples (Experiment.complete_data)."""
        return False

    @property
    def has_test_split(self) -> bool:
        """Whether there is a test split."""
        return self.num_samples("test") > 0

    @property
    def epoch_steps(self) -> int:
        """Optimizer steps of one epoch, as far as the limits let it go."""
        return self.limits.epoch_steps or steps_per_epoch(self.num_train_samples, self.global_batch_size)

    def evaluated(self, split: Split) -> Indices:
        """Samples (n,) of a split that an evaluation looks at: all, or as many as the limits allow."""
        return self.spread(split, self.num_samples(split))

    def spread(self, split: Split, total: int) -> Indices:
        """Numbers below `total`: all, or as many as the limits of a split allow, evenly spread."""
        limit = (self.limits.batches or {}).get(split)
        if limit is None:
            return np.arange(total, dtype=np.int64)
        size = self.evaluation_batch_size * self._place()[1]
        batches = limit if isinstance(limit, int) else max(1, int(limit * -(-total // size)))
        return np.linspace(0, total - 1, min(total, batches * size)).round().astype(np.int64)

    def longest_train_samples(self, count: int) -> Indices:
        """Numbers (count,) of the training samples with the most tokens, repeated where there are fewer."""
        if self.lengths is None:
            return np.arange(count, dtype=np.int64) % self.num_train_samples
        return np.resize(np.argsort(-self.lengths, kind="stable"), count)

    def largest_batch(self, size: int) -> Batch:
        """The training batch of so many samples that needs the most memory."""
        return self.training_batch(np.zeros(size, dtype=np.int64), self.longest_train_samples(size))

    def memory_probe(self) -> tuple[Batch, Batch, int]:
        """Batches of one and of two units that memory grows with, and how many of them the largest sample has."""
        return self.largest_batch(1), self.largest_batch(2), 1

    def step_collator(self, share: int) -> CollateStep:
        """Makes the step batches of a device that gets up to `share` samples of each."""
        return StepCollator(self.training_batch, self.device_batch_size or share, self.lengths, self.weigh)

    def train_dataloader(self) -> StepLoader:
        """Step batches of the whole run, this rank's share, from the trainer's current optimizer step on."""
        trainer = self.trainer
        assert trainer is not None
        rank, world_size = self._place()
        sampler = StepSampler(
            num_samples=self.num_train_samples,
            global_batch_size=self.global_batch_size,
            num_steps=trainer.max_steps,
            seed=self.seed,
            start_step=trainer.global_step,
            rank=rank,
            world_size=world_size,
            draw=self.draw,
            epoch_steps=self.limits.epoch_steps,
            repeats_first_epoch=self.limits.repeats_first_epoch,
            inner_steps=self.inner_steps,
        )
        collate = self.step_collator(-(-self.global_batch_size // world_size))
        return StepLoader(sampler, collate, lambda: trainer.global_step, **self.loader_options)

    def val_dataloader(self) -> DataLoader:
        """Samples of `evaluation_split`, each once."""
        return self.evaluation_loader(self.evaluation_split)

    def test_dataloader(self) -> DataLoader:
        """Test samples, each once."""
        return self.evaluation_loader("test")

    def evaluation_order(self, split: Split) -> Indices:
        """The samples of `evaluated`, in the order in which they are read."""
        return self.evaluated(split)

    def evaluation_loader(self, split: Split) -> DataLoader:
        """Samples of a split, each once, this rank's share."""
        rank, world_size = self._place()
        return evaluation_loader(
            partial(self.batch, split),
            self.evaluation_order(split),
            batch_size=self.evaluation_batch_size,
            rank=rank,
            world_size=world_size,
        )

    def _place(self) -> tuple[int, int]:
        """Rank and number of processes; a data module without a trainer is alone."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def __getstate__(self) -> dict[str, Any]:
        """What loader workers need that do not share memory with their parent: everything but the trainer."""
        return {**self.__dict__, "trainer": None}


def digest_of(values: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that change with any of these tensors, arrays, numbers and texts."""
    digest = hashlib.sha256()
    for name, value in sorted(values.items()):
        if isinstance(value, Tensor):
            value = value.numpy()
        kept = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
        digest.update(repr((name, getattr(value, "shape", None), len(kept))).encode() + kept)
    return digest.hexdigest()[:16]
