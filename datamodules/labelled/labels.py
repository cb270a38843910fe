"""Labels as numbers: their names, who belongs to which class, and splits that keep the classes' shares."""

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.labelled.texts import LabelledTexts, nearest
from datamodules.sampling.order import hash_key, permute

RARE = 0.01
"""A label that fewer of the training samples bear, and that looks like a frequent one, is taken for a typo."""
ALIKE = 0.75
"""Similarity, as difflib measures it, from which two names look alike; those that differ in digits only do not."""


def label_values(label: Any, *, multi_label: bool, separator: str) -> list[Any]:
    """The labels of one sample as a list; a text of several is cut at `separator` where samples bear several."""
    if not multi_label:
        return [label]
    if isinstance(label, str):
        return [part.strip() for part in label.split(separator) if part.strip()]
    return list(label) if isinstance(label, list) else [label]


def find_label_names(
    train: LabelledTexts, *, given: Sequence[str] | None, multi_label: bool = False, separator: str = "|"
) -> list[str]:
    """Names of the classes, in the order of their numbers.

    Args:
        train: the training split, which has to show every class where the names are not given.
        given: names from the configuration; they go before those that the source gives.
        multi_label: whether a sample bears any number of labels.
        separator: between several labels in one field of text, where samples bear several.

    Raises:
        ValueError: a name is given twice, numbers do not run from 0, there is only one class, or a rare label looks
            like a typo of a frequent one.
    """
    if given is not None:
        twice = [name for name, count in Counter(given).items() if count > 1]
        if twice:
            raise ValueError(f"data.label_names={list(given)}: {twice[0]!r} is there twice")
        names = list(given)
    elif train.class_names is not None:
        names = list(train.class_names)
    else:
        names = _names_in_use(train, multi_label, separator)
    if len(names) < 2 and not multi_label:
        raise ValueError(
            f"{train.source}: every sample is labelled {names[0]!r}; a classifier needs two classes, so look at "
            "data.label_column, or name the classes with data.label_names"
            if names
            else "data.label_names is empty; name the classes"
        )
    return names


def _names_in_use(train: LabelledTexts, multi_label: bool, separator: str) -> list[str]:
    first_row: dict[str, int] = {}
    counts: Counter[str] = Counter()
    for row, label in enumerate(train.labels):
        _refuse_list(train, row, label, multi_label)
        for value in label_values(label, multi_label=multi_label, separator=separator):
            name = _name(value)
            counts[name] += 1
            first_row.setdefault(name, row)
    if all(_is_whole(name) for name in counts):
        names = sorted(counts, key=int)
        wrong = [name for name in names if not 0 <= int(name) < len(names)]
        if wrong:
            listed = ",".join(names[:8])
            raise ValueError(
                f"{train.place(first_row[wrong[0]])}: label {wrong[0]} lies outside 0 to {len(names) - 1}, though "
                f"there are {len(names)} different ones ({listed}); number them from 0, or say that these are names: "
                f"data.label_names=[{listed}]"
            )
        return names
    names = sorted(counts)
    total = sum(counts.values())
    frequent = [name for name in names if counts[name] >= RARE * total]
    for name in names:
        close = difflib.get_close_matches(name.strip().lower(), [other.lower() for other in frequent], 1, ALIKE)
        if name not in frequent and close:
            meant = next(other for other in frequent if other.lower() == close[0])
            if re.sub(r"\d", "", name) == re.sub(r"\d", "", meant):
                continue  # topic 1 and topic 12
            raise ValueError(
                f"{train.place(first_row[name])}: label {name!r} ({counts[name]} of {total} labels; did you mean "
                f"{meant}?); mend it, or list all classes with data.label_names=[...] if it is one"
            )
    return names


