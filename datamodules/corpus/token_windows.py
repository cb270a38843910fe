"""Windows of a token store: random ones to train on, sequential ones to evaluate on. Numpy over memory maps."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodules.corpus.token_store import SPLITS, TOKENS, StoreError, TokenStore
from datamodules.sampling.order import hash_key, mix64


@dataclass(frozen=True)
class DocumentRanges:
    """Documents of some categories of one split, those that are long enough for a window.

    Attributes:
        store: where they are.
        categories: names, in the order of `starts`.
        starts: (k,) first index row of each category.
        counts: (k,) documents of each category that hold a window.
        num_too_short: (k,) documents left out.
        length: tokens of a window.
    """

    store: TokenStore
    categories: list[str]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    num_too_short: NDArray[np.int64]
    length: int

    @property
    def ends(self) -> NDArray[np.int64]:
        """(k,) documents up to and with each category."""
        return np.cumsum(self.counts)

    def rows(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index rows of documents numbered from 0 over all categories."""
        ends = self.ends
        category = np.searchsorted(ends, numbers, side="right")
        return self.starts[category] + numbers - (ends - self.counts)[category]


def document_ranges(store: TokenStore, split: str, categories: list[str], *, length: int) -> DocumentRanges:
    """Documents of these categories with at least `length` tokens; shorter ones are counted.

    Args:
        store: an open token store.
        split: train, validation or test.
        categories: names that the store knows.
        length: fewest tokens of a document.

    Raises:
        StoreError: a category has no document that is long enough, or the split has none at all.
    """
    longest = [store.documents(split, name, min_length=length) for name in categories]
    everything = [store.documents(split, name) for name in categories]
    starts = np.array([start for start, _ in longest], dtype=np.int64)
    counts = np.array([stop - start for start, stop in longest], dtype=np.int64)
    total = np.array([stop - start for start, stop in everything], dtype=np.int64)
    for name, count, there in zip(categories, counts.tolist(), total.tolist(), strict=True):
        if count == 0:
            if not np.diff(store.groups[SPLITS.index(split)]).any():
                raise StoreError(
                    f"{store.folder}: no category has a {split} document; prepare it from a folder that holds "
                    f"{split}.jsonl or {split}.parquet"
                )
            what = (
                f"none of its {there} {split} documents has {length} tokens" if there else f"it has no {split} document"
            )
            raise StoreError(
                f"category {name}: {what}; lower data.sequence_length, choose other categories, or prepare more "
                "documents (data.full_dataset=true)"
            )
    return DocumentRanges(store, categories, starts, counts, total - counts, length)


def random_windows(
    ranges: DocumentRanges, epochs: NDArray[np.int64], indices: NDArray[np.int64], *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index row and first token of random windows; a pure function of (seed, epoch, index).

    A document is drawn uniformly, then an offset in it.

    Args:
        ranges: documents to draw from.
        epochs: (n,) epoch of each window.
        indices: (n,) position of each window in its epoch.
        seed: decides which windows are drawn.

    Returns:
        (n,) index rows and (n,) offsets in tokens.bin.
    """
    draws = _random_words(seed, epochs, indices)
    # modulo of a 64-bit word: its bias is below n / 2^64
    rows = ranges.rows((draws[0] % np.uint64(ranges.counts.sum())).astype(np.int64))
    documents = ranges.store.index[rows]
    places = documents["length"].astype(np.uint64) - np.uint64(ranges.length - 1)
    return rows, documents["offset"] + (draws[1] % places).astype(np.int64)


def _random_words(seed: int, epochs: NDArray[np.int64], indices: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Two random 64-bit words for each (seed, epoch, index), (2, n)."""
    different, which = np.unique(epochs, return_inverse=True)
    keys = np.array([hash_key(seed, epoch, _STREAM) for epoch in different.tolist()], dtype=np.uint64)
    with np.errstate(over="ignore"):
        counter = mix64(keys[which] + indices.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        return np.stack([mix64(counter + np.uint64(1)), mix64(counter + np.uint64(2))])


_STREAM = 0x57494E  # keeps these draws apart from the order of samples, which has (seed, epoch) alone


def read_windows(store: TokenStore, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Tokens of windows, (n, length) int64.

    Raises:
        StoreError: a token lies outside the vocabulary.
    """
    tokens = store.tokens[starts[:, None] + np.arange(length)]
    if tokens.size and int(tokens.max()) >= store.facts["vocab_size"]:
        row, column = np.argwhere(tokens >= store.facts["vocab_size"])[0].tolist()
        raise StoreError(
            f"{store.folder / TOKENS}: token {int(starts[row]) + column:,} is {int(tokens[row, column])}, outside the "
            f"vocabulary of {store.facts['vocab_size']:,}; the file has changed since it was verified: delete the "
            "store and prepare again"
        )
    return tokens.astype(np.int64)


@dataclass(frozen=True)
class SequentialWindows:
    """Non-overlapping windows that cover documents from their first token on; a fixed set, in a fixed order.

    Attributes:
        rows: (n,) index row of each window's document.
        starts: (n,) first token in tokens.bin.
        categories: (n,) position of the category in the ranges they were made from.
        num_bytes: (n,) bytes of text behind a window's targets, its document's bytes spread evenly over its tokens.
    """

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    categories: NDArray[np.int64]
    num_bytes: NDArray[np.float64]


def sequential_windows(ranges: DocumentRanges, *, max_per_category: int | None) -> SequentialWindows:
    """Every whole window of every document, or an evenly spread choice of so many in each category.

    The index is sorted by length, so a prefix would be the longest documents only.
    """
    parts = []
    length = ranges.length
    for number, (start, count) in enumerate(zip(ranges.starts.tolist(), ranges.counts.tolist(), strict=True)):
        documents = ranges.store.index[start : start + count]
        num_windows = documents["length"].astype(np.int64) // length
        ends = np.cumsum(num_windows)
        chosen = np.arange(ends[-1])
        if max_per_category is not None and max_per_category < len(chosen):
            chosen = np.arange(max_per_category) * len(chosen) // max_per_category
        row = np.searchsorted(ends, chosen, side="right")
        within = chosen - (ends - num_windows)[row]
        bytes_per_token = documents["num_bytes"][row] / documents["length"][row]
        parts.append((start + row, documents["offset"][row] + within * length, np.full(len(row), number),
                      bytes_per_token * (length - 1)))  # fmt: skip
    rows, starts, categories, num_bytes = (np.concatenate(column) for column in zip(*parts, strict=True))
    return SequentialWindows(rows, starts, categories, num_bytes)
