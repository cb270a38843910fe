"""From labelled text to a token store: read, tokenize in worker processes, write; memory stays flat."""

import json
import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules.corpus.text_source import Row, SourceError, TextSource
from datamodules.corpus.token_store import (
    INDEX,
    INDEX_ROW,
    SPLITS,
    SPLITS_FILE,
    TOKENS,
    StoreError,
    checksums,
    remember_verified,
    token_dtype,
    write_index,
)
from datamodules.text.hub_access import load_tokenizer
from datamodules.text.learned_bpe import learn_bpe, vocabulary_size
from datamodules.text.plain_text import count_special_texts, tokenize_plain

BATCH_CHARACTERS = 1_000_000
"""Text handed to a worker at a time, at least one document."""
QUEUED_PER_WORKER = 3

Item = TypeVar("Item")
Result = TypeVar("Result")


def write_store(
    folder: Path,
    source: TextSource,
    *,
    tokenizer_name: str,
    max_documents_per_split: int | None,
    seed: int,
    num_workers: int,
) -> dict[str, Any]:
    """Fill an empty folder with a token store; the caller writes the manifest with what is returned.

    Args:
        folder: to write into.
        source: documents.
        tokenizer_name: Hugging Face name or path, or bpe:<tokens> for one that is learned from the training split.
        max_documents_per_split: size of the sample to keep; None keeps all documents.
        seed: decides which documents are in that sample.
        num_workers: tokenizing processes; 1 tokenizes here.

    Returns:
        Facts for the manifest.

    Raises:
        SourceError: a document cannot be read, or there is none.
        StoreError: a token does not fit.
    """
    tokenizer = corpus_tokenizer(tokenizer_name, source, max_documents_per_split, seed)
    tokenizer.save_pretrained(folder / "tokenizer")
    vocab_size = len(tokenizer)
    dtype = token_dtype(vocab_size - 1)
    categories: dict[str, int] = {}  # in the order of their first document; sorted at the end
    max_token_id = -1
    num_tokens = 0
    empty: Counter[str] = Counter()
    special: Counter[str] = Counter()
    rows_path = folder / ".rows"
    with (folder / TOKENS).open("wb") as tokens_file, rows_path.open("wb") as rows_file:
        for split in source.splits:
            documents = source.read(split, max_documents_per_split, seed)
            batches = _batches(documents)
            progress = tqdm(desc=f"tokenizing {split}", unit=" documents", disable=None, leave=False)
            for numbers, labels, tokens, lengths, sizes, held in in_order(
                _tokenize,
                batches,
                num_workers=num_workers,
                initializer=_start_worker,
                argument=str(folder / "tokenizer"),
            ):
                if len(tokens):
                    max_token_id = max(max_token_id, int(tokens.max()))
                    if max_token_id >= vocab_size:
                        raise StoreError(
                            f"data.tokenizer={tokenizer_name} gave token {max_token_id}, outside its vocabulary of "
                            f"{vocab_size:,}; choose another tokenizer"
                        )
                tokens_file.write(tokens.astype(dtype).tobytes())
                rows = np.zeros(len(numbers), dtype=INDEX_ROW)
                rows["document"], rows["length"], rows["num_bytes"] = numbers, lengths, sizes
                rows["offset"] = num_tokens + np.cumsum(lengths) - lengths
                rows["category"] = [categories.setdefault(label, len(categories)) for label in labels]
                rows["split"] = SPLITS.index(split)
                num_tokens += len(tokens)
                empty[split] += int((lengths == 0).sum())
                special.update(held)
                rows_file.write(rows[lengths > 0].tobytes())
                progress.update(len(numbers))
            progress.close()
    if num_tokens == 0:
        raise SourceError("the source holds no document with a token; look at data.path and data.text_column")
    if len(categories) > np.iinfo(np.uint16).max:
        raise SourceError(f"{len(categories):,} categories; at most 65,535 are possible: is data.label_column right?")
    facts: dict[str, Any] = {
        "dtype": "uint16" if dtype.itemsize == 2 else "uint32",
        "vocab_size": vocab_size,
        "max_token_id": max_token_id,
        "num_tokens": num_tokens,
        "num_documents": rows_path.stat().st_size // INDEX_ROW.itemsize,
        "num_empty_documents": dict(empty),
        "special_texts": dict(special),
        "categories": sorted(categories),
    }
    _finish_index(folder, rows_path, list(categories), facts["categories"])
    facts["files"] = checksums(folder)
    remember_verified(folder, facts["files"])
    return facts


