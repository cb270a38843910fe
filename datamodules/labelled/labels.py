"""Labels as numbers: their names, who belongs to which class, and splits that keep the classes' shares."""

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.labelled.texts import LabelledTexts, nearest
from datamodules.sampling.order import hash_key, permute

RARE = 0.01
"""A label that fewer of the training samples bear, and that looks like a frequent one, is taken for a typo."""
ALIKE = 0.75
"""Similarity, as difflib measures it, from which two names look alike; those that differ in digits only do not."""
SHORT = 4
"""Names of fewer letters are never taken for a slip of another."""
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
"""A name that is a number, as csv, parquet and JSON write them."""


def label_values(label: Any, *, multi_label: bool, separator: str) -> list[Any]:
    """The labels of one sample as a list; a text of several is cut at `separator` where samples bear several."""
    if not multi_label:
        return [label]
    if isinstance(label, str):
        return [part.strip() for part in label.split(separator) if part.strip()]
    return list(label) if isinstance(label, list) else [label]


def find_label_names(
    train: LabelledTexts, *, given: Sequence[str | int | float] | None, multi_label: bool = False, separator: str = "|"
) -> list[str]:
    """Names of the classes, in the order of their numbers.

    Args:
        train: the training split, which has to show every class where the names are not given.
        given: names from the configuration, where 1 is a name too; they go before those that the source gives.
        multi_label: whether a sample bears any number of labels.
        separator: between several labels in one field of text, where samples bear several.

    Raises:
        ValueError: a name is given twice, numbers do not run from 0, there is only one class, or a rare label looks
            like a typo of a frequent one.
    """
    if given is not None:
        names = [_name(name) for name in given]
        twice = [name for name in names if list(map(_key, names)).count(_key(name)) > 1]
        if twice:
            raise ValueError(f"data.label_names={list(given)}: {twice[0]!r} is there twice")
    elif train.class_names is not None:
        names = list(train.class_names)
    else:
        names = _names_in_use(train, multi_label, separator)
    if given and len(names) < 2 and not multi_label:
        raise ValueError(f"data.label_names=[{names[0]}]: a classifier needs two classes at least; name them all")
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
    spelled: dict[str, str] = {}
    for row, label in enumerate(train.labels):
        _refuse_list(train, row, label, multi_label)
        for value in label_values(label, multi_label=multi_label, separator=separator):
            name, key = _name(value), _key(value)
            # of several ways to write a number the shortest, whichever comes first
            spelled[key] = min(spelled.get(key, name), name, key=lambda text: (len(text), text))
            counts[key] += 1
            first_row.setdefault(key, row)
    if all(_is_whole(name) for name in spelled.values()):
        keys = sorted(counts, key=int)
        wrong = [key for key in keys if not 0 <= int(key) < len(keys)]
        if wrong:
            listed = ",".join(spelled[key] for key in keys[:40]) + (",..." if len(keys) > 40 else "")
            raise ValueError(
                f"{train.place(first_row[wrong[0]])}: label {spelled[wrong[0]]} lies outside 0 to {len(keys) - 1}, "
                f"though there are {len(keys)} different ones ({listed}); number them from 0, or say that these are "
                f"names: data.label_names=[{listed}]"
            )
        return [spelled[key] for key in keys]
    numbers = all(map(NUMBER.fullmatch, spelled))
    keys = sorted(counts, key=Decimal) if numbers else sorted(counts, key=spelled.__getitem__)
    total = sum(counts.values())
    for key in keys:
        meant = _meant(key, counts, total)
        if meant is not None:
            raise ValueError(
                f"{train.place(first_row[key])}: label {key!r} ({counts[key]} of {total} labels; did you mean "
                f"{meant}?); mend it, or list all classes with data.label_names=[...] if it is one"
            )
    return [spelled[key] for key in keys]


def _meant(name: str, counts: Mapping[str, int], total: int) -> str | None:
    """The more frequent label that `name` is probably a slip of; None for a class of its own.

    Among many labels a rare one that looks like a frequent one is a slip. Among few nothing is rare: there it is the
    one that stands alone and is a frequent one but for a letter too many, too few or two that changed places.
    """
    if NUMBER.fullmatch(name):
        return None
    others = [other for other in counts if other != name and counts[other] > counts[name]]
    others = [other for other in others if re.sub(r"\d", "", name) != re.sub(r"\d", "", other)]  # topic 1 and topic 12
    if counts[name] < RARE * total:
        frequent = {other.lower(): other for other in others if counts[other] >= RARE * total}
        close = difflib.get_close_matches(name.strip().lower(), list(frequent), 1, ALIKE)
        return frequent[close[0]] if close else None
    if counts[name] == 1:
        return next((other for other in others if _is_slip(name.strip().lower(), other.strip().lower())), None)
    return None


def _is_slip(name: str, other: str) -> bool:
    """Whether two words are the same but for one letter too many or too few, or two neighbours that changed places."""
    if min(len(name), len(other)) < SHORT:
        return False
    if len(name) == len(other):
        different = [place for place, (a, b) in enumerate(zip(name, other, strict=True)) if a != b]
        first, last = (different[0], different[-1]) if different else (0, 0)
        return not different or (
            len(different) == 2 and last == first + 1 and name[first : last + 1] == other[first : last + 1][::-1]
        )
    short, long = sorted((name, other), key=len)
    return len(long) == len(short) + 1 and any(short == long[:gap] + long[gap + 1 :] for gap in range(len(long)))


