"""Labelled texts from their source into the cache, and the rows of each split: what classification experiments share.

All splits of a source lie behind one another in the cache, so a row is one number wherever it came from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.labelled.grouped_split import grouped_rows
from datamodules.labelled.labels import (
    class_counts,
    describe_balance,
    encode_labels,
    find_label_names,
    odd_classes,
    stratified_rows,
)
from datamodules.labelled.texts import LabelledTexts, find_split_files, read_file, read_hub_dataset
from datamodules.storage.cache import file_sha256
from datamodules.text.near_duplicates import Repeat, find_repeats, minhash
from datamodules.text.plain_text import describe_special_texts
from datamodules.text.tokenized_texts import RaggedArray, open_ragged, save_ragged, text_bytes

Leaks = Literal["drop", "warn", "error"]
SYNTHETIC = "synthetic"
"""The data set that an experiment makes up: no files, no network."""


@dataclass(frozen=True)
class LabelledSource:
    """Where labelled texts come from.

    Attributes:
        path: folder with train, validation and test files (jsonl, csv or parquet), or one file; None for `dataset`.
        dataset: data set on the Hugging Face hub, or `synthetic` for made-up texts; None where there must be a path.
        revision: branch, tag or commit of the data set on the hub; None for its newest.
        text_column: field that holds the text.
        label_column: field that holds the label.
        label_names: the classes in order; None takes them from the source, sorted where it only uses them.
        multi_label: whether a sample bears any number of labels.
        label_separator: between several labels in one field of text.
        synthetic: makes up the texts of `synthetic`.
        extra_columns: further fields by what they are to us: with None the field of that very name is read where a
            record has it, one that is named must be there.
    """

    path: str | None
    dataset: str | None
    revision: str | None
    text_column: str
    label_column: str
    label_names: Sequence[str | int | float] | None
    multi_label: bool
    label_separator: str
    synthetic: Callable[[], dict[str, LabelledTexts]]
    extra_columns: Mapping[str, str | None] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What the cache is keyed by: settings, and for files their bytes in place of their path.

        Raises:
            ValueError: there is no such file.
        """
        source = ("path", "dataset", "revision", "synthetic")
        settings = {key: value for key, value in vars(self).items() if key not in source}
        if self.path is None:
            if self.dataset is None:
                raise ValueError(
                    "data.path is missing: name a folder with train.jsonl (or .csv, .parquet), and validation and test "
                    "where there are such; data.dataset=synthetic trains on made-up texts"
                )
            return {**settings, "dataset": self.dataset, "revision": self.revision}
        files = find_split_files(Path(self.path))
        return {**settings, "files": {split: [file.name, file_sha256(file)[:32]] for split, file in files.items()}}

    def read(self) -> dict[str, LabelledTexts]:
        """The splits that the source has.

        Raises:
            ValueError: a file or a record is wrong; the message names it, what is wrong and the remedy.
        """
        columns: dict[str, Any] = {
            "text_column": self.text_column, "label_column": self.label_column, "extra_columns": self.extra_columns,
        }  # fmt: skip
        if self.path is not None:
            return {split: read_file(file, **columns) for split, file in find_split_files(Path(self.path)).items()}
        if self.dataset == SYNTHETIC:
            return self.synthetic()
        assert self.dataset is not None  # identity has said so
        return read_hub_dataset(self.dataset, revision=self.revision, **columns)


