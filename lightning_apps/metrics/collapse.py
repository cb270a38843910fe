"""Whether a generator still says anything: answers that repeat one token, as "!!!!!"."""

from torch import Tensor

SHORTEST = 4
"""Shorter answers may well be right, "11" for one."""


def is_collapsed(answer: Tensor) -> bool:
    """Whether an answer, (length,) int64, has SHORTEST or more tokens that are all the same."""
    return len(answer) >= SHORTEST and bool((answer == answer[0]).all())
