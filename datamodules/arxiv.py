"""Windows of arXiv papers from K categories."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from typing_extensions import Unpack

from datamodules.contract import IGNORED, Batch, ExperimentData, Indices, Loading, Split
from datamodules.corpus.prepared_store import find_store
from datamodules.corpus.token_store import SPLITS, SPLITS_FILE, TokenStore, open_store
from datamodules.corpus.token_windows import (
    DocumentRanges,
    SequentialWindows,
    document_ranges,
    random_windows,
    read_windows,
    sequential_windows,
)
from datamodules.sampling.order import hash_key, permute
from datamodules.text.learned_bpe import vocabulary_size
from datamodules.text.plain_text import describe_special_texts


class ArxivDataModule(ExperimentData):
    """Random token windows to train on, sequential ones to evaluate on, from documents of chosen categories.

    A batch holds `input_ids`, `labels` and `attention_mask`, each (n, sequence_length) int64, and `num_tokens`, the
    tokens that are fed: a window of 101 is 100 inputs and their shifted targets. Evaluation batches also hold
    `category` (n,) int64, `held_out` (n,) bool, `document` (n,) int64 and `num_bytes` (n,) float32, see EvaluationSet.

    Args:
        path: folder or s3:// prefix with train|validation|test.jsonl|parquet, or with a finished token store; None
            takes the data set `hub_name` of the Hugging Face hub.
        hub_name: data set on the hub.
        hub_config: its configuration.
        text_column: field that holds the document.
        label_column: field that holds its category.
        tokenizer: Hugging Face name or path, or bpe:<tokens> for one that is learned from the training documents.
        store: s3:// prefix that shares the prepared store: fetched from there if it is there, put there afterwards if
            not; None keeps it in the cache only.
        max_documents_per_split: size of the sample that is prepared for a first look.
        full_dataset: prepare every document, whatever `max_documents_per_split` says.
        preparation_workers: tokenizing processes; None takes one per core.
        sequence_length: tokens of a window.
        windows_per_epoch: what counts as an epoch.
        num_categories: K, how many categories are mixed; None takes all.
        category_seed: which K; the categories of a smaller K are among those of a larger one.
        categories: or their names.
        evaluate_held_out: whether evaluations look at the categories left out, too.
        evaluation_windows_per_category: windows of each category in an evaluation while training, spread evenly;
            None takes all.
        test_windows_per_category: windows of each category in the test at the end; None takes all.
        **loading: see Loading; a sample is a window.
    """

    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        *,
        path: str | None,
        hub_name: str,
        hub_config: str | None,
        text_column: str,
        label_column: str,
        tokenizer: str,
        store: str | None,
        max_documents_per_split: Annotated[int, Ge(1)],
        full_dataset: bool,
        preparation_workers: Annotated[int, Ge(1)] | None,
        sequence_length: Annotated[int, Ge(2)],
        windows_per_epoch: Annotated[int, Ge(1)],
        num_categories: int | None,
        category_seed: int,
        categories: list[str] | None,
        evaluate_held_out: bool,
        evaluation_windows_per_category: Annotated[int, Ge(1)] | None,
        test_windows_per_category: Annotated[int, Ge(1)] | None,
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(**loading)
        self.source_options: dict[str, Any] = {
            "path": path,
            "hub_name": hub_name,
            "hub_config": hub_config,
            "text_column": text_column,
            "label_column": label_column,
            "tokenizer_name": tokenizer,
            "shared_store": store,
            "max_documents_per_split": None if full_dataset else max_documents_per_split,
            "num_workers": preparation_workers or os.cpu_count() or 1,
        }
        self.sequence_length = sequence_length
        self.windows_per_epoch = windows_per_epoch
        self.num_categories = num_categories
        self.category_seed = category_seed
        self.category_names = categories
        self.evaluate_held_out = evaluate_held_out
        self.windows_per_category: dict[Split, int | None] = {
            "train": evaluation_windows_per_category,
            "validation": evaluation_windows_per_category,
            "test": test_windows_per_category,
        }
        self.store: TokenStore | None = None
        self._evaluation_sets: dict[Split, EvaluationSet] = {}

    @staticmethod
    def check(settings: Mapping[str, Any]) -> None:
        """Whether the categories are chosen in one way only, and a tokenizer to learn has a size that can be.

        Raises:
            ValueError: they are not, or it has not.
        """
        vocabulary_size(settings["tokenizer"])
        if settings["num_categories"] is not None and settings["categories"] is not None:
            raise ValueError("data.num_categories and data.categories exclude each other: a number, or the names")

    # ------------------------------------------------------------------ preparation and set-up

    def prepare_data(self) -> None:
        """Tokenize the corpus, or fetch it prepared, once."""
        self._prepared()

    def _prepared(self) -> Path:
        return find_store(self.cache_root, **self.source_options)

    def setup(self, stage: str | None = None) -> None:
        """Map the store into memory and choose the categories.

        Raises:
            ValueError: the store is damaged, or does not hold the categories asked for.
        """
        if self.store is not None:
            return
        self.store = open_store(self._prepared())
        # stores of others may be older than the count
        special = describe_special_texts(self.store.facts.get("special_texts", {}), "documents")
        self.notices = [special] if special else []
        self.tokenizer = AutoTokenizer.from_pretrained(self.store.folder / "tokenizer")
        self.chosen = choose_categories(
            self.store.categories,
            num_categories=self.num_categories,
            category_seed=self.category_seed,
            names=self.category_names,
        )
        self.held_out = [name for name in self.store.categories if name not in self.chosen]
        self.train_documents = document_ranges(self.store, "train", self.chosen, length=self.sequence_length)
        self.evaluation_set("validation")  # a split without windows is found now, not at the first evaluation

    @property
    def net_arguments(self) -> dict[str, int | None]:
        """What the network must know of the data."""
        return {
            "vocab_size": self._opened.facts["vocab_size"],
            "pad_token_id": self.tokenizer.pad_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
        }

    @property
    def _opened(self) -> TokenStore:
        assert self.store is not None, "call setup() first"
        return self.store

    @property
    def has_test_split(self) -> bool:
        """Whether every chosen category has test documents that hold a window."""
        ranges = [self._opened.documents("test", name, min_length=self.sequence_length) for name in self.chosen]
        return all(start < stop for start, stop in ranges)

    def num_samples(self, split: Split) -> int:
        """Windows of an epoch of training, or of the evaluations of another split."""
        return self.windows_per_epoch if split == "train" else len(self.evaluation_set(split).windows.starts)

    @property
    def tokens_per_sample(self) -> float:
        """Tokens that one window feeds to the model: its last one is a target only."""
        return float(self.sequence_length - 1)

    def preparation_lines(self) -> list[str]:
        """What the store holds, for the prepare command."""
        store = self._opened
        splits = json.loads((store.folder / SPLITS_FILE).read_text(encoding="utf-8"))
        lines = [
            f"{store.facts['num_documents']:,} documents, {store.facts['num_tokens']:,} tokens as "
            f"{store.facts['dtype']}, {sum(store.facts['num_empty_documents'].values()):,} empty ones left out",
        ]
        width = max(map(len, store.categories))
        for name in store.categories:
            counts = ", ".join(
                f"{split} {splits[split]['documents'][name]:,} ({splits[split]['tokens'][name]:,} tokens)"
                for split in SPLITS
            )
            lines.append(f"  {name:{width}}  {counts}")
        return [*lines, *self.notices, f"in {store.folder}"]

    def describe(self) -> dict[str, str]:
        """Lines for the banner of a run."""
        ranges, store = self.train_documents, self._opened
        short = int(ranges.num_too_short.sum())
        counts = ", ".join(f"{name} {count:,}" for name, count in zip(ranges.categories, ranges.counts, strict=True))
        lines = {
            "categories": f"{len(self.chosen)} of {len(store.categories)}; training documents: {counts}"
            + (f"; {short:,} shorter than {self.sequence_length} tokens are left out" if short else ""),
        }
        if self.source_options["max_documents_per_split"] is not None:
            lines["data"] = (
                f"a first look at {self.source_options['max_documents_per_split']} documents of each split; "
                "data.full_dataset=true takes all"
            )
        return lines

    def evaluation_windows(self, split: Split) -> torch.Tensor:
        """Tokens of the fixed windows of a split, (n, sequence_length) int64."""
        windows = self.evaluation_set(split).windows
        return torch.from_numpy(read_windows(self._opened, windows.starts, self.sequence_length))

    def prompts(self, split: Split) -> list[torch.Tensor]:
        """The first third of each evaluation window of a split."""
        return list(self.evaluation_windows(split)[:, : max(1, self.sequence_length // 3)])

    # ------------------------------------------------------------------ batches

    def _batch(self, starts: NDArray[np.int64]) -> Batch:
        tokens = torch.from_numpy(read_windows(self._opened, starts, self.sequence_length))
        labels = tokens.clone()
        labels[:, 0] = IGNORED
        return {
            "input_ids": tokens,
            "labels": labels,
            "attention_mask": torch.ones_like(tokens),
            "num_tokens": len(starts) * (self.sequence_length - 1),
        }

    def training_windows(
        self, epochs: NDArray[np.int64], indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Index rows and first tokens of training windows; a pure function of (seed, epochs, indices)."""
        return random_windows(self.train_documents, epochs, indices, seed=self.seed)

    def training_batch(self, epochs: Indices, indices: Indices) -> Batch:
        """Random windows of the chosen categories."""
        return self._batch(self.training_windows(epochs, indices)[1])

    def evaluation_set(self, split: Split) -> "EvaluationSet":
        """The fixed windows of a split, those of chosen categories first.

        Raises:
            StoreError: a chosen category has no window in this split.
        """
        if split not in self._evaluation_sets:
            store, length = self._opened, self.sequence_length
            held_out = []
            if self.evaluate_held_out:
                for name in self.held_out:
                    start, stop = store.documents(split, name, min_length=length)
                    held_out += [name] if start < stop else []
            ranges = document_ranges(store, split, [*self.chosen, *held_out], length=length)
            windows = sequential_windows(ranges, max_per_category=self.windows_per_category[split])
            self._evaluation_sets[split] = EvaluationSet(ranges, windows, len(self.chosen))
        return self._evaluation_sets[split]

    def evaluated(self, split: Split) -> Indices:
        """Windows of the evaluation set that an evaluation looks at; `train` has one beside its random windows."""
        return self.spread(split, len(self.evaluation_set(split).windows.starts))

    def batch(self, split: Split, indices: Indices) -> Batch:
        """Sequential windows of a split."""
        chosen = self.evaluation_set(split)
        windows = chosen.windows
        category = windows.categories[indices]
        return {
            **self._batch(windows.starts[indices]),
            "category": torch.from_numpy(category),
            "held_out": torch.from_numpy(category >= chosen.num_chosen),
            "document": torch.from_numpy(windows.rows[indices]),
            "num_bytes": torch.from_numpy(windows.num_bytes[indices].astype(np.float32)),
        }


