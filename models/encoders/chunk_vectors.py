"""Vectors of chunks that a frozen encoder has read before."""

import hashlib

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

KEY_BYTES = 16


def chunk_key(input_ids: NDArray[np.int64]) -> bytes:
    """KEY_BYTES bytes that stand for the token ids (T,) of a chunk; no two chunks share them by accident."""
    return hashlib.blake2b(input_ids.astype("<i4").tobytes(), digest_size=KEY_BYTES).digest()


class ChunkVectors:
    """Vectors by the token ids of their chunk.

    Args:
        keys: chunk_key of each chunk.
        vectors: (n, hidden) floating point, on the CPU, in the order of the keys.

    Raises:
        ValueError: there are more of one than of the other.
    """

    def __init__(self, keys: list[bytes], vectors: Tensor) -> None:
        self._vectors = dict(zip(keys, vectors, strict=True))

    def find(self, input_ids: Tensor) -> Tensor | None:
        """Vector (hidden,) of a chunk of ids (T,), without padding, on the CPU; None if it is not known."""
        return self._vectors.get(chunk_key(input_ids.numpy()))
