"""How far methods agree on a document (Krishna et al. 2022, "The Disagreement Problem in Explainable ML")."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_apps.explanations.faithfulness import known, tied
from lightning_apps.explanations.sanity import rank_correlation

TOP = 5
"""Sentences that are compared."""

Array = NDArray[np.float64]


def top_share(scores: Array, count: int) -> Array:
    """(n,) by how much each unit is among the `count` of the highest scores; those that tie at the edge share it."""
    ranked = tied(scores)
    edge = np.sort(ranked)[-count]
    above, at_edge = ranked > edge, ranked == edge
    return above + at_edge * (count - above.sum()) / at_edge.sum()


def top_overlap(first: Array, second: Array, count: int) -> float:
    """Share of the `count` highest that two methods have in common, ties drawn; NaN where there are no more units."""
    if len(first) <= count:
        return float("nan")
    return float(top_share(first, count) @ top_share(second, count)) / count


def summarise_agreement(documents: Sequence[Mapping[str, Array]]) -> dict[str, Any]:
    """Each pair of methods over documents, with intervals.

    Args:
        documents: of each, by method, the scores of its sentences.

    Returns:
        `top`, and under `pairs` of each its `methods`, `spearman`, `top_overlap`; `chance_overlap` is that of random
        orders. Documents with too few sentences to rank are left out; `num_documents` says how many are in.
    """
    methods = list(documents[0]) if documents else []
    pairs = []
    for first, second in combinations(methods, 2):
        both = [(scores[first], scores[second]) for scores in documents]
        pairs.append(
            {
                "methods": [first, second],
                "spearman": known([rank_correlation(*scores) for scores in both]),
                "top_overlap": known([top_overlap(*scores, TOP) for scores in both]),
            }
        )
    lengths = [len(scores[methods[0]]) for scores in documents] if methods else []
    return {
        "unit": "sentence",
        "top": TOP,
        "chance_overlap": known([TOP / length for length in lengths if length > TOP])["value"],
        "pairs": pairs,
    }