def write_labelled_texts(folder: Path, splits: Mapping[str, LabelledTexts], source: LabelledSource) -> dict[str, Any]:
    """Write texts, labels and duplicate signatures; returns facts for the manifest: label names and split sizes.

    Raises:
        ValueError: a label is unknown or mistyped, or every sample bears the same one.
    """
    options: dict[str, Any] = {"multi_label": source.multi_label, "separator": source.label_separator}
    names = find_label_names(splits["train"], given=source.label_names, **options)
    labels = {name: encode_labels(split, names, **options) for name, split in splits.items()}
    present = np.flatnonzero(class_counts(labels["train"], len(names)))
    if len(present) < 2 and not source.multi_label:
        raise ValueError(
            f"{splits['train'].source}: every sample is labelled {names[present[0]]!r}; a classifier needs two "
            "classes, so look at data.label_column"
        )
    texts = [text for split in splits.values() for text in split.texts]
    save_ragged(folder / "texts", text_bytes(texts), np.uint8)
    np.save(folder / "labels.npy", np.concatenate(list(labels.values())))
    np.save(folder / "minhash.npy", minhash(texts))
    # pairs, in the order of the rows: the manifest sorts the keys of a mapping
    return {"label_names": names, "sizes": [[name, len(split.texts)] for name, split in splits.items()]}


