"""Documents of any length as overlapping chunks of tokens that an encoder can take, to the token and the character."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from datamodules.text.jsonl import whole_characters
from datamodules.text.plain_text import tokenize_plain
from datamodules.text.tokenized_texts import special_tokens_around, tokenizer_threads

Choose = Literal["first", "spread", "last"]
"""Which chunks of a longer document are kept: those at its start, evenly spaced ones, those at its end."""

PIECE_CHARACTERS = 1 << 14
"""A longer text goes through the tokenizer in pieces: what a tokenizer keeps for each character would otherwise take
about a hundred times the memory of the text, and one text only ever one core."""
BLOCK_PIECES = 32
"""Pieces tokenized at once: half a million characters at most, whatever the documents are."""


@dataclass(frozen=True)
class Chunking:
    """How documents are cut.

    Attributes:
        chunk_size: most tokens of a chunk, special ones included.
        stride: tokens of text from the start of one chunk to the start of the next.
        max_chunks: most chunks of a document.
        choose: which chunks stay where there are more.
    """

    chunk_size: int
    stride: int
    max_chunks: int
    choose: Choose


@dataclass(frozen=True)
class TokenizedText:
    """Tokens of a whole text without special ones.

    Attributes:
        ids: (n,) int64.
        spans: (n, 2) int64, the characters [start, end) of the text that each token stands for.
    """

    ids: NDArray[np.int64]
    spans: NDArray[np.int64]


@dataclass(frozen=True)
class ChunkedText:
    """A text as the network sees it; chunks in reading order.

    Attributes:
        input_ids: (length,) int64 ids of each chunk, special tokens included.
        spans: (length, 2) int64 of each chunk, the characters [start, end) in the text; -1, -1 for special tokens.
        ranges: [start, stop) of each chunk in the tokens of the text, special ones not counted.
        num_tokens: tokens of the whole text, special ones not counted.
    """

    input_ids: list[NDArray[np.int64]]
    spans: list[NDArray[np.int64]]
    ranges: list[tuple[int, int]]
    num_tokens: int


def chunk_ranges(num_tokens: int, *, room: int, stride: int, max_chunks: int, choose: Choose) -> list[tuple[int, int]]:
    """[start, stop) token ranges of the chosen chunks, in reading order.

    Chunks begin at 0, stride, 2 * stride ... until one reaches the end of the text; the last may be shorter. A text
    without tokens has one empty chunk.

    Args:
        num_tokens: tokens of the text, special ones not counted.
        room: tokens of text in a chunk.
        stride: tokens from one start to the next.
        max_chunks: most chunks.
        choose: which ones stay where there are more; `spread` keeps the first and the last and spaces the others
            evenly between them (a single one is the middle one).

    Raises:
        ValueError: a setting is out of range; a stride beyond the room would skip text.
    """
    if stride < 1 or max_chunks < 1:
        raise ValueError(f"data.stride={stride} and data.max_chunks={max_chunks} must be at least 1")
    if stride > room:
        raise ValueError(
            f"data.stride={stride} is more than the {room} tokens of text that fit into a chunk "
            f"(data.chunk_size less special tokens), so text between chunks would be lost; at most data.stride={room}"
        )
    count = 1 + max(0, -(-(num_tokens - room) // stride))
    if count <= max_chunks:
        numbers = list(range(count))
    elif choose == "first":
        numbers = list(range(max_chunks))
    elif choose == "last":
        numbers = list(range(count - max_chunks, count))
    elif max_chunks == 1:
        numbers = [(count - 1) // 2]
    else:  # rounded to the nearest, in whole numbers; spaces of one and more round to different ones
        gaps = max_chunks - 1
        numbers = [(2 * number * (count - 1) + gaps) // (2 * gaps) for number in range(max_chunks)]
    return [(number * stride, min(number * stride + room, num_tokens)) for number in numbers]


class Chunker:
    """Chunking with one tokenizer.

    Args:
        tokenizer: a fast one that puts special tokens before and behind a text.
        chunking: the settings.

    Attributes:
        before: (b,) special tokens in front of a chunk.
        after: (a,) special tokens behind it.
        room: tokens of text in a chunk.

    Raises:
        ValueError: a setting does not fit the tokenizer, naming the keys.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chunking: Chunking) -> None:
        if not tokenizer.is_fast:
            raise ValueError("data.tokenizer is a slow one, which cannot say where its tokens stand; choose a fast one")
        before, after = special_tokens_around(tokenizer)
        self.tokenizer = tokenizer
        self.chunking = chunking
        self.before, self.after = np.array(before, dtype=np.int64), np.array(after, dtype=np.int64)
        self.room = chunking.chunk_size - len(before) - len(after)
        if self.room < 1:
            raise ValueError(
                f"data.chunk_size={chunking.chunk_size} leaves no room for text beside "
                f"{len(before) + len(after)} special tokens"
            )
        self.ranges(0)  # wrong settings are found without a text

    def ranges(self, num_tokens: int) -> list[tuple[int, int]]:
        """chunk_ranges of a text of so many tokens."""
        settings = self.chunking
        return chunk_ranges(
            num_tokens,
            room=self.room,
            stride=settings.stride,
            max_chunks=settings.max_chunks,
            choose=settings.choose,
        )

    def with_special_tokens(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of a chunk as the network takes them."""
        return np.concatenate([self.before, ids, self.after])

    def chunk(self, text: str) -> ChunkedText:
        """Cut one text; an empty one gives one chunk of special tokens alone."""
        (tokens,) = tokenize_documents([text], self.tokenizer)
        ranges = self.ranges(len(tokens.ids))
        outside = (np.full((len(special), 2), -1, dtype=np.int64) for special in (self.before, self.after))
        first, last = outside
        return ChunkedText(
            input_ids=[self.with_special_tokens(tokens.ids[start:stop]) for start, stop in ranges],
            spans=[np.concatenate([first, tokens.spans[start:stop], last]) for start, stop in ranges],
            ranges=ranges,
            num_tokens=len(tokens.ids),
        )


def tokenize_documents(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[TokenizedText]:
    """Tokens of each text, in order, with as many threads as there are cores and memory that does not grow with them.

    A text longer than PIECE_CHARACTERS is cut before white space, where no tokenizer of words or of byte pairs joins
    anything; a stretch that long without white space is cut hard. Halves of surrogate pairs, which JSON may hold,
    count as question marks.
    """
    pieces = ((number, start, piece) for number, text in enumerate(texts) for start, piece in cut_into_pieces(text))
    parts: list[TokenizedText] = []
    current = 0
    while block := list(islice(pieces, BLOCK_PIECES)):
        with tokenizer_threads():
            encoded = tokenize_plain(
                [whole_characters(piece) for _, _, piece in block],
                tokenizer,
                return_offsets_mapping=True,
            )
        for (number, start, _), ids, spans in zip(block, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            while number > current:
                yield _joined(parts)
                parts, current = [], current + 1
            parts.append(
                TokenizedText(np.array(ids, dtype=np.int64), np.array(spans, dtype=np.int64).reshape(-1, 2) + start)
            )
    if parts:
        yield _joined(parts)


def _joined(parts: list[TokenizedText]) -> TokenizedText:
    return TokenizedText(np.concatenate([part.ids for part in parts]), np.concatenate([part.spans for part in parts]))


def cut_into_pieces(text: str, longest: int = PIECE_CHARACTERS) -> Iterator[tuple[int, str]]:
    """Start and text of consecutive pieces of at most `longest` characters; an empty text is one empty piece."""
    start = 0
    while len(text) - start > longest:
        stop = start + longest
        while stop > start and not (text[stop].isspace() and not text[stop - 1].isspace()):
            stop -= 1
        if stop == start:
            stop = start + longest
        yield start, text[start:stop]
        start = stop
    yield start, text[start:]
