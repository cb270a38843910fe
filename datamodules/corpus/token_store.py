"""Token store: documents as one flat file of token ids, and an index that finds those of a category in O(log n).

    tokens.bin     token ids of all documents, little-endian uint16 or uint32, in the order in which they were read
    index.bin      one row a document (INDEX_ROW), sorted by split, category and falling length
    splits.json    documents, tokens and bytes of every category of every split
    tokenizer/     the tokenizer in Hugging Face layout
    manifest.json  settings, facts, and size and SHA-256 of the files above; written last

Sorting by falling length makes "documents of this category with at least 101 tokens" a range of rows, found by
bisection: opening a store, and sampling from it, read a few pages of the index however large the corpus is.
"""

import contextlib
import json
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.storage.cache import file_sha256, read_manifest

SPLITS = ("train", "validation", "test")
TOKENS, INDEX, SPLITS_FILE = "tokens.bin", "index.bin", "splits.json"
INDEX_ROW = np.dtype(
    [
        ("offset", "<i8"),  # first token in tokens.bin
        ("document", "<i8"),  # row in its split's source, from 0
        ("length", "<u4"),  # tokens
        ("num_bytes", "<u4"),  # of the text in UTF-8
        ("category", "<u2"),  # position among the sorted category names
        ("split", "u1"),  # position in SPLITS
    ]
)
VERIFIED = ".verified.json"
"""Sizes and modification times of files whose every byte was checked; it does not travel with a copy."""


class StoreError(ValueError):
    """A token store cannot be used; the message names the file and the remedy."""


@dataclass(frozen=True)
class TokenStore:
    """An open store.

    Attributes:
        folder: where it is.
        tokens: (number of tokens,) uint16 or uint32, memory-mapped.
        index: (number of documents,) INDEX_ROW, memory-mapped.
        categories: sorted names.
        groups: (3, number of categories, 2) first row and end of each split's and category's documents.
        facts: what the manifest says: `max_token_id`, `vocab_size`, `num_documents`, `num_tokens`, ...
    """

    folder: Path
    tokens: NDArray[Any]
    index: NDArray[np.void]
    categories: list[str]
    groups: NDArray[np.int64]
    facts: dict[str, Any]

    def documents(self, split: str, category: str, *, min_length: int = 1) -> tuple[int, int]:
        """Rows [start, stop) of the category's documents with at least `min_length` tokens."""
        start, stop = self.groups[SPLITS.index(split), self.categories.index(category)].tolist()
        lengths = self.index["length"]
        low, high = start, stop  # rows before low are long enough, those from high on are not
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if lengths[middle] >= min_length else (low, middle)
        return start, low