def corpus_tokenizer(name: str, source: TextSource, limit: int | None, seed: int) -> PreTrainedTokenizerBase:
    """The tokenizer of that name; one that is to be learned sees the training documents of the store, no others.

    Raises:
        SourceError: it is to be learned, and there is no training split.
        ValueError: it cannot be had.
    """
    size = vocabulary_size(name)
    if size is None:
        remedy = "give a Hugging Face name, with a network, a folder that holds tokenizer.json, or bpe:4096"
        return load_tokenizer(name, remedy=remedy)
    if "train" not in source.splits:
        raise SourceError(f"data.tokenizer={name} is learned from the training split, and the source has none")
    return learn_bpe((text for _, text, _ in source.read("train", limit, seed)), size=size)


def _finish_index(folder: Path, rows_path: Path, found: list[str], categories: list[str]) -> None:
    rows = np.memmap(rows_path, dtype=INDEX_ROW, mode="r+")
    rows["category"] = np.array([categories.index(name) for name in found], dtype=np.uint16)[rows["category"]]
    groups = write_index(folder / INDEX, rows)
    table: dict[str, Any] = {}
    index = np.memmap(folder / INDEX, dtype=INDEX_ROW, mode="r")
    for split, ranges in zip(SPLITS, groups, strict=True):
        parts = {name: index[start:stop] for name, (start, stop) in zip(categories, ranges.tolist(), strict=True)}
        table[split] = {
            "documents": {name: len(part) for name, part in parts.items()},
            "tokens": {name: int(part["length"].sum(dtype=np.int64)) for name, part in parts.items()},
            "bytes": {name: int(part["num_bytes"].sum(dtype=np.int64)) for name, part in parts.items()},
            "rows": dict(zip(categories, ranges.tolist(), strict=True)),
        }
    (folder / SPLITS_FILE).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    del rows
    rows_path.unlink()


# ---------------------------------------------------------------------- workers


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Documents in groups of about BATCH_CHARACTERS."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row[1])
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


_worker_tokenizer: PreTrainedTokenizerBase
"""This process's own; _start_worker sets it."""


def _start_worker(tokenizer_folder: str) -> None:
    global _worker_tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker_tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)


def _tokenize(
    batch: list[Row],
) -> tuple[list[int], list[str], NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64], dict[str, int]]:
    numbers, texts, labels = (list(column) for column in zip(*batch, strict=True))
    ids = tokenize_plain(texts, _worker_tokenizer)["input_ids"]
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    tokens = np.fromiter(chain.from_iterable(ids), dtype=np.uint32, count=int(lengths.sum()))
    sizes = np.array([len(text.encode()) for text in texts], dtype=np.int64)
    return numbers, labels, tokens, lengths, sizes, count_special_texts(texts, _worker_tokenizer)


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    num_workers: int,
    initializer: Callable[[str], None],
    argument: str,
) -> Iterator[Result]:
    """Results in the order of the items, computed by worker processes; only a few items are in memory at a time.

    `multiprocessing.Pool.imap` reads its whole input ahead of the workers, however slow these are.

    Args:
        function: item -> result; it must be importable by name.
        items: read only as fast as the workers follow.
        num_workers: processes; with one, or fewer than two items, this process does the work.
        initializer: called once in each process that works.
        argument: what the initializer is called with.

    Raises:
        RuntimeError: a worker died.
    """
    items = iter(items)
    first = list(islice(items, 2))
    items = chain(first, items)
    if num_workers <= 1 or len(first) < 2:  # starting processes would take longer
        initializer(argument)
        yield from map(function, items)
        return
    context = multiprocessing.get_context(
        "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    )
    context.set_forkserver_preload([__name__])  # torch and transformers are imported once, not in every worker
    with ProcessPoolExecutor(num_workers, context, initializer, (argument,)) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= QUEUED_PER_WORKER * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a tokenizing process died, most likely for want of memory; try data.preparation_workers=1"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
