"""What data modules of labelled texts share: rows of the splits, their classes, and loaders sorted by length."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from datamodules.labelled.labels import class_counts
from datamodules.labelled.store import LabelledRows, Split
from datamodules.sampling.step_batches import Batch, Draw, WindowLoader, evaluation_loader, training_loader


class LabelledDataModule(L.LightningDataModule):
    """A data module over LabelledRows; `setup` of the one that extends it calls `open_rows`.

    Args:
        seed: of the training order.
        global_batch_size: texts in one optimizer step, over all devices.
        device_batch_size: texts in one forward pass; those of like length share one. None takes a device's whole
            share of the global batch.
        evaluation_batch_size: texts in one evaluation batch.
        num_workers: loader processes.
        pin_memory: page-locked host memory, for faster copies to a GPU.
        cache_root: where prepared data is kept.

    Attributes:
        lengths: tokens that each row feeds to the network.
        draw: which samples an epoch holds; None for each once.
    """

    multi_label = False
    tokenizer: PreTrainedTokenizerBase
    lengths: NDArray[np.int64]
    draw: Draw | None = None

    def __init__(
        self,
        *,
        seed: int,
        global_batch_size: int,
        device_batch_size: int | None,
        evaluation_batch_size: int,
        num_workers: int,
        pin_memory: bool,
        cache_root: str,
    ) -> None:
        super().__init__()
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.device_batch_size = device_batch_size
        self.evaluation_batch_size = evaluation_batch_size
        self.loader_options: dict[str, Any] = {"num_workers": num_workers, "pin_memory": pin_memory}
        self.cache_root = Path(cache_root)
        self.folder: Path | None = None
        self.evaluation_split: Split = "validation"

    def open_rows(self, folder: Path, store: LabelledRows) -> None:
        """Take over prepared data."""
        self.folder = folder
        self.store = store
        self.rows = store.rows
        self.label_names = store.label_names
        self.notices = list(store.notices)

    def rows_batch(self, rows: NDArray[np.int64]) -> Batch:
        """Batch of some rows of the store."""
        raise NotImplementedError

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
        """Whether there is a test split."""
        return "test" in self.rows

    @property
    def num_train_samples(self) -> int:
        """Training texts; one epoch."""
        return len(self.rows["train"])

    @property
    def tokens_per_sample(self) -> float:
        """Mean number of tokens that one training text feeds to the model."""
        return float(self.lengths[self.rows["train"]].mean())

    @property
    def class_counts(self) -> list[int]:
        """Training samples of each class."""
        return class_counts(self.labels("train"), len(self.label_names)).tolist()

    def labels(self, split: Split) -> NDArray[np.int64]:
        """Class numbers of a split, (n,), or (n, classes) of 0 and 1."""
        return self.store.labels[self.rows[split]]

    def texts(self, split: Split) -> list[str]:
        """Whole texts of a split."""
        return [self.store.texts.text(row) for row in self.rows[split].tolist()]

    def evaluation_batch(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Texts of a split."""
        return self.rows_batch(self.rows[split][indices])

    def training_batch(self, epochs: NDArray[np.int64], indices: NDArray[np.int64]) -> Batch:
        """Training texts."""
        return self.rows_batch(self.rows["train"][indices])

    def longest_train_samples(self, count: int) -> NDArray[np.int64]:
        """Indices of the training texts with the most tokens, which need the most memory."""
        return np.argsort(-self.lengths[self.rows["train"]], kind="stable")[:count]

    def largest_batch(self, size: int) -> Batch:
        """The training batch of so many texts that needs the most memory."""
        return self.training_batch(np.zeros(size, dtype=np.int64), np.resize(self.longest_train_samples(size), size))

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
            draw=self.draw,
            **self.loader_options,
        )

    def _evaluation_loader(self, split: Split) -> DataLoader:
        return evaluation_loader(
            lambda epochs, indices: self.evaluation_batch(split, indices),
            self.trainer,
            num_samples=len(self.rows[split]),
            batch_size=self.evaluation_batch_size,
            order=np.argsort(-self.lengths[self.rows[split]], kind="stable"),
        )

    def val_dataloader(self) -> DataLoader:
        """Texts of `evaluation_split`, each once, the longest first."""
        return self._evaluation_loader(self.evaluation_split)

    def test_dataloader(self) -> DataLoader:
        """Test texts, each once, the longest first."""
        return self._evaluation_loader("test")
