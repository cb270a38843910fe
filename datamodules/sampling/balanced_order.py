"""Epochs in which every class is met equally often, as a pure function of (seed, epoch, place)."""

import numpy as np
from numpy.typing import NDArray

from datamodules.sampling.order import hash_key, permute


class BalancedOrder:
    """Which sample stands at a place of an epoch that holds each class equally often, as near as whole numbers allow.

    Each class goes through its samples again and again, every time in another order, and goes on in the next epoch
    where it stopped in the last: a rare class repeats its samples, a frequent one takes several epochs, and no sample
    is left out for long. Any place of any epoch is looked up at once, so resuming needs no state.

    Args:
        labels: (n,) class numbers of the samples.
        seed: of the orders.

    Attributes:
        counts: places of an epoch of n that each class gets, by class number.
    """

    def __init__(self, labels: NDArray[np.int64], *, seed: int) -> None:
        self.seed = seed
        self.members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        places = [len(range(number, len(labels), len(self.members))) for number in range(len(self.members))]
        self.places = np.array(places, dtype=np.int64)
        self.counts = dict(zip(np.unique(labels).tolist(), places, strict=True))

    def __call__(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Samples (n,) at places (n,) of an epoch."""
        chosen = np.empty_like(places)
        classes = places % len(self.members)
        for number, members in enumerate(self.members):
            mine = np.flatnonzero(classes == number)
            rounds, positions = np.divmod(epoch * self.places[number] + places[mine] // len(self.members), len(members))
            for turn in np.unique(rounds).tolist():
                now = rounds == turn
                key = hash_key(self.seed, number, turn)
                chosen[mine[now]] = members[permute(positions[now], length=len(members), key=key)]
        return chosen
