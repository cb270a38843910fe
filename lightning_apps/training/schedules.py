"""Learning-rate schedules: pure functions of the optimizer step, as factors of each group's peak learning rate."""

import math
from collections.abc import Callable
from typing import Annotated

from annotated_types import Ge, Le

Schedule = Callable[[int], float]
"""Number of completed optimizer steps -> factor for the next one."""
Steps = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Division = Annotated[float, Ge(1)]


def _with_warmup(warmup_steps: float, after: Callable[[float], float]) -> Schedule:
    # the first step already learns: factor 1 / warmup, not 0
    return lambda step: (step + 1) / warmup_steps if step < warmup_steps else after(step - warmup_steps)


def constant(*, warmup_steps: Steps, total_steps: int) -> Schedule:
    """The peak rate after a linear warmup.

    Args:
        warmup_steps: steps before the peak is reached.
        total_steps: steps of the whole run; every schedule is given it, this one does not read it.
    """
    return _with_warmup(warmup_steps, lambda step: 1.0)


def linear(*, warmup_steps: Steps, total_steps: int, floor: Share) -> Schedule:
    """Linear warmup, then a straight line from the peak down.

    Args:
        warmup_steps: steps before the peak is reached.
        total_steps: steps of the whole run.
        floor: the factor after the last step, in [0, 1].
    """
    remaining = max(1, total_steps - warmup_steps)
    return _with_warmup(warmup_steps, lambda step: 1 - (1 - floor) * min(1.0, step / remaining))


def cosine(*, warmup_steps: Steps, total_steps: int, floor: Share) -> Schedule:
    """Linear warmup, then half a cosine from the peak down (Loshchilov and Hutter 2017, without restarts).

    Args:
        warmup_steps: steps before the peak is reached.
        total_steps: steps of the whole run.
        floor: the factor after the last step, in [0, 1].
    """
    remaining = max(1, total_steps - warmup_steps)
    return _with_warmup(
        warmup_steps,
        lambda step: floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, step / remaining))) / 2,
    )


def warmup_stable_decay(*, warmup_steps: Steps, total_steps: int, floor: Share, decay_share: Share) -> Schedule:
    """Linear warmup, the peak rate, then a straight line down (Hu et al. 2024, arXiv:2404.06395, "WSD").

    Args:
        warmup_steps: steps before the peak is reached.
        total_steps: steps of the whole run.
        floor: the factor after the last step, in [0, 1].
        decay_share: share of the whole run over which the rate falls, in (0, 1].
    """
    decay_steps = max(1, round(decay_share * total_steps))
    stable_steps = total_steps - warmup_steps - decay_steps
    return _with_warmup(
        warmup_steps,
        lambda step: 1.0 if step < stable_steps else 1 - (1 - floor) * min(1.0, (step - stable_steps) / decay_steps),
    )


def one_cycle(
    *, warmup_steps: Steps, total_steps: int, initial_division: Division, final_division: Division
) -> Schedule:
    """Half a cosine up to 1, then one down (Smith and Topin 2018, as in torch's OneCycleLR).

    Args:
        warmup_steps: steps from the initial rate to the peak.
        total_steps: steps of the whole run.
        initial_division: the first step's factor is 1 / initial_division.
        final_division: the factor after the last step is 1 / (initial_division * final_division).
    """
    initial = 1 / initial_division
    final = initial / final_division

    def between(start: float, end: float, share: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return between(initial, 1.0, step / warmup_steps)
        return between(1.0, final, min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps)))

    return schedule
