"""Texts and their tokens on disk, as flat memory-mapped arrays with row ends, and batches made from them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from datamodules.sampling.packing import padded_rows
from datamodules.text.hub_access import load_tokenizer
from datamodules.text.jsonl import whole_characters
from datamodules.text.plain_text import tokenize_plain

Truncation = Literal["end", "middle", "start"]
"""Which part of a text goes where it is too long."""
WORDS = "words"
"""Name of the tokenizer that is learned from the training texts, for models without pretrained weights."""
BLOCK = 256  # texts tokenized at once


@dataclass(frozen=True)
class RaggedArray:
    """Rows of unequal lengths, one behind the other: `values` (total,) and `ends` (n,) int64."""

    values: NDArray[Any]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self.values[self.ends[row - 1] if row else 0 : self.ends[row]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Length of each row, (n,)."""
        return np.diff(self.ends, prepend=0)

    def text(self, row: int) -> str:
        """A row of UTF-8 bytes as text."""
        return bytes(self[row]).decode("utf-8", "surrogatepass")


def save_ragged(path: Path, rows: Sequence[NDArray[Any]], dtype: DTypeLike) -> None:
    """Write `path`.npy and `path`_ends.npy.

    Args:
        path: of the two files, without their endings.
        rows: 1-D arrays of any lengths.
        dtype: in which the values are stored.
    """
    ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
    values = np.empty(int(ends[-1]) if len(ends) else 0, dtype=dtype)
    for row, end in zip(rows, ends, strict=True):
        values[end - len(row) : end] = row
    np.save(path.with_name(f"{path.name}.npy"), values)
    np.save(path.with_name(f"{path.name}_ends.npy"), ends)


def open_ragged(path: Path) -> RaggedArray:
    """Map what save_ragged wrote."""
    values = np.load(path.with_name(f"{path.name}.npy"), mmap_mode="r")
    return RaggedArray(values, np.load(path.with_name(f"{path.name}_ends.npy")))


def text_bytes(texts: Sequence[str]) -> list[NDArray[np.uint8]]:
    """UTF-8 bytes of each text; JSON may hold halves of surrogate pairs, which pass through."""
    return [np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8) for text in texts]


def open_tokenizer(name: str, train_texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """A tokenizer by its name on the hub or its folder; `words` learns one from the training texts.

    Raises:
        ValueError: there is none of that name, or it is one that cannot tell special tokens from text.
    """
    if name == WORDS:
        return word_tokenizer(train_texts)
    tokenizer = load_tokenizer(
        name,
        remedy="without a network name a folder, or use model=minilm (rating: hierarchical_minilm), whose weights and "
        "tokenizer come as a package",
    )
    if tokenizer.pad_token_id is None:
        raise ValueError(f"data.tokenizer={name} has no padding token; choose a tokenizer of an encoder")
    return tokenizer


def word_tokenizer(texts: Sequence[str], vocab_size: int = 8192) -> PreTrainedTokenizerFast:
    """One token for each of the most frequent lower-case words of the texts, between [CLS] and [SEP]."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(special)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(map(whole_characters, texts), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",  # noqa: S106
        unk_token="[UNK]",  # noqa: S106
        cls_token="[CLS]",  # noqa: S106
        sep_token="[SEP]",  # noqa: S106
    )


def special_tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Tokens that the tokenizer puts before and behind a text.

    Raises:
        ValueError: it does something else with a text.
    """
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    raise ValueError("data.tokenizer puts special tokens inside a text; choose a tokenizer of an encoder")


def cut(ids: NDArray[np.int64], room: int, truncation: Truncation) -> NDArray[np.int64]:
    """At most `room` tokens of a text: without its end, its middle (a quarter stays before it), or its start.

    The head and tail of a review tell more than its head alone (Sun et al. 2019, "How to fine-tune BERT for text
    classification?", 128 and 382 of 512 tokens).
    """
    if len(ids) <= room:
        return ids
    if truncation == "end":
        return ids[:room]
    if truncation == "start":
        return ids[len(ids) - room :]
    head = room // 4
    return np.concatenate([ids[:head], ids[len(ids) - (room - head) :]])


def encode_texts(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    truncation: Truncation,
    progress: str | None = None,
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Tokens of each text with the special ones around them, in all cores.

    Args:
        texts: n texts.
        tokenizer: a fast one uses every core.
        max_length: longest row, special tokens included.
        truncation: what goes where a text is longer.
        progress: title of a progress bar; None shows none.

    Returns:
        n rows, each at most `max_length` long, and the (n,) lengths that they would have had uncut.

    Raises:
        ValueError: `max_length` has no room for a token of the text.
    """
    before, after = special_tokens_around(tokenizer)
    room = max_length - len(before) - len(after)
    if room < 1:
        raise ValueError(
            f"data.max_length={max_length} leaves no room beside {len(before) + len(after)} special tokens"
        )
    rows: list[NDArray[np.int64]] = []
    lengths: list[int] = []
    # the bar hides itself where nobody looks at a terminal
    with (
        tokenizer_threads(),
        tqdm(total=len(texts), desc=progress, unit="text", disable=progress is None or None) as bar,
    ):
        for start in range(0, len(texts), BLOCK):
            block = [whole_characters(text) for text in texts[start : start + BLOCK]]
            for ids in tokenize_plain(block, tokenizer)["input_ids"]:
                kept = cut(np.array(ids, dtype=np.int64), room, truncation)
                rows.append(np.concatenate([before, kept, after]).astype(np.int64))
                lengths.append(len(ids) + len(before) + len(after))
            bar.update(len(block))
    return rows, np.array(lengths, dtype=np.int64)


@contextmanager
def tokenizer_threads() -> Iterator[None]:
    """Let the tokenizer use its threads here; elsewhere they stay off, because loaders fork."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = before or "false"


def padded(rows: Sequence[NDArray[Any]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` (n, longest) int64, padded on the right to the longest of these rows."""
    mask = padded_rows([np.ones(len(row), dtype=np.int64) for row in rows], 0)
    return {"input_ids": padded_rows(rows, pad_token_id), "attention_mask": mask}
