"""Deletion and insertion curves: what becomes of a verdict as its best words go, or come (Petsiuk et al., 2018)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_apps.explanations.attribution import CachedEncoder, Chunks, Target
from lightning_apps.explanations.faithfulness import tied

Array = NDArray[np.float64]


def ranked_words(words: Array, sentence: NDArray[np.int64], *, unit: str, seed: int) -> NDArray[np.int64]:
    """Words in the order in which they are removed: the highest scores first.

    Args:
        words: (words,) scores.
        sentence: (words,) number of the sentence of each.
        unit: `sentence` goes by the mean score of whole sentences, so that length is no merit, and keeps the words of a
            sentence together in reading order; `word` by the scores themselves.
        seed: sentences of equal score come in an order drawn with it.
    """
    if not len(words):
        return np.zeros(0, dtype=np.int64)
    scores = words
    if unit == "sentence":
        scores = (np.bincount(sentence, words) / np.bincount(sentence))[sentence]
    draw = np.random.Generator(np.random.PCG64(seed)).permutation(int(sentence.max()) + 1)
    # the last key counts first; position decides last
    return np.lexsort((np.arange(len(words)), draw[sentence], -tied(scores)))


def deletion_and_insertion(
    chunks: Chunks, encoder: CachedEncoder, target: Target, order: NDArray[np.int64], fractions: Sequence[float]
) -> tuple[Array, Array]:
    """Probability of the target as words are removed, and as they are put into the empty document, in one order.

    Exactly `round(fraction * words)` words are absent (or present), so that a sentence may be cut at the edge.

    Args:
        chunks: the document as the model reads it.
        encoder: the model; variants of a chunk that were read before cost nothing.
        target: whose probability is followed.
        order: (words,) int64 numbers of the words, the one of the highest score first.
        fractions: shares of the words, rising from 0 to 1.

    Returns:
        Two arrays (fractions,) of float64: deletion, insertion.
    """
    deletion: list[float] = []
    insertion: list[float] = []
    for fraction in fractions:
        first = np.zeros(chunks.num_words, dtype=np.bool_)
        first[order[: round(fraction * chunks.num_words)]] = True
        for removed, values in ((first, deletion), (~first, insertion)):
            vectors = encoder.vectors(chunks.without(removed, encoder.absent_id), chunks.attention_mask)
            probabilities = encoder.classify([vectors], chunks.sections)[0][0].softmax(dim=-1)
            values.append(float((probabilities * target.probability_weights).sum()))
    return np.array(deletion), np.array(insertion)
