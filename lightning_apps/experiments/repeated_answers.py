"""Whether a generator still says anything: answers that repeat one token, as "!!!!!"."""

from torch import Tensor

SHORTEST = 4
"""Shorter answers may well be right, "11" for one."""


def is_collapsed(answer: Tensor) -> bool:
    """Whether an answer, (length,) int64, has SHORTEST or more tokens that are all the same."""
    return len(answer) >= SHORTEST and bool((answer == answer[0]).all())


LONGEST_PERIOD = 64
REPEATS = 4


def is_repeating(answer: Tensor) -> bool:
    """Whether an answer, (length,) int64, is collapsed or ends in REPEATS or more copies of the same few tokens.

    The copies must fill at least a quarter of the answer: a table of equal rows may end a sound one.
    """
    if is_collapsed(answer):
        return True
    length = len(answer)
    for period in range(1, min(LONGEST_PERIOD, length // REPEATS) + 1):
        span = max(REPEATS * period, length // 4, 16)
        if span <= length and bool((answer[-span + period :] == answer[-span:-period]).all()):
            return True
    return False