def encode_labels(
    split: LabelledTexts, names: Sequence[str], *, multi_label: bool = False, separator: str = "|"
) -> NDArray[np.int64]:
    """Class numbers of a split.

    A label that is a name counts as that name; a whole number that is not among the names is a position in them.

    Args:
        split: whose labels are read.
        names: the classes in order.
        multi_label: whether a sample bears any number of labels.
        separator: between several labels in one field of text, where samples bear several.

    Returns:
        (n,) numbers below len(names); with `multi_label` (n, len(names)) of 0 and 1.

    Raises:
        ValueError: a label is not among the names, naming its place, the nearest name and what is allowed.
    """
    position = {name: number for number, name in enumerate(names)}
    encoded = np.zeros((len(split.texts), len(names)) if multi_label else len(split.texts), dtype=np.int64)
    for row, label in enumerate(split.labels):
        _refuse_list(split, row, label, multi_label)
        for value in label_values(label, multi_label=multi_label, separator=separator):
            name = _name(value)
            number = position.get(name)
            if number is None and _is_whole(name) and 0 <= int(name) < len(names):
                number = int(name)
            if number is None:
                raise _unknown_label(split, row, name, names)
            if multi_label:
                encoded[row, number] = 1
            else:
                encoded[row] = number
    return encoded


def _refuse_list(split: LabelledTexts, row: int, label: Any, multi_label: bool) -> None:
    if isinstance(label, list) and not multi_label:
        raise ValueError(
            f"{split.place(row)}: the label is a list; samples that bear any number of labels need "
            "data.multi_label=true"
        )


def _unknown_label(split: LabelledTexts, row: int, name: str, names: Sequence[str]) -> ValueError:
    listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    if _is_whole(name):
        unlabelled = "; -1 often marks rows without a label: take them out" if name == "-1" else ""
        return ValueError(
            f"{split.place(row)}: label {name} lies outside 0 to {len(names) - 1} (classes: {listed}){unlabelled}"
        )
    return ValueError(
        f"{split.place(row)}: label {name!r} is not a class{nearest(name, names)}; classes: {listed}; mend it, or list "
        "all classes with data.label_names=[...]"
    )


def _name(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def class_counts(labels: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Samples of each class, (num_classes,); one of several labels counts in each."""
    return labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=num_classes)


def describe_balance(labels: Mapping[str, NDArray[np.int64]], names: Sequence[str]) -> dict[str, str]:
    """One line for each split: size, and the share of each class."""
    lines = {}
    for split, values in labels.items():
        counts = class_counts(values, len(names))
        shares = ", ".join(
            f"{name} {count:,} ({count / max(len(values), 1):.1%})" for name, count in zip(names, counts, strict=True)
        )
        lines[split] = f"{len(values):,} samples: {shares}"
    return lines


def stratified_rows(labels: NDArray[np.int64], count: int, *, seed: int) -> NDArray[np.int64]:
    """Choose `count` rows so that every class keeps its share, as nearly as whole numbers allow.

    Each class gives the whole part of its share; what is missing then goes to the largest remainders. Samples that
    bear the same set of labels form a class here.

    Args:
        labels: (n,) class numbers or (n, classes) of 0 and 1.
        count: rows to choose, at most n.
        seed: of the choice inside each class.

    Returns:
        (count,) rows in ascending order.
    """
    if not 0 <= count <= len(labels):
        raise ValueError(f"cannot choose {count} of {len(labels)} rows")
    strata = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(strata)
    wanted = sizes * count / max(len(labels), 1)
    taken = np.floor(wanted).astype(np.int64)
    missing = count - int(taken.sum())
    largest = np.argsort(-(wanted - taken), kind="stable")[:missing]
    taken[largest] += 1
    chosen = []
    for stratum, (size, number) in enumerate(zip(sizes.tolist(), taken.tolist(), strict=True)):
        rows = np.flatnonzero(strata == stratum)
        order = permute(np.arange(number, dtype=np.int64), length=size, key=hash_key(seed, stratum))
        chosen.append(rows[order])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)
