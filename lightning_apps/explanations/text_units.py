"""Words and sentences of a document that a model read in part, as character spans."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"\S+")
SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]»]*$")
CLOSING = re.compile(r"[^\w\s(\[{“‘«<]+$")
"""A word of nothing but punctuation that opens nothing goes with the sentence before it."""
PARAGRAPH = re.compile(r"\n\s*\n")
LONGEST_SENTENCE = 40
"""Words; where no full stop comes (verse, lists, text without punctuation) a sentence is cut here."""

Spans = NDArray[np.int64]


@dataclass(frozen=True)
class ReadWords:
    """The words of a document of which the model read at least one token, in reading order.

    Attributes:
        spans: (words, 2) int64, [start, end) characters.
        sentence: (words,) int64, which sentence a word is in, 0 the first; without gaps.
        num_words: words of the whole document, read or not.
    """

    spans: Spans
    sentence: NDArray[np.int64]
    num_words: int

    @property
    def num_sentences(self) -> int:
        """Sentences, 0 where there are no words."""
        return int(self.sentence[-1]) + 1 if len(self.sentence) else 0

    @property
    def sentence_spans(self) -> Spans:
        """(sentences, 2) characters from the first to behind the last word of each."""
        if not len(self.spans):
            return self.spans
        first = np.flatnonzero(np.diff(self.sentence, prepend=-1))
        last = np.append(first[1:], len(self.spans)) - 1
        return np.stack([self.spans[first, 0], self.spans[last, 1]], axis=1)


def read_words(text: str, token_spans: Spans, *, max_sentences: int) -> tuple[ReadWords, NDArray[np.int64]]:
    """Words that tokens belong to, and the word of each token.

    A word is what stands between white space. A token belongs to the word of its last character: tokens of some
    tokenizers begin with the space before the word.

    Args:
        text: the document.
        token_spans: (..., 2) [start, end) characters of each token; an empty span for tokens that are no text.
        max_sentences: neighbouring sentences are joined until there are no more than this, which bounds what
            occlusion costs in a document of any length.

    Returns:
        The words, and of shape (...) the index of each token's word, -1 where it has none.
    """
    found = np.array([match.span() for match in WORD.finditer(text)], dtype=np.int64).reshape(-1, 2)
    last = token_spans[..., 1] - 1
    word = np.searchsorted(found[:, 0], last, side="right") - 1
    inside = (token_spans[..., 1] > token_spans[..., 0]) & (word >= 0)
    if len(found):
        inside &= last < found[word, 1]
    read, index = np.unique(word[inside], return_inverse=True)
    word_of_token = np.full(word.shape, -1, dtype=np.int64)
    word_of_token[inside] = index
    return ReadWords(found[read], _sentences(text, found[read], read, max_sentences), len(found)), word_of_token


def _sentences(text: str, spans: Spans, place: NDArray[np.int64], max_sentences: int) -> NDArray[np.int64]:
    """Number of the sentence of each word; `place` is the position of a word in the whole document."""
    numbers = np.zeros(len(spans), dtype=np.int64)
    number = length = 0
    ended = False
    for word in range(1, len(spans)):
        start, end = spans[word - 1]
        length += 1
        closing = CLOSING.match(text, start, end)
        ended = bool(SENTENCE_END.search(text, max(start, end - 10), end)) or (ended and closing is not None)
        if (
            length == LONGEST_SENTENCE
            or place[word] != place[word - 1] + 1  # what stands between was not read
            or (ended and not CLOSING.match(text, *spans[word]))
            or PARAGRAPH.search(text, end, spans[word, 0])
        ):
            number, length, ended = number + 1, 0, False
        numbers[word] = number
    joined = -(-(number + 1) // max_sentences)
    return numbers // joined


def inside_spans(spans: Spans, regions: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
    """Which spans (n, 2) overlap any of the regions (m, 2), all [start, end)."""
    inside = np.zeros(len(spans), dtype=np.bool_)
    for start, end in regions:
        inside |= (spans[:, 0] < end) & (spans[:, 1] > start)
    return inside
