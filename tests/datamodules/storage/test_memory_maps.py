"""Memory maps that go to another process."""

import io
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

from datamodules.storage.memory_maps import send_maps_by_path


def sent(array):
    """Size of what is sent, and what arrives."""
    send_maps_by_path()
    buffer = io.BytesIO()
    ForkingPickler(buffer).dump(array)
    return len(buffer.getvalue()), pickle.loads(buffer.getvalue())


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_map_is_opened_again(tmp_path, order):
    values = np.asarray(np.arange(60_000, dtype=np.int32).reshape(300, 200), order=order)
    np.save(tmp_path / "x.npy", values)
    size, arrived = sent(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert size < 1000
    assert isinstance(arrived, np.memmap)
    assert not arrived.flags.writeable
    assert np.array_equal(arrived, values)


def test_a_view_shows_what_it_showed(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(60_000, dtype=np.int32))
    _, arrived = sent(np.load(tmp_path / "x.npy", mmap_mode="r")[7:19:3])
    assert arrived.tolist() == [7, 10, 13, 16]


def test_a_map_that_may_be_written_arrives_as_a_copy_that_may(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(5, dtype=np.int32))
    _, arrived = sent(np.load(tmp_path / "x.npy", mmap_mode="r+"))
    arrived[0] = 7
    assert arrived.tolist() == [7, 1, 2, 3, 4]
    assert np.load(tmp_path / "x.npy").tolist() == [0, 1, 2, 3, 4]
