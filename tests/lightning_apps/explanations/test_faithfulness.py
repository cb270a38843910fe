"""Curves, pointing game and average precision, by hand."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from lightning_apps.explanations.attribution import CachedEncoder, Chunks, class_target
from lightning_apps.explanations.deletion_curves import deletion_and_insertion, ranked_words
from lightning_apps.explanations.faithfulness import (
    EVIDENCE,
    chunks_inside,
    compare_with_random,
    curve_area,
    eraser_falls,
    evidence_scores,
    expected_random_evidence,
    mean_with_interval,
    pointing_hit,
    summarise_curves,
    summarise_eraser,
    summarise_evidence,
    tied,
)
from lightning_apps.explanations.faithfulness_picture import draw_faithfulness

pytestmark = pytest.mark.numeric

SENTENCE = np.array([0, 0, 1, 1, 1, 2])


def test_areas_of_hand_made_tables():
    fractions = [0.0, 0.1, 0.5, 1.0]
    assert curve_area(fractions, np.array([1.0, 0.0, 0.0, 0.0])) == pytest.approx(0.05)
    assert curve_area(fractions, np.array([0.8, 0.6, 0.2, 0.2])) == pytest.approx(0.07 + 0.16 + 0.1)
    assert curve_area([0.0, 1.0], np.array([0.0, 1.0])) == 0.5


def test_words_go_by_rank():
    scores = np.array([0.0, 5.0, 1.0, 1.0, 1.0, 2.0])
    assert ranked_words(scores, SENTENCE, unit="word", seed=0)[:2].tolist() == [1, 5]
    # means 2.5, 1, 2: the words of a sentence stay together, in reading order
    assert ranked_words(scores, SENTENCE, unit="sentence", seed=0).tolist() == [0, 1, 5, 2, 3, 4]
    orders = {tuple(ranked_words(np.zeros(6), SENTENCE, unit="sentence", seed=seed)) for seed in range(30)}
    assert len(orders) == 6  # ties are drawn
    assert all(np.diff([order.index(word) for word in (2, 3, 4)]).tolist() == [1, 1] for order in orders)
    assert ranked_words(np.zeros(0), np.zeros(0, dtype=np.int64), unit="word", seed=0).tolist() == []


def test_rounding_breaks_no_tie():
    assert (0.1 + 0.1 + 0.1) / 3 != 0.1
    assert len(set(tied(np.array([(0.1 + 0.1 + 0.1) / 3, 0.1])))) == 1
    assert tied(np.array([0.0, -0.0])).tolist() == [0.0, 0.0]
    assert tied(np.array([-2.0, 1.0])).tolist() == [-1.0, 0.5]


class CountingNet(torch.nn.Module):
    """Logit 1 is the number of words 10 that are there."""

    def encode(self, input_ids=None, attention_mask=None, *, inputs_embeds=None):
        return (input_ids == 10).sum(dim=1, keepdim=True).float()

    def classify(self, vectors, counts, sections):
        total = vectors.sum()
        return torch.stack([torch.zeros(()), total - 1]).log_softmax(0)[None], torch.ones(len(vectors)) / len(vectors)


def test_curves_by_hand():
    ids = torch.tensor([[0, 10, 7, 7, 1], [0, 10, 7, 7, 1]])
    chunks = Chunks(ids, torch.ones_like(ids), np.array([[-1, 0, 1, 2, -1], [-1, 3, 4, 5, -1]]), 6, range(2))
    encoder = CachedEncoder(CountingNet(), 8, 3)
    order = np.array([0, 3, 1, 2, 4, 5])  # the two words that matter first
    deletion, insertion = deletion_and_insertion(chunks, encoder, class_target(1, "b", 2), order, [0, 1 / 6, 2 / 6, 1])
    sigmoid = [1 / (1 + math.exp(-(number - 1))) for number in range(3)]
    np.testing.assert_allclose(deletion, [sigmoid[2], sigmoid[1], sigmoid[0], sigmoid[0]], rtol=1e-6)
    np.testing.assert_allclose(insertion, [sigmoid[0], sigmoid[1], sigmoid[2], sigmoid[2]], rtol=1e-6)


def test_eraser_by_hand():
    """As the benchmark's own metrics.py: the mean over shares of what the probability falls by."""
    deletion, insertion = np.array([0.9, 0.8, 0.5]), np.array([0.0, 0.6, 0.95])
    found = eraser_falls(deletion, insertion)
    assert found["comprehensiveness"] == pytest.approx([0.1, 0.4])
    assert found["sufficiency"] == pytest.approx([0.3, -0.05])
    chance = {"comprehensiveness": [0.1, 0.2], "sufficiency": [0.4, 0.4]}
    summary = summarise_eraser([{"occlusion": found, "random": chance}] * 2)
    assert summary["shares"] == [0.01, 0.05, 0.1, 0.2, 0.5]
    assert summary["comprehensiveness"]["occlusion"]["value"] == pytest.approx(0.25)
    assert summary["comprehensiveness"]["occlusion"]["minus_random"]["value"] == pytest.approx(0.1)
    assert summary["sufficiency"]["occlusion"]["value"] == pytest.approx(0.125)
    assert summary["sufficiency"]["random"]["value"] == pytest.approx(0.4)
    assert summarise_eraser([]) == {"shares": [0.01, 0.05, 0.1, 0.2, 0.5]}


