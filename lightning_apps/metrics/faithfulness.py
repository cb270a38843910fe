"""Whether explanations are true to the model, and find the evidence: areas, pointing game, average precision."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from lightning_apps.metrics.bootstrap import bootstrap_interval

Array = NDArray[np.float64]
RANDOM = "random"
CURVES = ("deletion", "insertion")
EVIDENCE = ("pointing_word", "pointing_sentence", "pointing_chunk", "average_precision")


def tied(scores: Array) -> Array:
    """The scores (n,) over their largest magnitude, with nine decimals: what differs by rounding alone is equal."""
    scale = float(np.abs(scores).max(initial=0.0))
    return np.round(scores / scale, 9) + 0.0 if scale > 0 else np.zeros_like(scores)  # + 0.0: no negative zero


def curve_area(fractions: Sequence[float], values: Array) -> float:
    """Area under a curve over [0, 1] by the trapezoid rule.

    Args:
        fractions: (n,) rising, from 0 to 1.
        values: (n,).
    """
    return float(np.trapezoid(values, fractions))


def pointing_hit(scores: Array, inside: NDArray[np.bool_]) -> float:
    """The pointing game (Zhang et al., 2016): whether the unit of the highest score is evidence.

    Where several share the highest score, the share of them that are: the expected hit of a draw among them.

    Args:
        scores: (n,), n at least 1.
        inside: (n,) which units are evidence.
    """
    ranked = tied(scores)
    return float(inside[ranked == ranked.max()].mean())


def evidence_scores(
    words: Array,
    sentence: NDArray[np.int64],
    chunks: Array,
    word_inside: NDArray[np.bool_],
    chunk_of_word: Sequence[NDArray[np.int64]],
) -> dict[str, float]:
    """How well scores find the evidence of one document: EVIDENCE.

    A sentence counts as evidence where at least half of its words are; a chunk likewise. A sentence has the mean score
    of its words. Average precision is over words, so that long evidence weighs more than short; words of equal score
    form one step of the curve.

    Args:
        words: (words,) scores.
        sentence: (words,) number of the sentence of each.
        chunks: (chunks,) scores.
        word_inside: (words,) which words are evidence; at least one.
        chunk_of_word: for each chunk the words that it holds.
    """
    lengths = np.bincount(sentence)
    sentence_inside = np.bincount(sentence, word_inside) >= lengths / 2
    chunk_inside = np.array([word_inside[held].mean() >= 0.5 if len(held) else False for held in chunk_of_word])
    return {
        "pointing_word": pointing_hit(words, word_inside),
        "pointing_sentence": pointing_hit(np.bincount(sentence, words) / lengths, sentence_inside),
        "pointing_chunk": pointing_hit(chunks, chunk_inside),
        "average_precision": float(average_precision_score(word_inside, tied(words))),
    }


def expected_random_evidence(
    sentence: NDArray[np.int64],
    word_inside: NDArray[np.bool_],
    chunk_of_word: Sequence[NDArray[np.int64]],
    *,
    draws: int,
    seed: int,
) -> dict[str, float]:
    """What random scores of sentences and chunks reach on one document.

    The pointing game is exact: equal scores everywhere give the share of units that are evidence. Average precision is
    a mean over draws.
    """
    equal, chunks = np.zeros(len(sentence)), np.zeros(len(chunk_of_word))
    found = evidence_scores(equal, sentence, chunks, word_inside, chunk_of_word)
    # a random sentence, and then the word of the highest score in it
    share = np.bincount(sentence, word_inside) / np.bincount(sentence)
    found["pointing_word"] = float(share.mean())
    source = np.random.Generator(np.random.PCG64(seed))
    found["average_precision"] = float(
        np.mean(
            [
                average_precision_score(word_inside, source.permutation(len(share)).astype(np.float64)[sentence])
                for _ in range(draws)
            ]
        )
    )
    return found


def mean_with_interval(values: Sequence[float]) -> dict[str, float]:
    """`value`, `low`, `high` of a mean over documents; no interval for fewer than two."""
    numbers = np.array(values, dtype=np.float64)
    if not len(numbers):
        return {"value": math.nan, "low": math.nan, "high": math.nan}
    low, high = bootstrap_interval(numbers, np.mean) if len(numbers) > 1 else (math.nan, math.nan)
    return {"value": float(numbers.mean()), "low": low, "high": high}


def compare_with_random(by_method: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Each method's mean over documents, and its mean difference to `random` on the same documents, with intervals.

    Args:
        by_method: for each method one number a document, in the same order of documents; `random` is among them.
    """
    control = np.array(by_method[RANDOM], dtype=np.float64)
    return {
        method: mean_with_interval(values)
        | ({} if method == RANDOM else {"minus_random": mean_with_interval((np.array(values) - control).tolist())})
        for method, values in by_method.items()
    }


def summarise_curves(documents: Sequence[Mapping[str, Any]], fractions: Sequence[float]) -> dict[str, Any]:
    """Curves and areas over documents.

    Args:
        documents: of each, by method, `deletion` and `insertion` (fractions,).
        fractions: of the words that are absent, or present.

    Returns:
        By curve: `area` (compare_with_random), and `mean`, `low`, `high` (fractions,) by method.
    """
    methods = list(documents[0]) if documents else []
    summary: dict[str, Any] = {}
    for curve in CURVES:
        areas = {method: [curve_area(fractions, entry[method][curve]) for entry in documents] for method in methods}
        summary[curve] = {"area": compare_with_random(areas) if methods else {}, "curves": {}}
        for method in methods:
            points = [mean_with_interval(column) for column in zip(*(entry[method][curve] for entry in documents),
                                                                   strict=True)]  # fmt: skip
            summary[curve]["curves"][method] = {
                end: [point[key] for point in points]
                for end, key in (("mean", "value"), ("low", "low"), ("high", "high"))
            }
    return summary


def summarise_evidence(documents: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """By score of EVIDENCE, each method against random over documents.

    Args:
        documents: of each, by method, what evidence_scores gives.
    """
    methods = list(documents[0]) if documents else []
    return {
        name: compare_with_random({method: [entry[method][name] for entry in documents] for method in methods})
        for name in EVIDENCE
        if methods
    }
