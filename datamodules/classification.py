"""What data modules of classes share, and those that keep their texts in a store: rows, classes, like lengths."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from typing_extensions import Unpack

from datamodules.contract import Batch, ExperimentData, Indices, LabelledData, Loading, Split
from datamodules.labelled.labels import class_counts
from datamodules.labelled.store import LabelledRows


class ClassificationData(ExperimentData, LabelledData):
    """Data of classes: a subclass gives `label_names`, `labels`, `texts`, `batch` and a tokenizer.

    Args:
        **loading: see Loading.
    """

    tokenizer: PreTrainedTokenizerBase

    @property
    def net_arguments(self) -> dict[str, Any]:
        """What the network must know of the data."""
        return {
            "vocab_size": len(self.tokenizer),
            "pad_token_id": self.tokenizer.pad_token_id,
            "label_names": self.label_names,
            "multi_label": self.multi_label,
        }

    @property
    def module_arguments(self) -> dict[str, Any]:
        """What the module must know of the data."""
        return {"class_counts": self.class_counts}

    def num_samples(self, split: Split) -> int:
        """Samples of a split; 0 where there is no such split."""
        return len(self.labels(split))

    @property
    def class_counts(self) -> list[int]:
        """Training samples of each class."""
        return class_counts(self.labels("train"), len(self.label_names)).tolist()


class StoredTexts(ClassificationData):
    """Texts and labels of a LabelledRows store; `setup` of the one that extends it calls `open_rows`.

    Args:
        **loading: see Loading; texts of like length share a micro-batch.

    Attributes:
        row_lengths: (rows,) tokens that each row of the store feeds to the network.
    """

    row_lengths: NDArray[np.int64]

    def __init__(self, **loading: Unpack[Loading]) -> None:
        super().__init__(**loading)
        self.folder: Path | None = None

    def open_rows(self, folder: Path, store: LabelledRows, row_lengths: NDArray[np.int64]) -> None:
        """Take over prepared data.

        Args:
            folder: of the cache.
            store: its texts and labels.
            row_lengths: (rows,) tokens that each row feeds to the network.
        """
        self.folder = folder
        self.store = store
        self.rows = store.rows
        self.label_names = store.label_names
        self.notices = list(store.notices)
        self.row_lengths = row_lengths
        self.lengths = row_lengths[self.rows["train"]]

    @abstractmethod
    def rows_batch(self, rows: Indices) -> Batch:
        """Batch of some rows of the store."""

    def num_samples(self, split: Split) -> int:
        """Texts of a split; 0 where there is no such split."""
        return len(self.rows.get(split, ()))

    def labels(self, split: Split) -> NDArray[np.int64]:
        """Class numbers of a split, (n,), or (n, classes) of 0 and 1."""
        return self.store.labels[self.rows[split]]

    def texts(self, split: Split) -> list[str]:
        """Whole texts of a split."""
        return [self.store.texts.text(row) for row in self.rows[split].tolist()]

    def batch(self, split: Split, indices: Indices) -> Batch:
        """Texts of a split."""
        return self.rows_batch(self.rows[split][indices])

    def evaluation_order(self, split: Split) -> Indices:
        """The longest first: batches need little padding."""
        chosen = self.evaluated(split)
        return chosen[np.argsort(-self.row_lengths[self.rows[split][chosen]], kind="stable")]