def test_pointing_game_with_ties():
    inside = np.array([True, False, False, True])
    assert pointing_hit(np.array([3.0, 1, 1, 1]), inside) == 1
    assert pointing_hit(np.array([0.0, 1, 0, 0]), inside) == 0
    assert pointing_hit(np.array([2.0, 2, 2, 0]), inside) == pytest.approx(1 / 3)
    assert pointing_hit(np.array([-3.0, -1, -3, -1]), inside) == 0.5


INSIDE = np.array([True, True, False, False, True, False])
HELD = [np.array([0, 1, 2]), np.array([2, 3, 4]), np.array([5]), np.array([], dtype=np.int64)]


def test_evidence_by_hand():
    scores = np.array([3.0, 1.0, 2.0, 2.0, 2.0, 0.5])
    chunk_inside = np.array([True, False, False, False])
    found = evidence_scores(scores, np.array([0.1, 0.9, 0.2, 0.0]), SENTENCE, INSIDE, chunk_inside)
    # ranked 3 | 2 2 2 | 1 | 0.5 with hits 1 | 1 | 1 | 0: precision 1, 2/4, 3/5 at recall 1/3, 2/3, 1
    assert found["average_precision"] == pytest.approx((1 + 1 / 2 + 3 / 5) / 3)
    # sentence means 2, 2, 0.5: five words of which three are evidence, then the last
    assert found["average_precision_sentence"] == pytest.approx(3 / 5)
    assert found["pointing_word"] == 1
    # the first sentence is evidence, the second (one of three words) is not
    assert found["pointing_sentence"] == 0.5
    assert found["pointing_chunk"] == 0
    found = evidence_scores(scores, np.array([1.0, 0, 0, 0]), SENTENCE, INSIDE, chunk_inside)
    assert found["pointing_chunk"] == 1


def test_chunks_that_are_evidence():
    assert chunks_inside(HELD, [np.array([0, 1]), np.array([4])]).tolist() == [True, True, False, False]
    assert chunks_inside(HELD, [np.array([2, 3, 4, 5, 6])]).tolist() == [False, True, True, False]
    assert chunks_inside(HELD, [np.array([], dtype=np.int64)]).tolist() == [False] * 4


def test_chance_by_hand():
    found = expected_random_evidence(SENTENCE, INSIDE, np.array([True, False, False]), draws=500, seed=0)
    assert found["pointing_word"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found["pointing_sentence"] == pytest.approx(1 / 3)
    assert found["pointing_chunk"] == pytest.approx(1 / 3)
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    exact = np.mean([average_precision_score(INSIDE, np.array(order)[SENTENCE]) for order in orders])
    assert found["average_precision"] == pytest.approx(exact, abs=0.03)
    assert found["average_precision_sentence"] == found["average_precision"]


def test_differences_are_paired():
    """Documents differ a lot, the methods by a constant: the interval of the difference has no width."""
    control = np.linspace(0, 1, 20)
    found = compare_with_random({"occlusion": control - 0.1, "random": control})
    assert found["occlusion"]["minus_random"] == pytest.approx({"value": -0.1, "low": -0.1, "high": -0.1})
    assert found["occlusion"]["high"] - found["occlusion"]["low"] > 0.1
    assert "minus_random" not in found["random"]
    alone = mean_with_interval([0.25])
    assert alone["value"] == 0.25
    assert math.isnan(alone["low"])
    assert math.isnan(mean_with_interval([])["value"])


def curves_of(shift):
    return {
        "occlusion": {"deletion": [0.9, 0.2 + shift, 0.1], "insertion": [0.1, 0.8, 0.9]},
        "random": {"deletion": [0.9, 0.5 + shift, 0.1], "insertion": [0.1, 0.5, 0.9]},
    }


def test_summaries_and_their_picture(tmp_path):
    found = summarise_curves([curves_of(0.0), curves_of(0.1)], [0.0, 0.5, 1.0])
    area = found["deletion"]["area"]["occlusion"]
    assert area["value"] == pytest.approx((0.35 + 0.4) / 2)
    assert area["minus_random"]["value"] == pytest.approx(-0.15)
    assert found["deletion"]["curves"]["occlusion"]["mean"] == pytest.approx([0.9, 0.25, 0.1])
    scores = dict.fromkeys(EVIDENCE, 0.5)
    chance = dict.fromkeys(scores, 0.25)
    evidence = summarise_evidence([{"occlusion": scores, "random": chance}] * 3)
    assert evidence["average_precision"]["occlusion"]["minus_random"]["value"] == 0.25
    results = {
        "num_documents": 2, "fractions": [0.0, 0.5, 1.0], "curves": found, "measured": "probability",
        "evidence": {"num_documents": 3, "scores": evidence},
    }  # fmt: skip
    draw_faithfulness(tmp_path / "a.png", results, title="run")
    nothing = {"num_documents": 0, "fractions": [0.0, 1.0], "curves": summarise_curves([], []), "measured": "",
               "evidence": {"num_documents": 0, "scores": {}}}  # fmt: skip
    draw_faithfulness(tmp_path / "b.png", nothing, title="run")
    for name in "ab":
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.size == (1800, 660)