@dataclass(frozen=True)
class EvaluationSet:
    """The fixed windows of one split.

    Attributes:
        ranges: the documents they come from; `ranges.categories` are what a batch's `category` counts.
        windows: the windows; a batch's `document` is the index row, `num_bytes` the text behind a window's targets.
        num_chosen: so many of the categories are trained on, the others are held out.
    """

    ranges: DocumentRanges
    windows: SequentialWindows
    num_chosen: int


def choose_categories(
    available: list[str], *, num_categories: int | None, category_seed: int, names: list[str] | None
) -> list[str]:
    """The categories to train on, sorted.

    Args:
        available: sorted names.
        num_categories: K; the first K of a permutation keyed by `category_seed`, so that choices are nested in K.
        category_seed: which permutation.
        names: or the names.

    Raises:
        ValueError: K is out of range, or a name is unknown.
    """
    if names is not None:
        unknown = [name for name in names if name not in available]
        if unknown or not names:
            raise ValueError(
                f"data.categories={names}: {', '.join(unknown) or 'none'} not in the data; "
                f"there are {', '.join(available)}"
            )
        return sorted(set(names))
    if num_categories is None:
        return list(available)
    if not 1 <= num_categories <= len(available):
        raise ValueError(
            f"data.num_categories={num_categories}: the data have {len(available)} categories "
            f"({', '.join(available)}); choose 1 to {len(available)}"
        )
    order = permute(np.arange(len(available)), length=len(available), key=hash_key(category_seed))
    return sorted(available[number] for number in order[:num_categories])
