"""Documents of any length as overlapping chunks of tokens that an encoder can take, to the token and the character."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from datamodules.text.jsonl import whole_characters
from datamodules.text.plain_text import tokenize_plain
from datamodules.text.tokenized_texts import special_tokens_around, tokenizer_threads

Choose = Literal["first", "spread", "last"]
"""Which chunks of a longer document are kept: those at its start, evenly spaced ones, those at its end."""
Sections = Literal["whole", "blank_lines"]
"""Where chunks begin anew: nowhere, as a document is one text, or behind blank lines, so that none spans two parts."""

BLANK_LINE = re.compile(r"\r?\n[^\S\r\n]*\r?\n\s*")

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
        sections: where chunks begin anew.
    """

    chunk_size: int
    stride: int
    max_chunks: int
    choose: Choose
    sections: Sections = "whole"


@dataclass(frozen=True)
class TokenizedText:
    """Tokens of a whole text without special ones.

    Attributes:
        ids: (n,) int64.
        spans: (n, 2) int64, the characters [start, end) of the text that each token stands for.
    """

    ids: NDArray[np.int64]
    spans: NDArray[np.int64]

    def section_starts(self, text: str) -> NDArray[np.int64]:
        """(sections,) int64 first token of each section of the text, rising from 0; sections without one are none."""
        starts = [match.end() for match in BLANK_LINE.finditer(text)]
        # a token that reaches over a blank line belongs to what stands behind it
        first = np.searchsorted(self.spans[:, 1], np.array(starts, dtype=np.int64), side="right")
        return np.unique(np.concatenate([[0], first[first < len(self.ids)]])).astype(np.int64)


@dataclass(frozen=True)
class ChunkedText:
    """A text as the network sees it; chunks in reading order.

    Attributes:
        input_ids: (length,) int64 ids of each chunk, special tokens included.
        spans: (length, 2) int64 of each chunk, the characters [start, end) in the text; -1, -1 for special tokens.
        ranges: [start, stop) of each chunk in the tokens of the text, special ones not counted.
        sections: (chunks,) number of the section that each chunk is of; where the whole is one, chunks stand alone.
        num_tokens: tokens of the whole text, special ones not counted.
    """

    input_ids: list[NDArray[np.int64]]
    spans: list[NDArray[np.int64]]
    ranges: list[tuple[int, int]]
    sections: list[int]
    num_tokens: int


def chunk_ranges(
    num_tokens: int,
    *,
    room: int,
    stride: int,
    max_chunks: int,
    choose: Choose,
    section_starts: Sequence[int] = (0,),
) -> list[tuple[int, int]]:
    """[start, stop) token ranges of the chosen chunks, in reading order.

    Chunks begin at 0, stride, 2 * stride ... of a section until one reaches its end; the last may be shorter. A text
    without tokens has one empty chunk.

    Args:
        num_tokens: tokens of the text, special ones not counted.
        room: tokens of text in a chunk.
        stride: tokens from one start to the next.
        max_chunks: most chunks.
        choose: which ones stay where there are more; `spread` keeps the first and the last and spaces the others
            evenly between them (a single one is the middle one).
        section_starts: (sections,) first token of each section, rising from 0.

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
    ends = [*section_starts[1:], num_tokens]
    chunks_of = (
        1 + max(0, -(-(end - start - room) // stride)) for start, end in zip(section_starts, ends, strict=True)
    )
    totals = [0, *accumulate(chunks_of)]  # chunks before each section
    count = totals[-1]
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
    ranges = []
    for number in numbers:
        section = bisect_right(totals, number) - 1
        begin = section_starts[section] + (number - totals[section]) * stride
        ranges.append((begin, min(begin + room, ends[section])))
    return ranges


def section_numbers(ranges: Sequence[tuple[int, int]], section_starts: NDArray[np.int64]) -> list[int]:
    """(chunks,) number of the section of each chunk, given by its range."""
    numbers: list[int] = (np.searchsorted(section_starts, [start for start, _ in ranges], side="right") - 1).tolist()
    return numbers


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

    def ranges(self, num_tokens: int, section_starts: NDArray[np.int64] | None = None) -> list[tuple[int, int]]:
        """chunk_ranges of a text of so many tokens, whose sections are read where `sections` asks for them."""
        settings = self.chunking
        starts = [0] if section_starts is None or settings.sections == "whole" else section_starts.tolist()
        return chunk_ranges(
            num_tokens,
            room=self.room,
            stride=settings.stride,
            max_chunks=settings.max_chunks,
            choose=settings.choose,
            section_starts=starts,
        )

    def sections(self, ranges: Sequence[tuple[int, int]], section_starts: NDArray[np.int64]) -> list[int]:
        """(chunks,) number of the section that each chunk is of; where the whole is one, chunks stand alone."""
        if self.chunking.sections == "whole":
            return list(range(len(ranges)))
        return section_numbers(ranges, section_starts)

    def with_special_tokens(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of a chunk as the network takes them."""
        return np.concatenate([self.before, ids, self.after])

    def chunk(self, text: str) -> ChunkedText:
        """Cut one text; an empty one gives one chunk of special tokens alone."""
        (tokens,) = tokenize_documents([text], self.tokenizer)
        starts = tokens.section_starts(text)
        ranges = self.ranges(len(tokens.ids), starts)
        outside = (np.full((len(special), 2), -1, dtype=np.int64) for special in (self.before, self.after))
        first, last = outside
        return ChunkedText(
            input_ids=[self.with_special_tokens(tokens.ids[start:stop]) for start, stop in ranges],
            spans=[np.concatenate([first, tokens.spans[start:stop], last]) for start, stop in ranges],
            ranges=ranges,
            sections=self.sections(ranges, starts),
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
