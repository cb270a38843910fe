"""Splits that keep whole groups together: what comes from one source is never in two splits."""

import numpy as np
from numpy.typing import NDArray

from datamodules.sampling.order import hash_key, permute


def group_numbers(names: list[str | None]) -> NDArray[np.int64]:
    """A number for each sample, the same for those of one group; a sample without a group is one of its own."""
    numbers: dict[str | int, int] = {}
    keys = (row if name is None else name for row, name in enumerate(names))  # a row is no name: it is no str
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def grouped_rows(labels: NDArray[np.int64], groups: NDArray[np.int64], count: int, *, seed: int) -> NDArray[np.int64]:
    """Choose whole groups with about `count` rows, every class in its share as nearly as groups allow.

    Greedy, the largest groups first: a group is chosen where that brings the classes nearer to their shares, each
    class counted alike however rare it is. (StratifiedGroupKFold of scikit-learn knows shares of 1 / k only.)

    Args:
        labels: (n,) class numbers or (n, classes) of 0 and 1.
        groups: (n,) numbers of groups.
        count: rows aimed at.
        seed: of the order among groups of one size.

    Returns:
        Rows in ascending order, at least one group and not all.

    Raises:
        ValueError: there are fewer than two groups.
    """
    strata = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    groups = np.unique(groups, return_inverse=True)[1].reshape(-1)
    num_groups = int(groups.max(initial=-1)) + 1
    if num_groups < 2:
        raise ValueError("every sample is of one group, so that none can be held out")
    table = np.zeros((num_groups, int(strata.max()) + 1))
    np.add.at(table, (groups, strata), 1)
    totals = table.sum(axis=0)
    wanted = totals * count / len(labels)
    shuffled = permute(np.arange(num_groups), length=num_groups, key=hash_key(seed))
    order = shuffled[np.argsort(-table[shuffled].sum(axis=1), kind="stable")]

    def distance(have: NDArray[np.float64]) -> float:
        return float((((have - wanted) / totals) ** 2).sum())

    chosen: list[int] = []
    have = np.zeros_like(totals)
    for group in order.tolist():
        if len(chosen) < num_groups - 1 and distance(have + table[group]) < distance(have):
            chosen.append(group)
            have += table[group]
    if not chosen:  # each is too large: the one that overshoots least
        chosen = [min(order.tolist(), key=lambda group: distance(table[group]))]
    return np.flatnonzero(np.isin(groups, chosen))
