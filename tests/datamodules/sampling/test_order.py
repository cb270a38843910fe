import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.sampling.order import hash_key, mix64, permute, sample_indices


@given(length=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permutation_is_a_bijection(length, key):
    assert sorted(permute(np.arange(length), length=length, key=key).tolist()) == list(range(length))


@given(length=st.integers(2, 10**12), key=st.integers(0, 2**64 - 1), data=st.data())
def test_one_position_needs_no_other(length, key, data):
    positions = np.array(data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=5)))
    together = permute(positions, length=length, key=key)
    alone = [int(permute(np.array([position]), length=length, key=key)[0]) for position in positions]
    assert together.tolist() == alone
    assert all(0 <= value < length for value in alone)


def test_order_depends_on_seed_and_epoch_and_on_nothing_else():
    def order(seed, epoch):
        return sample_indices(0, 500, num_samples=500, seed=seed, epoch=epoch).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    assert order(1, 2) != order(2, 1)


def test_order_is_the_same_in_every_version():
    """Pinned values: another order would silently change every run that resumes."""
    assert sample_indices(0, 8, num_samples=8, seed=42, epoch=0).tolist() == PINNED
    assert hash_key(42, 0) == PINNED_KEY


PINNED = [0, 4, 3, 2, 6, 7, 1, 5]
PINNED_KEY = 6332618229526065668


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3))
def test_the_key_is_the_array_hash_in_plain_integers(parts):
    state = np.zeros(1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = mix64(state + np.uint64(0x9E3779B97F4A7C15) + np.array([part], dtype=np.uint64))
    assert hash_key(*parts) == int(state[0])


def test_shuffled_order_looks_random():
    """Positions and samples are uncorrelated, and neighbours are not kept together (n = 20,000)."""
    order = sample_indices(0, 20_000, num_samples=20_000, seed=7, epoch=3)
    assert abs(np.corrcoef(np.arange(len(order)), order)[0, 1]) < 4 / np.sqrt(len(order))
    assert np.mean(np.abs(np.diff(order)) == 1) < 10 / len(order)
    fixed_points = np.sum(order == np.arange(len(order)))  # Poisson(1) for a random permutation
    assert fixed_points <= 6


def test_positions_outside_are_refused():
    with pytest.raises(ValueError, match="must lie in"):
        permute(np.array([5]), length=5, key=0)
