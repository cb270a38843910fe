"""Texts with labels, one truncated sequence each: film reviews of IMDb, or any files of the same form."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from typing_extensions import Unpack

from datamodules.classification import StoredTexts
from datamodules.contract import Batch, Indices, Loading
from datamodules.labelled.store import LabelledRows, LabelledSource, Leaks, write_labelled_texts
from datamodules.labelled.synthetic_texts import synthetic_texts
from datamodules.storage.cache import prepared_folder, read_manifest
from datamodules.text.plain_text import count_special_texts
from datamodules.text.tokenized_texts import (
    RaggedArray,
    Truncation,
    encode_texts,
    open_ragged,
    open_tokenizer,
    padded,
    save_ragged,
)
from datamodules.text.tokenizer_identity import tokenizer_identity

PREPARATION_VERSION = 2
"""Raise it whenever prepare_data writes something else for the same settings."""


class ImdbDataModule(StoredTexts):
    """Batches of tokenized texts and their classes.

    A batch holds `input_ids` and `attention_mask` (n, T) int64, padded on the right to its longest text, and `labels`:
    (n,) int64 class numbers, or (n, classes) float32 of 0 and 1 where a text bears any number of labels.

    Args:
        path: folder with train, validation and test files (jsonl, csv or parquet), or one file; None for `dataset`.
        dataset: data set on the Hugging Face hub, or `synthetic` for made-up texts.
        revision: of the data set; None for its newest.
        text_column: field that holds the text.
        label_column: field that holds the label.
        label_names: the classes in order; None takes them from the source, sorted where it only uses them.
        multi_label: whether a text bears any number of labels.
        label_separator: between several labels in one field of text.
        tokenizer: name on the hub or folder; `words` learns one from the training texts.
        max_length: tokens of the longest sequence, special ones included.
        truncation: the part that goes where a text is longer.
        validation_share: of the training split, held out where the source has no validation split.
        split_seed: of that choice and of subsets, so that the same texts are held out whatever the run's seed.
        max_train_samples: keep so many training samples, classes in proportion; None keeps all.
        max_evaluation_samples: keep so many samples of validation, and so many of test, classes in proportion; None
            keeps all.
        leaks: what happens to training texts that are, exactly or nearly, in validation or test too.
        **loading: see Loading.
    """

    def __init__(
        self,
        *,
        path: str | None,
        dataset: str,
        revision: str | None,
        text_column: str,
        label_column: str,
        label_names: list[str | int | float] | None,
        multi_label: bool,
        label_separator: str,
        tokenizer: str,
        max_length: Annotated[int, Ge(1)],
        truncation: Truncation,
        validation_share: Annotated[float, Gt(0), Lt(1)],
        split_seed: int,
        max_train_samples: Annotated[int, Ge(1)] | None,
        max_evaluation_samples: Annotated[int, Ge(1)] | None,
        leaks: Leaks,
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(**loading)
        columns = (text_column, label_column, label_names, multi_label, label_separator)
        self.source = LabelledSource(path, dataset, revision, *columns, synthetic=synthetic_texts)
        self.tokenizer_name = tokenizer
        self.max_length = max_length
        self.truncation: Truncation = truncation
        self.split_options: dict[str, Any] = {
            "validation_share": validation_share,
            "split_seed": split_seed,
            "max_train_samples": max_train_samples,
            "max_evaluation_samples": max_evaluation_samples,
            "leaks": leaks,
        }
        self.multi_label = multi_label

    # ------------------------------------------------------------------ preparation

    def prepare_data(self) -> None:
        """Read, check and tokenize every text, once.

        Raises:
            ValueError: something is wrong with the data, naming file and line.
        """
        self._prepared()

    def _prepared(self) -> Path:
        settings = {
            "version": PREPARATION_VERSION,
            **self.source.identity(),
            "tokenizer": tokenizer_identity(self.tokenizer_name),
            "max_length": self.max_length,
            "truncation": self.truncation,
        }
        return prepared_folder(self.cache_root, "imdb", settings, self._write)

    def _write(self, folder: Path) -> dict[str, Any]:
        splits = self.source.read()
        facts = write_labelled_texts(folder, splits, self.source)
        tokenizer = open_tokenizer(self.tokenizer_name, splits["train"].texts)
        texts = [text for split in splits.values() for text in split.texts]
        rows, lengths = encode_texts(
            texts, tokenizer, max_length=self.max_length, truncation=self.truncation, progress="tokenizing"
        )
        save_ragged(folder / "tokens", rows, np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
        np.save(folder / "lengths.npy", lengths)
        tokenizer.save_pretrained(folder / "tokenizer")
        return {**facts, "special_texts": count_special_texts(texts, tokenizer)}

    # ------------------------------------------------------------------ set-up

    def setup(self, stage: str | None = None) -> None:
        """Open the cache and cut the splits.

        Raises:
            ValueError: the settings leave a split empty.
        """
        if self.folder is not None:
            return
        folder = self._prepared()
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self.tokens: RaggedArray = open_ragged(folder / "tokens")
        store = LabelledRows(folder, read_manifest(folder)["facts"], **self.split_options)
        self.open_rows(folder, store, self.tokens.lengths)

    def describe(self) -> dict[str, str]:
        """Lines for the banner of a run: sizes, class balance, and how many texts are cut."""
        uncut = np.load(Path(self.folder or "") / "lengths.npy")[self.rows["train"]]
        share = float((uncut > self.max_length).mean())
        loses = f", {share:.0%} of them longer than {self.max_length} and cut at the {self.truncation}" if share else ""
        return {**self.store.describe(), "tokens": f"{int(np.median(uncut)):,} in the median training text{loses}"}

    # ------------------------------------------------------------------ batches

    def rows_batch(self, rows: Indices) -> Batch:
        """Texts of some rows of the store."""
        labels = torch.from_numpy(self.store.labels[rows])
        return {
            **padded([self.tokens[row] for row in rows.tolist()], self.tokenizer.pad_token_id),
            "labels": labels.float() if self.multi_label else labels,
        }

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence of any split, special ones included."""
        return int(self.row_lengths.max())

    @property
    def length_limit(self) -> str:
        """What a text may be at most."""
        return f"{self.max_length:,} tokens"

    def num_cut(self, texts: list[str], batch: Batch, tokenizer: PreTrainedTokenizerBase) -> int:
        """How many texts of a batch are longer; only full rows can be, and are tokenized again."""
        full = (batch["attention_mask"].sum(1) == self.max_length).tolist()
        whole = [text for text, is_full in zip(texts, full, strict=True) if is_full]
        _, lengths = encode_texts(whole, tokenizer, max_length=self.max_length, truncation=self.truncation)
        return int((lengths > self.max_length).sum())

    def text_batch(self, texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """What the network takes for texts that are in no split; needs no prepared data."""
        rows, _ = encode_texts(texts, tokenizer, max_length=self.max_length, truncation=self.truncation)
        return padded(rows, tokenizer.pad_token_id)