def class_positions(names: Sequence[str]) -> dict[str, int]:
    """Numbers of classes by what a label that means them may be: see class_number."""
    found = {_key(name): number for number, name in enumerate(names)}
    if not any(map(NUMBER.fullmatch, found)):
        found |= {str(number): number for number in range(len(names))}
    return found


def class_number(value: Any, positions: Mapping[str, int]) -> int | None:
    """Number of the class that a label means; None where it means none.

    A label is a name. Where no name is a number, a whole number is a position in the names. Where names are numbers a
    label that is a number is one of them or none, and 1, 1.0 and "1" are the same.

    Args:
        value: a label as it was found.
        positions: class_positions of the names.
    """
    return positions.get(_key(value))


def encode_labels(
    split: LabelledTexts, names: Sequence[str], *, multi_label: bool = False, separator: str = "|"
) -> NDArray[np.int64]:
    """Class numbers of a split: see class_number, and _source_positions where the source names its whole numbers.

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
    positions = class_positions(names) if split.class_names is None else _source_positions(split, names)
    encoded = np.zeros((len(split.texts), len(names)) if multi_label else len(split.texts), dtype=np.int64)
    for row, label in enumerate(split.labels):
        _refuse_list(split, row, label, multi_label)
        for value in label_values(label, multi_label=multi_label, separator=separator):
            number = class_number(value, positions)
            if number is None:
                raise _unknown_label(split, row, _name(value), names)
            if multi_label:
                encoded[row, number] = 1
            else:
                encoded[row] = number
    return encoded


def _source_positions(split: LabelledTexts, names: Sequence[str]) -> dict[str, int]:
    """Numbers of classes by the whole numbers of a source that names them itself.

    A number means the source's name of that position, wherever that stands among `names`; names that the source does
    not have rename its own, one by one.

    Raises:
        ValueError: `names` are neither an order of the source's nor as many new ones.
    """
    own = split.class_names or []
    if set(own) <= set(names):
        return {str(number): names.index(name) for number, name in enumerate(own)}
    moved = [name for number, name in enumerate(own) if name in names and names.index(name) != number]
    if len(own) != len(names) or moved:
        raise ValueError(
            f"data.label_names={list(names)}: {split.source} names its {len(own)} classes {', '.join(own[:12])}; list "
            "these in any order, or as many other names in that order"
        )
    return {str(number): number for number in range(len(names))}


def _refuse_list(split: LabelledTexts, row: int, label: Any, multi_label: bool) -> None:
    if isinstance(label, list) and not multi_label:
        raise ValueError(
            f"{split.place(row)}: the label is a list; samples that bear any number of labels need "
            "data.multi_label=true"
        )


def _unknown_label(split: LabelledTexts, row: int, name: str, names: Sequence[str]) -> ValueError:
    listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    unlabelled = "; -1 often marks rows without a label: take them out" if name == "-1" else ""
    if _is_whole(name) and (split.class_names is not None or not any(map(NUMBER.fullmatch, names))):
        return ValueError(
            f"{split.place(row)}: label {name} lies outside 0 to {len(names) - 1} (classes: {listed}){unlabelled}"
        )
    return ValueError(
        f"{split.place(row)}: label {name!r} is not a class{nearest(name, names)}; classes: {listed}{unlabelled}; mend "
        "it, or list all classes with data.label_names=[...]"
    )


def _name(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _key(value: Any) -> str:
    """What two labels share that mean the same: 1, 1.0, "1" and "01" are one number."""
    name = _name(value)
    if not NUMBER.fullmatch(name):
        return name
    return f"{Decimal(name).normalize() + 0:f}"  # + 0 takes the sign from -0


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


def odd_classes(labels: Mapping[str, NDArray[np.int64]], names: Sequence[str]) -> list[str]:
    """Sentences about classes that nothing can be learned or said of, and about classes that are rare.

    Args:
        labels: of each split, class numbers (n,), or (n, classes) of 0 and 1.
        names: the classes in order.
    """
    train = class_counts(labels["train"], len(names))
    found = [
        f"no training sample is labelled {name!r}: it can only be guessed"
        for name, count in zip(names, train.tolist(), strict=True)
        if count == 0
    ]
    for split in ("validation", "test"):
        if split in labels:
            counts = class_counts(labels[split], len(names))
            missing = [name for name, count in zip(names, counts.tolist(), strict=True) if count == 0]
            if missing:
                found.append(f"{split} has no sample of {', '.join(missing)}: its averages are over the other classes")
    rarest = int(train.argmin())
    if 0 < train[rarest] < 0.5 * train.sum() / len(train) * 0.5:
        found.append(
            f"classes are unbalanced: {names[rarest]!r} is {train[rarest] / train.sum():.1%} of the "
            "training labels; look at val/f1_macro, which counts every class alike, not at accuracy"
        )
    return found


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
