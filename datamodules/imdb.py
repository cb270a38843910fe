"""Texts with labels, one truncated sequence each: film reviews of IMDb, or any files of the same form."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules.cache import prepared_folder, read_manifest
from datamodules.labelled_store import LabelledRows, LabelledSource, Leaks, Split, write_labelled_texts
from datamodules.tokenized_texts import (
    RaggedArray,
    Truncation,
    encode_texts,
    open_ragged,
    open_tokenizer,
    padded,
    save_ragged,
    tokenizer_identity,
)
from datamodules.windows import Batch, WindowLoader, evaluation_loader, training_loader

PREPARATION_VERSION = 1
"""Raise it whenever prepare_data writes something else for the same settings."""


class ImdbDataModule(L.LightningDataModule):
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
        seed: of the training order.
        global_batch_size: texts in one optimizer step, over all devices.
        device_batch_size: texts in one forward pass; those of like length share one. None takes a device's whole
            share of the global batch.
        evaluation_batch_size: texts in one evaluation batch.
        num_workers: loader processes.
        pin_memory: page-locked host memory, for faster copies to a GPU.
        cache_root: where prepared data is kept.
    """

    def __init__(
        self,
        *,
        path: str | None,
        dataset: str,
        revision: str | None,
        text_column: str,
        label_column: str,
        label_names: list[str] | None,
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
        super().__init__()
        self.source = LabelledSource(
            path, dataset, revision, text_column, label_column, label_names, multi_label, label_separator
        )
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
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.device_batch_size = device_batch_size
        self.evaluation_batch_size = evaluation_batch_size
        self.loader_options: dict[str, Any] = {"num_workers": num_workers, "pin_memory": pin_memory}
        self.cache_root = Path(cache_root)
        self.folder: Path | None = None
        self.evaluation_split: Split = "validation"

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
        return facts

    # ------------------------------------------------------------------ set-up

    def setup(self, stage: str | None = None) -> None:
        """Open the cache and cut the splits.

        Raises:
            ValueError: the settings leave a split empty.
        """
        if self.folder is not None:
            return
        self.folder = self._prepared()
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.folder / "tokenizer")
        self.store = LabelledRows(self.folder, read_manifest(self.folder)["facts"], **self.split_options)
        self.tokens: RaggedArray = open_ragged(self.folder / "tokens")
        self.lengths = self.tokens.lengths
        self.rows = self.store.rows
        self.label_names = self.store.label_names
        self.notices = list(self.store.notices)

    def describe(self) -> dict[str, str]:
        """Lines for the banner of a run: sizes, class balance, and how many texts are cut."""
        uncut = np.load(Path(self.folder or "") / "lengths.npy")[self.rows["train"]]
        share = float((uncut > self.max_length).mean())
        loses = f", {share:.0%} of them longer than {self.max_length} and cut at the {self.truncation}" if share else ""
        return {**self.store.describe(), "tokens": f"{int(np.median(uncut)):,} in the median training text{loses}"}

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
    def has_test_split(self) -> bool:
        """Whether the source has a test split."""
        return "test" in self.rows

    @property
    def num_train_samples(self) -> int:
        """Training texts; one epoch."""
        return len(self.rows["train"])

    @property
    def tokens_per_sample(self) -> float:
        """Mean number of tokens that one training text feeds to the model."""
        return float(self.lengths[self.rows["train"]].mean())

    def labels(self, split: Split) -> NDArray[np.int64]:
        """Class numbers of a split, (n,), or (n, classes) of 0 and 1."""
        return self.store.labels[self.rows[split]]

    def texts(self, split: Split) -> list[str]:
        """Whole texts of a split."""
        return [self.store.texts.text(row) for row in self.rows[split].tolist()]

    # ------------------------------------------------------------------ batches

    def _batch(self, rows: NDArray[np.int64]) -> Batch:
        labels = torch.from_numpy(self.store.labels[rows])
        return {
            **padded([self.tokens[row] for row in rows.tolist()], self.tokenizer.pad_token_id),
            "labels": labels.float() if self.multi_label else labels,
        }

    def evaluation_batch(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Texts of a split."""
        return self._batch(self.rows[split][indices])

    def training_batch(self, epochs: NDArray[np.int64], indices: NDArray[np.int64]) -> Batch:
        """Training texts."""
        return self._batch(self.rows["train"][indices])

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence of any split, special ones included."""
        return int(self.lengths.max())

    def longest_train_samples(self, count: int) -> NDArray[np.int64]:
        """Indices of the training texts with the most tokens, which need the most memory."""
        return np.argsort(-self.lengths[self.rows["train"]], kind="stable")[:count]

    def text_batch(self, texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """What the network takes for texts that are in no split; needs no prepared data."""
        rows, _ = encode_texts(texts, tokenizer, max_length=self.max_length, truncation=self.truncation)
        return padded(rows, tokenizer.pad_token_id)

    def train_dataloader(self) -> WindowLoader:
        """Windows of the whole run, from the trainer's current optimizer step on."""
        trainer = self.trainer
        assert trainer is not None
        return training_loader(
            self.training_batch,
            trainer,
            num_samples=self.num_train_samples,
            global_batch_size=self.global_batch_size,
            device_batch_size=self.device_batch_size,
            seed=self.seed,
            lengths=self.lengths[self.rows["train"]],
            **self.loader_options,
        )

    def _evaluation_loader(self, split: Split) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        return evaluation_loader(
            lambda epochs, indices: self.evaluation_batch(split, indices),
            num_samples=len(self.rows[split]),
            batch_size=self.evaluation_batch_size,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            order=np.argsort(-self.lengths[self.rows[split]], kind="stable"),
        )

    def val_dataloader(self) -> DataLoader:
        """Texts of `evaluation_split`, each once, the longest first."""
        return self._evaluation_loader(self.evaluation_split)

    def test_dataloader(self) -> DataLoader:
        """Test texts, each once, the longest first."""
        return self._evaluation_loader("test")
