"""Memory maps in loader workers that share no memory with their parent: opened again, not copied."""

import mmap
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np


def open_again(filename: str, dtype: Any, offset: int, shape: tuple[int, ...], order: Any) -> np.memmap:
    """The same part of the same file, to be read."""
    return np.memmap(filename, dtype=dtype, mode="r", offset=offset, shape=shape, order=order)


def _reduce(array: Any) -> Any:
    # a view of a map carries the map's offset, not its own: it goes as it is, a copy of what it shows
    is_whole = isinstance(array.base, mmap.mmap) and array.filename is not None
    if not is_whole or array.mode not in ("r", "c"):
        return array.__reduce__()
    order = "C" if array.flags.c_contiguous else "F"
    return open_again, (str(array.filename), array.dtype, array.offset, array.shape, order)


def send_maps_by_path() -> None:
    """Processes that multiprocessing starts get the paths of memory maps, from now on; each would get a copy else."""
    ForkingPickler.register(np.memmap, _reduce)
