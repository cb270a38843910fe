"""What an experiment's data can do beyond the contract, as protocols, and what they then say."""

from abc import abstractmethod
from dataclasses import dataclass
from inspect import get_annotations
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules.sampling.step_batches import Batch, SampleKey, StepBatch

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class CollateStep(Protocol):
    """Makes a StepBatch of the key of a step."""

    def __call__(self, key: SampleKey) -> StepBatch:
        """Key (epoch, sample indices) -> the batch."""


@runtime_checkable
class LabelledData(Protocol):
    """Samples of classes: what ClassificationEvaluation measures, and baselines are fitted to.

    Attributes:
        label_names: the classes in order.
        multi_label: whether a sample bears any number of labels.
        ordered: whether the classes have an order, so that a mistake can be small or large.
    """

    label_names: list[str]
    multi_label: bool = False
    ordered: bool = False

    @abstractmethod
    def labels(self, split: Split) -> NDArray[np.int64]:
        """Class numbers of a split, (n,), or (n, classes) of 0 and 1."""
        ...

    @abstractmethod
    def texts(self, split: Split) -> list[str]:
        """Whole texts of a split."""
        ...

    def ids(self, split: Split) -> list[str] | None:
        """Names of the samples of a split; None where the data have none."""
        return None


@runtime_checkable
class AnswersPrompts(Protocol):
    """Prompts that a language model continues: what verify compares between batched and single generation."""

    @abstractmethod
    def prompts(self, split: Split) -> list[Tensor] | Tensor:
        """Tokens of each prompt of a split: (length,) int64 tensors, or one (n, length) tensor."""
        ...


@runtime_checkable
class PacksSamples(Protocol):
    """Samples that share one flat batch: what verify compares with each sample alone."""

    @abstractmethod
    def packed_and_single(self, count: int) -> tuple[Batch, list[Batch]]:
        """Some samples in one batch, and each of them as a batch of its own."""
        ...


@runtime_checkable
class ReadsTexts(Protocol):
    """Texts of no split become a batch: what predict classifies."""

    @abstractmethod
    def text_batch(self, texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """What the network takes for some texts; needs no prepared data."""
        ...


@runtime_checkable
class CutsTexts(Protocol):
    """Data that cut long texts: what predict counts."""

    @property
    def length_limit(self) -> str:
        """What a text may be at most, in words: `512 tokens`."""
        ...

    def num_cut(self, texts: list[str], batch: Batch, tokenizer: PreTrainedTokenizerBase) -> int:
        """How many of some texts are longer than that; `batch` is what text_batch made of them."""
        ...


@dataclass(frozen=True)
class Check:
    """A claim about the data.

    Attributes:
        claim: in words, as it should be.
        holds: whether it does.
        counted: in words, what was counted.
        remedy: overrides or a command to paste where it does not; empty where no setting mends it.
    """

    claim: str
    holds: bool
    counted: str
    remedy: str = ""


@dataclass(frozen=True)
class Example:
    """A sample as the model meets it.

    Attributes:
        title: where the sample is from, and its tokens.
        stretches: text, and whether the model is trained to say it, in order.
    """

    title: str
    stretches: list[tuple[str, bool]]


@dataclass(frozen=True)
class DataReport:
    """What a data module can say of its data.

    Attributes:
        examples: samples of the training split.
        checks: claims that were looked at on every sample.
        pictures: drawn in characters, several lines each.
    """

    examples: list[Example]
    checks: list[Check]
    pictures: list[str]


@runtime_checkable
class ProvesData(Protocol):
    """Data that can prove something of every sample: what doctor shows."""

    @abstractmethod
    def prove(self, num_examples: int) -> DataReport:
        """Examples to look at, and what holds of all samples."""
        ...


@runtime_checkable
class DescribesPreparation(Protocol):
    """Data whose preparation is worth a report: what prepare prints."""

    @abstractmethod
    def preparation_lines(self) -> list[str]:
        """What was prepared, and where it lies."""
        ...


@runtime_checkable
class NeedsData(Protocol):
    """A callback that works with some data only.

    Attributes:
        needs: one of the protocols above, or the class of an experiment's data.
    """

    needs: type


def missing_members(data: object, protocol: type) -> list[str]:
    """Names that a protocol (or a class of data) asks for and the data do not have; none where they are one."""
    if isinstance(data, protocol):
        return []
    names = {name for kind in protocol.__mro__[:-1] for name in vars(kind) if not name.startswith("_")}
    names |= set(get_annotations(protocol))
    return sorted(name for name in names if not hasattr(data, name)) or [f"the base class {protocol.__name__}"]
