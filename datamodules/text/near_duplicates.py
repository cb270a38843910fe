"""Texts that appear twice: the same words in the same order, or nearly (most of their five-word shingles shared).

MinHash (Broder 1997) with banding (Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3): time and
memory grow with the number of words, not with the number of pairs.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from datamodules.sampling.order import hash_key, mix64

SHINGLE_WORDS = 5
NUM_HASHES = 64
BAND_ROWS = 4
"""16 bands of 4: a pair of similarity 0.8 becomes a candidate with probability 0.9998, one of 0.3 with 0.12."""
NEAR = 0.8
"""Jaccard similarity of shingles from which two texts are near duplicates."""
MAX_CANDIDATES = 20
"""Candidates compared for each text, so that boilerplate that all texts share cannot make the time quadratic."""
_WORD = re.compile(r"\w+")
_BLOCK_SHINGLES = 1 << 18  # hashed at once: they stay in the cache of a core


@dataclass(frozen=True)
class Repeat:
    """A text of one collection that is in another too.

    Attributes:
        row: row of the text in its own collection.
        other: row of the most similar text in the other collection.
        similarity: share of shingles that both have, in [0, 1]; 1.0 for the same words.
    """

    row: int
    other: int
    similarity: float


@lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def shingles(text: str) -> NDArray[np.uint64]:
    """Sorted distinct hashes of every five words in a row; all words where there are fewer.

    Case, punctuation and white space do not count.
    """
    words = _WORD.findall(text.lower()) or [text.strip()]
    hashes = np.array([_word_hash(word) for word in words], dtype=np.uint64)
    width = min(SHINGLE_WORDS, len(hashes))
    state = np.zeros(len(hashes) - width + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(width):
            state = mix64(state + hashes[offset : offset + len(state)])
    return np.unique(state)


def minhash(texts: Iterable[str]) -> NDArray[np.uint32]:
    """Signatures (n, NUM_HASHES): the share of equal columns of two estimates the similarity of their texts."""
    keys = np.array([hash_key(number) for number in range(NUM_HASHES)], dtype=np.uint64)
    blocks: list[NDArray[np.uint32]] = []
    parts: list[NDArray[np.uint64]] = []

    def flush() -> None:
        block = np.concatenate(parts)
        firsts = np.cumsum([0, *(len(part) for part in parts[:-1])])
        minima = np.empty((len(parts), NUM_HASHES), dtype=np.uint32)
        with np.errstate(over="ignore"):
            for number, key in enumerate(keys):
                # shingles are spread already: one multiplication with another key is hash enough
                hashed = (((block ^ key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)).astype(np.uint32)
                minima[:, number] = np.minimum.reduceat(hashed, firsts)
        blocks.append(minima)
        parts.clear()

    pending = 0
    for text in texts:
        parts.append(shingles(text))
        pending += len(parts[-1])
        if pending >= _BLOCK_SHINGLES:
            flush()
            pending = 0
    if parts:
        flush()
    return np.concatenate(blocks) if blocks else np.empty((0, NUM_HASHES), dtype=np.uint32)


def find_repeats(
    signatures: NDArray[np.uint32],
    others: NDArray[np.uint32],
    text: Callable[[int], str],
    other_text: Callable[[int], str],
) -> list[Repeat]:
    """Texts that are also among the others, exactly or nearly; the most similar of the others for each.

    Args:
        signatures: (n, NUM_HASHES) of the texts to look up.
        others: (m, NUM_HASHES) of those to look among.
        text: row of `signatures` -> its text; asked for candidates only, whose similarity is then computed.
        other_text: row of `others` -> its text; asked for candidates only.

    Returns:
        At most one Repeat for each text, in the order of rows.
    """
    other_shingles = lru_cache(maxsize=4096)(lambda row: shingles(other_text(row)))
    candidates: dict[int, dict[int, None]] = defaultdict(dict)
    for band in range(0, NUM_HASHES, BAND_ROWS):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for row, key in enumerate(np.ascontiguousarray(others[:, band : band + BAND_ROWS])):
            bucket = buckets[key.tobytes()]
            if len(bucket) < MAX_CANDIDATES:
                bucket.append(row)
        for row, key in enumerate(np.ascontiguousarray(signatures[:, band : band + BAND_ROWS])):
            for other in buckets.get(key.tobytes(), ()):
                if len(candidates[row]) < MAX_CANDIDATES:
                    candidates[row][other] = None
    repeats = []
    for row in sorted(candidates):
        own = shingles(text(row))
        near = [(jaccard(own, other_shingles(other)), other) for other in candidates[row]]
        similarity, other = max(near, key=lambda pair: (pair[0], -pair[1]), default=(0.0, -1))
        if similarity >= NEAR:
            repeats.append(Repeat(row, other, similarity))
    return repeats


def jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    """Shared over all of two sets, each sorted and without repeats."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)
