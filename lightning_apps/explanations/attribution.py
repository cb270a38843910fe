"""What a hierarchical classifier's verdict rests on: chunk attention and occlusion; the encoder that all methods share.

All methods explain the same function F of a document, a weighted sum of logits (see Target), and mean the same by
"absent": a token is replaced by the mask token, special tokens stay. Nothing here holds more than `micro_chunks` chunks
in the encoder at a time, however long the document is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.encoders.hierarchical import HierarchicalClassifier

Array = NDArray[np.float64]
REMEMBERED_CHUNKS = 4096
"""Vectors that a CachedEncoder keeps: 12 MB at width 768."""


@dataclass(frozen=True)
class Target:
    """What scores are towards.

    F is a sum of logits with weights that sum to zero: logits are only defined up to a constant, which no word should
    be credited with. For a class it is its logit minus the mean of all; for `higher` the logits weighted by class
    number, so that F grows with the rank of the verdict among ordered labels.

    Attributes:
        name: class, or `higher`.
        logit_weights: (classes,) float32 weights of F.
        probability_weights: (classes,) float32, in [0, 1]; what deletion curves follow: the probability of the
            class, or the expected class number over the highest.
    """

    name: str
    logit_weights: Tensor
    probability_weights: Tensor


HIGHER = "higher"


def class_target(number: int, name: str, num_classes: int) -> Target:
    """Towards one class."""
    weights = torch.zeros(num_classes)
    weights[number] = 1.0
    return Target(name, weights - weights.mean(), weights)


def higher_target(num_classes: int) -> Target:
    """Towards higher class numbers, for labels that have an order."""
    rank = torch.arange(num_classes, dtype=torch.float32) / max(num_classes - 1, 1)
    return Target(HIGHER, rank - rank.mean(), rank)


@dataclass(frozen=True)
class Chunks:
    """A document as the model reads it.

    Attributes:
        input_ids: (chunks, length) int64, with special tokens.
        attention_mask: (chunks, length) int64, 1 for tokens and 0 for padding.
        word: (chunks, length) int64 index of the word of each token, -1 for tokens of no word.
        num_words: words that any chunk holds.
        sections: (chunks,) number of the section that each chunk is of.
    """

    input_ids: Tensor
    attention_mask: Tensor
    word: NDArray[np.int64]
    num_words: int
    sections: Sequence[int]

    def without(self, removed: NDArray[np.bool_], absent_id: int) -> Tensor:
        """(chunks, length) ids in which the words of the mask (words,) are absent."""
        gone = np.append(removed, False)[self.word]  # -1, no word, is the last
        return torch.where(torch.from_numpy(gone), absent_id, self.input_ids)


@dataclass
class CachedEncoder:
    """Chunk vectors and logits of a model in evaluation mode; a chunk that was read before is not encoded again.

    Args:
        net: the classifier; put into evaluation mode, and no parameter of it learns any more.
        micro_chunks: chunks in the encoder at a time, at least 1.
        absent_id: token that stands for a word that is absent.
        device: where the model is.
        num_encoded: chunks encoded so far.
        known: vectors (hidden,) on the CPU by the bytes of their chunk's ids and mask.
    """

    net: HierarchicalClassifier
    micro_chunks: int
    absent_id: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    num_encoded: int = 0
    known: dict[bytes, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.net.eval().requires_grad_(requires_grad=False)

    def forget(self) -> None:
        """Drop the remembered vectors; another document shares none."""
        self.known.clear()

    @torch.no_grad()
    def vectors(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(chunks, hidden) of chunks (chunks, length)."""
        keys = [
            ids.tobytes() + mask.tobytes() for ids, mask in zip(input_ids.numpy(), attention_mask.numpy(), strict=True)
        ]
        new = {key: row for row, key in reversed(list(enumerate(keys))) if key not in self.known}
        rows = sorted(new.values())
        # equal lengths together: padding at the end of a chunk costs, and changes nothing
        rows.sort(key=lambda row: int(attention_mask[row].sum()))
        fresh: dict[bytes, Tensor] = {}
        for start in range(0, len(rows), self.micro_chunks):
            chosen = rows[start : start + self.micro_chunks]
            mask = attention_mask[chosen]
            length = used_length(mask)
            encoded = self.net.encode(
                input_ids[chosen][:, :length].to(self.device), mask[:, :length].to(self.device)
            ).cpu()
            self.num_encoded += len(chosen)
            fresh |= {keys[row]: vector for row, vector in zip(chosen, encoded, strict=True)}
        found = torch.stack([fresh[key] if key in fresh else self.known[key] for key in keys])  # (chunks, hidden)
        if len(self.known) + len(fresh) > REMEMBERED_CHUNKS:
            self.known.clear()
        if len(fresh) <= REMEMBERED_CHUNKS:
            self.known |= fresh
        return found

    @torch.no_grad()
    def classify(self, documents: Sequence[Tensor], sections: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits (documents, classes), and weights of all chunks, of documents given as chunk vectors.

        Args:
            documents: (chunks, hidden) each, variants of one document.
            sections: (chunks,) number of the section that each chunk of any of them is of.
        """
        vectors = torch.cat(list(documents)).to(self.device)
        logits, weights = self.net.classify(vectors, [len(sections)] * len(documents), list(sections) * len(documents))
        return logits.float().cpu(), weights.float().cpu()

    def read(self, chunks: Chunks) -> tuple[Tensor, Tensor]:
        """Logits (1, classes), and weights (chunks,), of a document as it is."""
        return self.classify([self.vectors(chunks.input_ids, chunks.attention_mask)], chunks.sections)


@dataclass(frozen=True)
class Attribution:
    """Scores of one method for one document; positive ones speak for the target.

    Attributes:
        words: (words,) float64 score of each word that the model read.
        chunks: (chunks,) float64 score of each chunk.
    """

    words: Array
    chunks: Array


def used_length(attention_mask: Tensor) -> int:
    """Positions up to the last that is attended to in any row of (chunks, length)."""
    return int(attention_mask.any(dim=0).nonzero().max()) + 1


def chunk_attention(chunks: Chunks, weights: Tensor) -> Attribution:
    """The weights (chunks,) of attention pooling; a word has the mean weight of the chunks that hold it.

    Never negative: it says where the model looks, not what speaks for or against.
    """
    values = weights.double().numpy()
    return Attribution(mean_over_tokens(chunks, np.broadcast_to(values[:, None], chunks.word.shape)), values)


def mean_over_tokens(chunks: Chunks, scores: Array) -> Array:
    """(words,) mean of token scores (chunks, length) over the tokens of each word, in all chunks that hold it."""
    valid = chunks.word >= 0
    totals = np.bincount(chunks.word[valid], scores[valid], minlength=chunks.num_words)
    return totals / np.maximum(np.bincount(chunks.word[valid], minlength=chunks.num_words), 1)


def occlusion(chunks: Chunks, encoder: CachedEncoder, target: Target, sentence: NDArray[np.int64]) -> Attribution:
    """How much F falls when a sentence is absent, and when a whole chunk is left out.

    Only the chunks that hold a sentence are encoded again, the vectors of the others are reused. Leaving a chunk out
    is pooling without its vector; a document of one chunk has every word of it absent instead. The fall by a sentence
    is shared evenly among its words.

    Args:
        chunks: the document as the model reads it.
        encoder: the model that reads it.
        target: what F is.
        sentence: (words,) number of the sentence of each word, 0 the first.
    """
    vectors = encoder.vectors(chunks.input_ids, chunks.attention_mask)
    goal_value = float((encoder.classify([vectors], chunks.sections)[0][0] * target.logit_weights).sum())

    def falls(documents: Sequence[Tensor], sections: Sequence[int] = chunks.sections) -> list[float]:
        logits, _ = encoder.classify(documents, sections)
        return (goal_value - logits @ target.logit_weights).tolist()

    number = len(vectors)
    if number == 1:
        absent = chunks.without(np.ones(chunks.num_words, dtype=np.bool_), encoder.absent_id)
        by_chunk = falls([encoder.vectors(absent, chunks.attention_mask)])
    else:
        others = ([place for place in range(number) if place != row] for row in range(number))
        by_chunk = [
            fall for kept in others for fall in falls([vectors[kept]], [chunks.sections[place] for place in kept])
        ]

    sentence_of_token = np.append(sentence, -1)[chunks.word]  # (chunks, length)
    by_sentence: list[float] = []
    waiting: list[NDArray[np.int64]] = []  # chunks that hold each sentence of the group
    ids: list[Tensor] = []
    num_sentences = int(sentence.max()) + 1 if len(sentence) else 0
    for current in range(num_sentences):
        here = sentence_of_token == current
        held_by = np.flatnonzero(here.any(axis=1))
        waiting.append(held_by)
        ids.append(torch.where(torch.from_numpy(here[held_by]), encoder.absent_id, chunks.input_ids[held_by]))
        if current + 1 < num_sentences and sum(map(len, waiting)) < encoder.micro_chunks:
            continue
        masks = torch.cat([chunks.attention_mask[rows] for rows in waiting])
        changed = iter(encoder.vectors(torch.cat(ids), masks).split([len(rows) for rows in waiting]))
        documents = []
        for rows in waiting:
            variant = vectors.clone()
            variant[rows] = next(changed)
            documents.append(variant)
        by_sentence += falls(documents)
        waiting, ids = [], []
    lengths = np.bincount(sentence, minlength=num_sentences)
    per_word = np.array(by_sentence) / np.maximum(lengths, 1)
    return Attribution(per_word[sentence], np.array(by_chunk))


def random_scores(chunks: Chunks, sentence: NDArray[np.int64], seed: int) -> Attribution:
    """The control: every sentence and every chunk gets a random score."""
    source = np.random.Generator(np.random.PCG64(seed))
    by_sentence = source.random(int(sentence.max()) + 1 if len(sentence) else 0)
    return Attribution(by_sentence[sentence], source.random(len(chunks.input_ids)))
