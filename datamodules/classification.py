"""What data modules of classes share, and those that keep their texts in a store: rows, classes, like lengths."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

import numpy as np
from annotated_types import Ge, Gt, Lt
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from typing_extensions import Unpack

from datamodules.contract import SPLITS, Batch, ExperimentData, Indices, LabelledData, Loading, Split, digest_of
from datamodules.labelled.labels import class_counts
from datamodules.labelled.store import LabelledRows, LabelledSource, Leaks, write_labelled_texts
from datamodules.labelled.texts import LabelledTexts
from datamodules.storage.cache import prepared_folder, read_manifest
from datamodules.text.plain_text import count_special_texts
from datamodules.text.tokenized_texts import RaggedArray, open_ragged, open_tokenizer, save_ragged
from datamodules.text.tokenizer_identity import tokenizer_identity


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

    def fingerprint(self) -> dict[str, Any]:
        """What tells these data from others: the classes in order, and every label, besides."""
        found = super().fingerprint()
        for split in SPLITS:
            if split in found["digests"]:
                found["digests"][split] = digest_of({"labels": self.labels(split), "some": found["digests"][split]})
        return {**found, "label_names": list(self.label_names)}


class TextOptions(Loading):
    """Where labelled texts come from, and what becomes of them, beside how samples become batches.

    Attributes:
        path: folder with train, validation and test files (jsonl, csv or parquet), or one file; None for `dataset`.
        dataset: data set on the Hugging Face hub, or `synthetic` for made-up texts; None where there is a path.
        revision: of the data set; None for its newest.
        text_column: field that holds the text.
        label_column: field that holds the label.
        label_names: the classes in order, from the lowest to the highest where they have one; None takes them from the
            source, sorted where it only uses them.
        tokenizer: name on the hub or folder; `words` learns one from the training texts.
        validation_share: of the training split, held out where the source has no validation split.
        split_seed: of that choice and of subsets, so that the same texts are held out whatever the run's seed.
        max_train_samples: keep so many training samples, classes in proportion; None keeps all.
        max_evaluation_samples: keep so many samples of validation, and so many of test, classes in proportion; None
            keeps all.
        leaks: what happens to training texts that are, exactly or nearly or by their group, in validation or test too.
    """

    path: str | None
    dataset: str | None
    revision: str | None
    text_column: str
    label_column: str
    label_names: list[str | int | float] | None
    tokenizer: str
    validation_share: Annotated[float, Gt(0), Lt(1)]
    split_seed: int
    max_train_samples: Annotated[int, Ge(1)] | None
    max_evaluation_samples: Annotated[int, Ge(1)] | None
    leaks: Leaks


class StoredTexts(ClassificationData):
    """Texts of a LabelledSource, tokenized once into the cache; its rows become batches.

    Args:
        synthetic: makes up the texts of `synthetic`.
        multi_label: whether a text bears any number of labels.
        label_separator: between several labels in one field of text.
        extra_columns: see LabelledSource.
        test_share: of the training split, held out for a test where the source has none; 0 holds none out.
        **options: see TextOptions and Loading; texts of like length share a micro-batch.

    Attributes:
        cache_name: folder of the cache.
        preparation_version: raised whenever prepare_data writes something else for the same settings.
        tokens: ids of each row of the store.
        row_lengths: (rows,) tokens that each row of the store feeds to the network.
    """

    test_size_key = "data.max_evaluation_samples"
    cache_name: ClassVar[str]
    preparation_version: ClassVar[int]
    tokens: RaggedArray
    row_lengths: NDArray[np.int64]

    def __init__(
        self,
        *,
        synthetic: Callable[[], dict[str, LabelledTexts]],
        multi_label: bool = False,
        label_separator: str = "|",
        extra_columns: Mapping[str, str | None] | None = None,
        test_share: float = 0.0,
        **options: Unpack[TextOptions],
    ) -> None:
        super().__init__(**cast("Loading", options))
        self.source = LabelledSource(
            path=options["path"],
            dataset=options["dataset"],
            revision=options["revision"],
            text_column=options["text_column"],
            label_column=options["label_column"],
            label_names=options["label_names"],
            multi_label=multi_label,
            label_separator=label_separator,
            synthetic=synthetic,
            extra_columns=extra_columns or {},
        )
        self.multi_label = multi_label
        self.tokenizer_name = options["tokenizer"]
        self.test_share = test_share
        self.options = options
        self.folder: Path | None = None

    # ------------------------------------------------------------------ preparation and set-up

    def token_settings(self) -> dict[str, Any]:
        """What the tokens depend on beside texts and tokenizer, as JSON values."""
        return {}

    @abstractmethod
    def tokenize(
        self, folder: Path, splits: dict[str, LabelledTexts], texts: list[str], tokenizer: PreTrainedTokenizerBase
    ) -> Iterable[NDArray[np.int64]]:
        """Token ids of each of the texts, those of all splits; further facts go into the folder."""

    def prepare_data(self) -> None:
        """Read, check and tokenize every text, once.

        Raises:
            ValueError: something is wrong with the data, naming file and line, or with the settings.
        """
        self._prepared()

    def _prepared(self) -> Path:
        settings = {
            "version": self.preparation_version,
            **self.source.identity(),
            "tokenizer": tokenizer_identity(self.tokenizer_name),
            **self.token_settings(),
        }
        return prepared_folder(self.cache_root, self.cache_name, settings, self._write)

    def _write(self, folder: Path) -> dict[str, Any]:
        splits = self.source.read()
        facts = write_labelled_texts(folder, splits, self.source)
        tokenizer = open_tokenizer(self.tokenizer_name, splits["train"].texts)
        texts = [text for split in splits.values() for text in split.texts]
        dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
        rows = self.tokenize(folder, splits, texts, tokenizer)
        save_ragged(folder / "tokens", [row.astype(dtype) for row in rows], dtype)
        tokenizer.save_pretrained(folder / "tokenizer")
        return {**facts, "special_texts": count_special_texts(texts, tokenizer)}

    def setup(self, stage: str | None = None) -> None:
        """Open the cache and cut the splits.

        Raises:
            ValueError: the settings leave a split empty, or do not fit the tokenizer.
        """
        if self.folder is not None:
            return
        folder = self._prepared()
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self.tokens = open_ragged(folder / "tokens")
        self.row_lengths = self.open_tokens(folder)
        self.store = LabelledRows(
            folder,
            read_manifest(folder)["facts"],
            validation_share=self.options["validation_share"],
            test_share=self.test_share,
            split_seed=self.options["split_seed"],
            max_train_samples=self.options["max_train_samples"],
            max_evaluation_samples=self.options["max_evaluation_samples"],
            leaks=self.options["leaks"],
            groups=self.groups(),
        )
        self.rows = self.store.rows
        self.label_names = self.store.label_names
        self.notices = list(self.store.notices)
        self.lengths = self.row_lengths[self.rows["train"]]
        self.folder = folder

    def open_tokens(self, folder: Path) -> NDArray[np.int64]:
        """Tokens that each row feeds to the network, (rows,), from `self.tokens` and what else `tokenize` wrote."""
        return self.tokens.lengths

    def groups(self) -> NDArray[np.int64] | None:
        """Number of the group of each row, (rows,): those of one group stay in one split; None for no groups."""
        return None

    # ------------------------------------------------------------------ samples

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
