"""Texts with labels, one truncated sequence each: film reviews of IMDb, or any files of the same form."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules.classification import LabelledDataModule
from datamodules.labelled.store import LabelledRows, LabelledSource, Leaks, write_labelled_texts
from datamodules.labelled.synthetic_texts import synthetic_texts
from datamodules.sampling.step_batches import Batch
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
    tokenizer_identity,
)

PREPARATION_VERSION = 2
"""Raise it whenever prepare_data writes something else for the same settings."""


class ImdbDataModule(LabelledDataModule):
    """Batches of tokenized texts and their classes.

    A batch holds `input_ids` and `attention_mask` (n, T) int64, padded on the right to its longest text, and `labels`:
    (n,) int64 class numbers, or (n, classes) float32 of 0 and 1 where a text bears any number of labels.

    Args:
        path: see LabelledSource, as the next seven.
        dataset: likewise.
        revision: likewise.
        text_column: likewise.
        label_column: likewise.
        label_names: likewise.
        multi_label: likewise.
        label_separator: likewise.
        tokenizer: name on the hub or folder; `words` learns one from the training texts.
        max_length: tokens of the longest sequence, special ones included.
        truncation: the part that goes where a text is longer.
        validation_share: see LabelledRows, as the next four.
        split_seed: likewise.
        max_train_samples: likewise.
        max_evaluation_samples: likewise.
        leaks: likewise.
        seed: see LabelledDataModule, as the next six.
        global_batch_size: likewise.
        device_batch_size: likewise.
        evaluation_batch_size: likewise.
        num_workers: likewise.
        pin_memory: likewise.
        cache_root: likewise.
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
        max_length: int,
        truncation: Truncation,
        validation_share: float,
        split_seed: int,
        max_train_samples: int | None,
        max_evaluation_samples: int | None,
        leaks: Leaks,
        seed: int,
        global_batch_size: int,
        device_batch_size: int | None,
        evaluation_batch_size: int,
        num_workers: int,
        pin_memory: bool,
        cache_root: str,
    ) -> None:
        super().__init__(
            seed=seed,
            global_batch_size=global_batch_size,
            device_batch_size=device_batch_size,
            evaluation_batch_size=evaluation_batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            cache_root=cache_root,
        )
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
        self.open_rows(folder, LabelledRows(folder, read_manifest(folder)["facts"], **self.split_options))
        self.tokens: RaggedArray = open_ragged(folder / "tokens")
        self.lengths = self.tokens.lengths

    def describe(self) -> dict[str, str]:
        """Lines for the banner of a run: sizes, class balance, and how many texts are cut."""
        uncut = np.load(Path(self.folder or "") / "lengths.npy")[self.rows["train"]]
        share = float((uncut > self.max_length).mean())
        loses = f", {share:.0%} of them longer than {self.max_length} and cut at the {self.truncation}" if share else ""
        return {**self.store.describe(), "tokens": f"{int(np.median(uncut)):,} in the median training text{loses}"}

    # ------------------------------------------------------------------ batches

    def rows_batch(self, rows: NDArray[np.int64]) -> Batch:
        """Texts of some rows of the store."""
        labels = torch.from_numpy(self.store.labels[rows])
        return {
            **padded([self.tokens[row] for row in rows.tolist()], self.tokenizer.pad_token_id),
            "labels": labels.float() if self.multi_label else labels,
        }

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence of any split, special ones included."""
        return int(self.lengths.max())

    def text_batch(self, texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """What the network takes for texts that are in no split; needs no prepared data."""
        rows, _ = encode_texts(texts, tokenizer, max_length=self.max_length, truncation=self.truncation)
        return padded(rows, tokenizer.pad_token_id)
