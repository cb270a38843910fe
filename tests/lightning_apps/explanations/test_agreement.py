"""Agreement of methods by hand."""

import math

import numpy as np
import pytest

from lightning_apps.explanations.agreement import summarise_agreement, top_overlap, top_share


def test_ties_share_what_is_left_of_the_top():
    assert top_share(np.array([3.0, 1, 1, 1, 0]), 2).tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3, 0])
    assert top_share(np.array([3.0, 2, 1]), 2).tolist() == [1, 1, 0]


def test_overlap():
    assert top_overlap(np.array([3.0, 2, 1, 0]), np.array([0.0, 3, 2, 1]), 2) == 0.5
    assert top_overlap(np.zeros(4), np.array([0.0, 3, 2, 1]), 2) == pytest.approx(2 / 4)  # chance
    assert math.isnan(top_overlap(np.zeros(2), np.zeros(2), 2))


def test_pairs_over_documents():
    up = np.arange(10.0)
    documents = [{"a": up, "b": up * 2, "c": -up}, {"a": up, "b": up, "c": up}, {"a": up[:3], "b": up[:3], "c": up[:3]}]
    found = summarise_agreement(documents)
    assert found["chance_overlap"] == 0.5
    pairs = {"".join(pair["methods"]): pair for pair in found["pairs"]}
    assert list(pairs) == ["ab", "ac", "bc"]
    assert (pairs["ab"]["spearman"]["value"], pairs["ab"]["top_overlap"]["value"]) == pytest.approx((1, 1))
    assert (pairs["ac"]["spearman"]["value"], pairs["ac"]["top_overlap"]["value"]) == pytest.approx((0, 0.5))
    assert pairs["ac"]["spearman"]["num_documents"] == pairs["ac"]["top_overlap"]["num_documents"] == 2
    assert summarise_agreement([])["pairs"] == summarise_agreement([{"a": up}])["pairs"] == []
