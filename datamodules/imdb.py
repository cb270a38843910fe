"""Texts with labels, one truncated sequence each: film reviews of IMDb, or any files of the same form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from typing_extensions import Unpack

from datamodules.classification import StoredTexts, TextOptions
from datamodules.contract import Batch, Indices
from datamodules.labelled.synthetic_texts import synthetic_texts
from datamodules.labelled.texts import LabelledTexts
from datamodules.text.tokenized_texts import Truncation, encode_texts, padded


class ImdbDataModule(StoredTexts):
    """Batches of tokenized texts and their classes.

    A batch holds `input_ids` and `attention_mask` (n, T) int64, padded on the right to its longest text, and `labels`:
    (n,) int64 class numbers, or (n, classes) float32 of 0 and 1 where a text bears any number of labels.

    Args:
        multi_label: whether a text bears any number of labels.
        label_separator: between several labels in one field of text.
        max_length: tokens of the longest sequence, special ones included.
        truncation: the part that goes where a text is longer.
        **options: see TextOptions and Loading.
    """

    cache_name = "imdb"
    preparation_version = 2

    def __init__(
        self,
        *,
        multi_label: bool,
        label_separator: str,
        max_length: Annotated[int, Ge(1)],
        truncation: Truncation,
        **options: Unpack[TextOptions],
    ) -> None:
        super().__init__(synthetic=synthetic_texts, multi_label=multi_label, label_separator=label_separator, **options)
        self.max_length = max_length
        self.truncation: Truncation = truncation

    @staticmethod
    def check(settings: Mapping[str, Any]) -> None:
        """Whether several labels in one field can be told apart.

        Raises:
            ValueError: they cannot.
        """
        if settings["multi_label"] and not settings["label_separator"]:
            raise ValueError("data.label_separator='': name what stands between two labels, such as |")

    def token_settings(self) -> dict[str, Any]:
        """Where texts are cut."""
        return {"max_length": self.max_length, "truncation": self.truncation}

    def tokenize(
        self, folder: Path, splits: dict[str, LabelledTexts], texts: list[str], tokenizer: PreTrainedTokenizerBase
    ) -> list[NDArray[np.int64]]:
        """Token ids of each text, cut; `lengths.npy` (rows,) int64 says how many it had before."""
        rows, lengths = encode_texts(
            texts, tokenizer, max_length=self.max_length, truncation=self.truncation, progress="tokenizing"
        )
        np.save(folder / "lengths.npy", lengths)
        return rows

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
