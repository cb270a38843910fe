"""Whether explanations are true to the model, and find the evidence: areas, pointing game, average precision."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from lightning_apps.statistics.bootstrap import bootstrap_interval

Array = NDArray[np.float64]
Inside = NDArray[np.bool_]
RANDOM = "random"
CURVES = ("deletion", "insertion")
ERASER = ("comprehensiveness", "sufficiency")
ERASER_SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Of the words, as in the benchmark."""
CURVE_ENDS = {"mean": "value", "low": "low", "high": "high"}
METHOD_NAMES = {
    "chunk_attention": "chunk attention",
    "integrated_gradients": "integrated gradients",
    "occlusion": "occlusion",
    RANDOM: "random order",
}
EVIDENCE = {
    "pointing_word": "top word is evidence",
    "pointing_sentence": "top sentence is evidence",
    "pointing_chunk": "top chunk is evidence",
    "average_precision": "average precision, words",
    "average_precision_sentence": "average precision, sentences",
}


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


def pointing_hit(scores: Array, inside: Inside) -> float:
    """The pointing game (Zhang et al., 2016): whether the unit of the highest score is evidence.

    Where several share the highest score, the share of them that are: the expected hit of a draw among them.

    Args:
        scores: (n,), n at least 1.
        inside: (n,) which units are evidence.
    """
    ranked = tied(scores)
    return float(inside[ranked == ranked.max()].mean())


def evidence_scores(
    words: Array, chunks: Array, sentence: NDArray[np.int64], word_inside: Inside, chunk_inside: Inside
) -> dict[str, float]:
    """How well scores find the evidence of one document: EVIDENCE.

    A sentence counts as evidence where at least half of its words are, and has the mean score of its words. Average
    precision is over words, so that long evidence weighs more than short: by their own scores, and by those of their
    sentences, which every method has. Words of equal score form one step of the curve.

    Args:
        words: (words,) float64 score of each word.
        chunks: (chunks,) float64 score of each chunk.
        sentence: (words,) int64 number of the sentence of each word.
        word_inside: (words,) bool, which words are evidence; at least one.
        chunk_inside: (chunks,) bool, which chunks hold evidence, as chunks_inside says.
    """
    lengths = np.bincount(sentence)
    sentence_inside = np.bincount(sentence, word_inside) >= lengths / 2
    by_sentence = np.bincount(sentence, words) / lengths
    return {
        "pointing_word": pointing_hit(words, word_inside),
        "pointing_sentence": pointing_hit(by_sentence, sentence_inside),
        "pointing_chunk": pointing_hit(chunks, chunk_inside),
        "average_precision": float(average_precision_score(word_inside, tied(words))),
        "average_precision_sentence": float(average_precision_score(word_inside, tied(by_sentence)[sentence])),
    }


def chunks_inside(held: Sequence[NDArray[np.int64]], regions: Sequence[NDArray[np.int64]]) -> Inside:
    """(chunks,) which chunks count as evidence: those that share at least half of themselves, or half of a region.

    Args:
        held: for each chunk the words that it holds.
        regions: for each span of evidence the words in it.
    """
    return np.array(
        [
            any(
                len(words) and len(region) and len(np.intersect1d(words, region)) >= min(len(words), len(region)) / 2
                for region in regions
            )
            for words in held
        ],
        dtype=np.bool_,
    )


def expected_random_evidence(
    sentence: NDArray[np.int64], word_inside: Inside, chunk_inside: Inside, *, draws: int, seed: int
) -> dict[str, float]:
    """What random scores of sentences and chunks reach on one document.

    The pointing game is exact: equal scores everywhere give the share of units that are evidence. Average precision is
    a mean over draws.
    """
    equal = np.zeros(len(sentence))
    found = evidence_scores(equal, np.zeros(len(chunk_inside)), sentence, word_inside, chunk_inside)
    # a random sentence, and then the word of the highest score in it
    share = np.bincount(sentence, word_inside) / np.bincount(sentence)
    found["pointing_word"] = float(share.mean())
    source = np.random.Generator(np.random.PCG64(seed))
    found["average_precision"] = found["average_precision_sentence"] = float(
        np.mean(
            [
                average_precision_score(word_inside, source.permutation(len(share)).astype(np.float64)[sentence])
                for _ in range(draws)
            ]
        )
    )
    return found


def mean_with_interval(values: Sequence[float] | Array) -> dict[str, float]:
    """`value`, `low`, `high` of a mean over documents; no interval for fewer than two."""
    numbers = np.array(values, dtype=np.float64)
    if not len(numbers):
        return {"value": math.nan, "low": math.nan, "high": math.nan}
    low, high = bootstrap_interval(numbers, np.mean) if len(numbers) > 1 else (math.nan, math.nan)
    return {"value": float(numbers.mean()), "low": low, "high": high}


def known(values: Sequence[float]) -> dict[str, float]:
    """mean_with_interval of those that are not NaN; `num_documents` says how many they are."""
    numbers = [value for value in values if not math.isnan(value)]
    return {**mean_with_interval(numbers), "num_documents": len(numbers)}


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
        fractions: (fractions,) shares of the words that are absent, or present.

    Returns:
        By curve: `area` (compare_with_random), and `mean`, `low`, `high` (fractions,) by method.
    """
    methods = list(documents[0]) if documents else []
    summary: dict[str, Any] = {}
    for curve in CURVES:
        values = {method: np.array([entry[method][curve] for entry in documents]) for method in methods}
        areas = {method: [curve_area(fractions, row) for row in rows] for method, rows in values.items()}
        points = {method: [mean_with_interval(column) for column in rows.T] for method, rows in values.items()}
        summary[curve] = {
            "area": compare_with_random(areas) if methods else {},
            "curves": {
                method: {name: [point[key] for point in found] for name, key in CURVE_ENDS.items()}
                for method, found in points.items()
            },
        }
    return summary


def eraser_falls(deletion: Array, insertion: Array) -> dict[str, list[float]]:
    """Comprehensiveness and sufficiency (DeYoung et al. 2020, "ERASER"): how far the probability falls.

    Without the best words, where more is better, and with nothing but them, where less is.

    Args:
        deletion: (1 + shares,) probability of the whole document, and without the best words at each share.
        insertion: the same with the best words alone; the first is not read.
    """
    return {name: (deletion[0] - rest[1:]).tolist() for name, rest in zip(ERASER, (deletion, insertion), strict=True)}


def summarise_eraser(documents: Sequence[Mapping[str, Mapping[str, Sequence[float]]]]) -> dict[str, Any]:
    """`shares`, and of each of ERASER the mean over shares (AOPC), every method against random over documents.

    Args:
        documents: of each, by method, what eraser_falls gives.
    """
    methods = list(documents[0]) if documents else []
    return {"shares": list(ERASER_SHARES)} | {
        name: compare_with_random(
            {method: [float(np.mean(entry[method][name])) for entry in documents] for method in methods}
        )
        for name in ERASER
        if methods
    }


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
