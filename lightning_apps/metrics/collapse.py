"""Whether a generator still says anything: answers that repeat one token, as "!!!!!"."""

from collections.abc import Sequence

from torch import Tensor

SHORTEST = 4
"""Shorter answers may well be right, "11" for one."""


def collapsed_ratio(answers: Sequence[Tensor]) -> float:
    """Share of answers, each (length,) int64, of SHORTEST or more tokens that are all the same; 0 without answers."""
    collapsed = [len(answer) >= SHORTEST and bool((answer == answer[0]).all()) for answer in answers]
    return sum(collapsed) / max(len(collapsed), 1)