def token_dtype(max_token_id: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """The smaller of uint16 and uint32 that holds every id up to this one.

    Raises:
        StoreError: neither does.
    """
    for dtype in (np.dtype("<u2"), np.dtype("<u4")):
        if max_token_id <= np.iinfo(dtype).max:
            return dtype
    raise StoreError(f"token id {max_token_id} does not fit 32 bits; choose another tokenizer (data.tokenizer)")


def write_index(path: Path, rows: NDArray[np.void]) -> NDArray[np.int64]:
    """Sort the rows, write them, and return the groups as TokenStore has them.

    Takes 16 bytes of memory a document beside the rows themselves, which may be memory-mapped.
    """
    # one key to sort by: split, category, falling length; equal keys stay in the order of reading
    key = rows["split"].astype(np.uint64) << np.uint64(56)
    key |= rows["category"].astype(np.uint64) << np.uint64(40)
    key |= np.uint64(0xFFFFFFFF) - rows["length"].astype(np.uint64)
    order = np.argsort(key, kind="stable")
    with path.open("wb") as file:
        for start in range(0, len(order), 1 << 16):
            file.write(rows[order[start : start + (1 << 16)]].tobytes())
    num_categories = int(rows["category"].max()) + 1 if len(rows) else 0
    group = rows["split"].astype(np.int64) * num_categories + rows["category"]
    ends = np.cumsum(np.bincount(group, minlength=len(SPLITS) * num_categories))
    starts = np.concatenate([[0], ends[:-1]])
    return np.stack([starts, ends], axis=1).reshape(len(SPLITS), num_categories, 2).astype(np.int64)


def checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file of a store except the manifest."""
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".") and path.name != "manifest.json"
    )
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)} for name in names}


def is_store(folder: Path) -> bool:
    """Whether the folder holds a finished token store."""
    return (folder / TOKENS).is_file() and (folder / "manifest.json").is_file()


def open_store(folder: Path) -> TokenStore:
    """Map a store into memory and check that its files agree with each other.

    Sizes, row counts and the ends of each group are checked each time; every byte once (verify_store).

    Raises:
        StoreError: a file is missing, cut off, or contradicts another.
    """
    try:
        manifest = read_manifest(folder)
        facts, files = manifest["facts"], manifest["facts"]["files"]
        dtype: np.dtype[Any] = np.dtype({"uint16": "<u2", "uint32": "<u4"}[facts["dtype"]])
        splits = json.loads((folder / SPLITS_FILE).read_text(encoding="utf-8"))
        categories: list[str] = facts["categories"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{folder} is no token store ({type(error).__name__}: {error}); {_REMEDY}") from error
    for name, stated in files.items():
        _check_size(folder / name, stated["bytes"])
    _check_size(folder / TOKENS, facts["num_tokens"] * dtype.itemsize)
    _check_size(folder / INDEX, facts["num_documents"] * INDEX_ROW.itemsize)
    tokens, index = mapped(folder / TOKENS, dtype), mapped(folder / INDEX, INDEX_ROW)
    groups = np.array(
        [[splits[split]["rows"][category] for category in categories] for split in SPLITS], dtype=np.int64
    )
    store = TokenStore(folder, tokens, index, categories, groups.reshape(len(SPLITS), -1, 2), facts)
    _check_groups(store)
    if not _is_verified(folder, files):
        verify_store(store)
    expect_random_reads(tokens, index)
    return store


def mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A file as a read-only array; its pages are read when they are looked at."""
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(content, dtype=dtype)


def expect_random_reads(*arrays: NDArray[Any]) -> None:
    """Switch off read-ahead for mapped files that will not stay in memory.

    A window of 200 bytes would otherwise pull in 128 KB, and push out pages that are of use. Files that fit are better
    off with it: they are in memory sooner.
    """
    if not hasattr(mmap.mmap, "madvise") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if sum(array.nbytes for array in arrays) > memory // 2:
        for array in arrays:
            content: Any = array.base
            content = content.obj if isinstance(content, memoryview) else content  # numpy keeps either
            content.madvise(mmap.MADV_RANDOM)


_REMEDY = "delete it and prepare again: python -m lightning_apps.prepare"


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size != expected:
        state = "is missing" if size is None else f"has {size:,} bytes, the manifest says {expected:,}"
        raise StoreError(f"{path} {state}; {_REMEDY}")


def _check_groups(store: TokenStore) -> None:
    """The groups tile the index, and the rows at their ends belong to them."""
    flat = store.groups.reshape(-1, 2)
    tiled = np.array_equal(flat[1:, 0], flat[:-1, 1]) and flat[0, 0] == 0 and flat[-1, 1] == len(store.index)
    if not tiled or (flat[:, 0] > flat[:, 1]).any():
        raise StoreError(
            f"{store.folder / SPLITS_FILE} disagrees with {INDEX}: its row ranges do not tile it; {_REMEDY}"
        )
    for number, (start, stop) in enumerate(flat.tolist()):
        if start < stop:
            ends = store.index[[start, stop - 1]]
            split, category = divmod(number, len(store.categories))
            if (ends["split"] != split).any() or (ends["category"] != category).any():
                name = f"{SPLITS[split]}/{store.categories[category]}"
                raise StoreError(
                    f"{store.folder / INDEX} disagrees with {SPLITS_FILE}: rows {start} to {stop - 1} are not of "
                    f"{name}; {_REMEDY}"
                )
            check_rows(store, ends)


def check_rows(store: TokenStore, rows: NDArray[np.void]) -> None:
    """Whether documents lie inside tokens.bin.

    Raises:
        StoreError: one does not.
    """
    offset, length = rows["offset"], rows["length"].astype(np.int64)
    outside = (offset < 0) | (offset + length > len(store.tokens))
    if outside.any():
        row = rows[int(np.argmax(outside))]
        raise StoreError(
            f"{store.folder / INDEX} disagrees with {TOKENS}: document {row['document']} of {SPLITS[row['split']]} "
            f"ends at token {int(row['offset']) + int(row['length']):,} of {len(store.tokens):,}; {_REMEDY}"
        )


def verify_store(store: TokenStore) -> None:
    """Read every byte: checksums, every document inside the file, every token inside the vocabulary; remembered.

    Raises:
        StoreError: naming what is wrong first.
    """
    for start in range(0, len(store.index), 1 << 18):
        check_rows(store, store.index[start : start + (1 << 18)])
    check_token_ids(store.folder / TOKENS, store.tokens, store.facts["vocab_size"])
    files = store.facts["files"]
    for name, stated in files.items():
        if file_sha256(store.folder / name) != stated["sha256"]:
            raise StoreError(f"{store.folder / name} is damaged: its SHA-256 is not the manifest's; {_REMEDY}")
    remember_verified(store.folder, files)


def check_token_ids(path: Path, tokens: NDArray[Any], vocab_size: int) -> None:
    """Whether every id lies inside the vocabulary.

    Raises:
        StoreError: one does not, with its position.
    """
    for start in range(0, len(tokens), 1 << 24):
        block = tokens[start : start + (1 << 24)]
        if int(block.max()) >= vocab_size:
            position = int(np.argmax(block >= vocab_size))
            raise StoreError(
                f"{path}: token {start + position:,} is {int(block[position])}, outside the vocabulary of "
                f"{vocab_size:,}; {_REMEDY}"
            )


def remember_verified(folder: Path, files: dict[str, Any]) -> None:
    """Note that every byte was checked, so that the next opening need not."""
    with contextlib.suppress(OSError):  # a read-only store is verified at each opening
        (folder / VERIFIED).write_text(json.dumps(_stamps(folder, files)), encoding="utf-8")


def _is_verified(folder: Path, files: dict[str, Any]) -> bool:
    try:
        stamps: dict[str, list[int]] = json.loads((folder / VERIFIED).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return stamps == _stamps(folder, files)


def _stamps(folder: Path, files: dict[str, Any]) -> dict[str, list[int]]:
    found = {name: os.stat(folder / name) for name in files}  # noqa: PTH116
    return {name: [stat.st_size, stat.st_mtime_ns, stat.st_ino] for name, stat in found.items()}