class LabelledRows:
    """Prepared texts and labels, and which rows belong to which split.

    Args:
        folder: that write_labelled_texts filled.
        facts: what write_labelled_texts returned: label names and the sizes of the splits.
        validation_share: share of the training split that is held out where the source has no validation split, in
            (0, 1).
        test_share: share of the training split that is held out, before validation, where the source has no test
            split; 0 holds none out.
        split_seed: decides which rows are held out and which subsets are kept, so that both are the same whatever the
            run's seed.
        max_train_samples: keep so many training samples, classes in proportion; None keeps all.
        max_evaluation_samples: keep so many samples of validation and of test, classes in proportion; None keeps all.
        leaks: what happens to training texts that are, exactly or nearly, in validation or test too, or of a group
            that is.
        groups: (n,) number of the group of each text; those of one group stay in one split. None for no groups.

    Attributes:
        texts: UTF-8 bytes of all rows.
        labels: (n,) int64 class numbers, or (n, classes) of 0 and 1, of all rows.
        label_names: the classes in order.
        rows: split -> (rows of the split,) int64, ascending.
        notices: what the user should know, a sentence each.

    Raises:
        ValueError: texts leak and `leaks` is `error`, or a split is empty.
    """

    def __init__(
        self,
        folder: Path,
        facts: Mapping[str, Any],
        *,
        validation_share: float,
        split_seed: int,
        max_train_samples: int | None,
        max_evaluation_samples: int | None,
        leaks: Leaks,
        test_share: float = 0.0,
        groups: NDArray[np.int64] | None = None,
    ) -> None:
        self.groups = groups
        self.texts: RaggedArray = open_ragged(folder / "texts")
        self.labels: NDArray[np.int64] = np.load(folder / "labels.npy")
        self.minhash: NDArray[np.uint32] = np.load(folder / "minhash.npy", mmap_mode="r")
        self.label_names: list[str] = facts["label_names"]
        special = describe_special_texts(facts.get("special_texts", {}), "texts")
        self.notices: list[str] = [special] if special else []
        self.rows: dict[str, NDArray[np.int64]] = {}
        start = 0
        for name, size in facts["sizes"]:
            self.rows[name] = np.arange(start, start + size)
            start += size
        if "test" not in self.rows and test_share > 0:
            self._hold_out("test", test_share, split_seed + 1)
        if "validation" not in self.rows:
            self._hold_out("validation", validation_share, split_seed)
        for name in ("validation", "test"):
            if name in self.rows:
                self.rows[name] = self._subset(self.rows[name], max_evaluation_samples, split_seed)
        self._find_shared_groups(leaks)
        self._find_leaks(leaks)
        self.rows["train"] = self._subset(self.rows["train"], max_train_samples, split_seed)
        split_labels = {name: self.labels[rows] for name, rows in self.rows.items()}
        self.notices += odd_classes(split_labels, self.label_names)

    def _subset(self, rows: NDArray[np.int64], count: int | None, seed: int) -> NDArray[np.int64]:
        if count is None or count >= len(rows):
            return rows
        return rows[stratified_rows(self.labels[rows], count, seed=seed)]

    def _hold_out(self, split: str, share: float, seed: int) -> None:
        train = self.rows["train"]
        count = round(share * len(train))
        if not 1 <= count < len(train):
            raise ValueError(
                f"data.{split}_share={share:g} of {len(train)} training samples is {count}: the source has no "
                f"{split} split, so hold out at least one sample and leave one to train on"
            )
        if self.groups is None:
            held_out = stratified_rows(self.labels[train], count, seed=seed)
        else:
            held_out = grouped_rows(self.labels[train], self.groups[train], count, seed=seed)
        self.rows[split] = train[held_out]
        self.rows["train"] = np.delete(train, held_out)

    def repeats(self, split: str) -> list[Repeat]:
        """Training texts that are in another split too; rows are positions in the two splits."""
        train, other = self.rows["train"], self.rows[split]
        return find_repeats(
            self.minhash[train],
            self.minhash[other],
            lambda row: self.texts.text(train[row]),
            lambda row: self.texts.text(other[row]),
        )

    def _find_shared_groups(self, leaks: Leaks) -> None:
        """One source in two splits is known by its vocabulary, not by its class."""
        if self.groups is None:
            return
        evaluated = {split: self.groups[self.rows[split]] for split in ("validation", "test") if split in self.rows}
        both = np.intersect1d(evaluated["validation"], evaluated.get("test", []))
        if len(both):
            self.notices.append(
                f"{len(both)} groups are in validation and test alike: the best checkpoint is chosen on what test holds"
            )
        train = self.groups[self.rows["train"]]
        shared = np.isin(train, np.concatenate(list(evaluated.values())))
        if not shared.any():
            return
        counts = {split: len(np.intersect1d(train, groups)) for split, groups in evaluated.items()}
        where = " and ".join(f"{count} with {split}" for split, count in counts.items() if count)
        said = f"{shared.sum()} training texts are of groups that are in another split too (training shares {where})"
        if leaks == "error":
            raise ValueError(f"{said}; take them out, or choose data.leaks=drop")
        if leaks == "warn":
            self.notices.append(f"{said}; scores will flatter; data.leaks=drop takes them out of training")
            return
        if shared.all():
            raise ValueError(f"{said}: that is every training text, so nothing is left to train on")
        self.rows["train"] = self.rows["train"][~shared]
        self.notices.append(f"{said}; they are left out of training (data.leaks=drop)")

    def _find_leaks(self, leaks: Leaks) -> None:
        found = {
            split: repeats
            for split in ("validation", "test")
            if split in self.rows
            for repeats in [self.repeats(split)]
        }
        leaking = sorted({repeat.row for repeats in found.values() for repeat in repeats})
        if not leaking:
            return
        split, first = next((split, repeats[0]) for split, repeats in found.items() if repeats)
        exact = len({repeat.row for repeats in found.values() for repeat in repeats if repeat.similarity == 1.0})
        where = " and ".join(f"{len(repeats)} in {name}" for name, repeats in found.items() if repeats)
        text = " ".join(self.texts.text(self.rows["train"][first.row]).split())
        said = (
            f"{len(leaking)} training texts are in another split too ({where}; {exact} word for word, the others "
            f"nearly), such as {text[:60]!r} ({first.similarity:.0%} like one in {split})"
        )
        if leaks == "error":
            raise ValueError(f"{said}; take them out, or choose data.leaks=drop")
        if leaks == "warn":
            self.notices.append(f"{said}; scores will flatter; data.leaks=drop takes them out of training")
            return
        if len(leaking) == len(self.rows["train"]):
            raise ValueError(f"{said}: that is every training text, so nothing is left to train on")
        self.rows["train"] = np.delete(self.rows["train"], leaking)
        self.notices.append(f"{said}; they are left out of training (data.leaks=drop)")

    def describe(self) -> dict[str, str]:
        """Sizes and class balance of the splits."""
        order = ("train", "validation", "test")
        splits: dict[str, NDArray[np.int64]] = {
            name: self.labels[self.rows[name]] for name in order if name in self.rows
        }
        return describe_balance(splits, self.label_names)
