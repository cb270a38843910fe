import csv
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_apps.experiments.arxiv.in_context_loss import WindowLosses, measure, save_in_context
from lightning_apps.experiments.arxiv.in_context_picture import draw_in_context
from lightning_apps.experiments.arxiv.token_coverage import union
from lightning_apps.statistics.bootstrap import cluster_bootstrap_interval

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def windows():
    """Three categories, one held out; two windows a document; loss falls with the position."""
    source = np.random.default_rng(0)
    category = np.repeat([0, 1, 2], [40, 20, 20])
    document = np.arange(80) // 2
    level = np.array([3.0, 4.0, 5.0])[category]
    losses = level[:, None] - 0.01 * np.arange(20) + source.normal(0, 0.1, (80, 20))
    return WindowLosses(losses.astype(np.float32), category, document, np.full(80, 40.0), ["bio", "math", "phys"], 2)


def test_means_by_hand():
    losses = np.array([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]], dtype=np.float32)
    tiny = WindowLosses(losses, np.array([0, 0, 1]), np.array([5, 6, 7]), np.array([4.0, 6.0, 2.0]), ["a", "b"], 1)
    measured = measure(tiny, num_resamples=50)
    chosen = measured["chosen"]
    assert chosen.mean.tolist() == [2.0, 3.0]
    assert chosen.loss[0] == 2.5
    assert chosen.perplexity[0] == pytest.approx(math.exp(2.5))
    assert chosen.bits_per_byte == pytest.approx((1 + 2 + 3 + 4) / math.log(2) / 10)
    assert chosen.gain[0] == -1.0
    assert (chosen.num_windows, chosen.num_documents) == (2, 2)
    assert measured["held_out"].loss[0] == measured["b"].loss[0] == 15.0
    assert np.isnan(measured["b"].loss[1])  # one document has no spread
    assert list(measured) == ["chosen", "held_out", "a", "b"]


def test_the_perplexity_of_a_run_that_diverged_is_infinite():
    losses = np.full((4, 2), 1000.0, dtype=np.float32)
    tiny = WindowLosses(losses, np.zeros(4, np.int64), np.array([0, 0, 1, 1]), np.ones(4), ["a"], 1)
    assert measure(tiny, num_resamples=20)["a"].perplexity == (math.inf,) * 3
    one = WindowLosses(losses[:1], np.array([0]), np.array([0]), np.ones(1), ["a"], 1)
    value, *interval = measure(one, num_resamples=20)["a"].perplexity
    assert value == math.inf
    assert np.isnan(interval).all()  # as that of the loss


def test_no_held_out_group_without_held_out_categories():
    tiny = WindowLosses(np.ones((2, 2), np.float32), np.array([0, 0]), np.array([0, 1]), np.ones(2), ["a"], 1)
    assert tiny.groups == ["chosen", "a"]


def test_the_interval_covers_at_its_level_when_documents_repeat_themselves():
    """Both windows of a document are equal: resampling windows would be too sure by a factor of sqrt(2)."""
    source = np.random.default_rng(1)
    covered, width = 0, []
    for trial in range(300):
        documents = source.normal(0, 1, 60)
        sums, counts = 2 * documents, np.full(60, 2.0)
        low, high = cluster_bootstrap_interval(sums[:, None], counts, num_resamples=300, seed=trial)
        covered += low[0] <= 0 <= high[0]
        width.append(high[0] - low[0])
    assert 0.90 <= covered / 300 <= 0.98
    assert np.mean(width) == pytest.approx(2 * 1.96 / np.sqrt(60), rel=0.06)


def test_the_interval_weighs_documents_by_their_windows():
    low, high = cluster_bootstrap_interval(np.array([[10.0], [0.0]]), np.array([10.0, 1.0]), num_resamples=400)
    assert (low[0], high[0]) == (0.0, 1.0)
    low, high = cluster_bootstrap_interval(np.array([[3.0]]), np.array([1.0]))
    assert np.isnan([low[0], high[0]]).all()


def test_files_hold_what_was_measured(windows, tmp_path):
    measured = measure(windows, num_resamples=100)
    save_in_context(tmp_path, "test", windows, measured)
    with np.load(tmp_path / "test.npz", allow_pickle=False) as arrays:
        assert arrays["position"].tolist() == list(range(1, 21))
        assert arrays["categories"].tolist() == ["bio", "math", "phys"]
        assert arrays["category_chosen"].tolist() == [True, True, False]
        assert arrays["chosen_mean"].tolist() == measured["chosen"].mean.tolist()
        assert arrays["held_out_high"].tolist() == measured["held_out"].high.tolist()
        assert arrays["category_low"][2].tolist() == measured["phys"].low.tolist()
        assert (arrays["chosen_low"] < arrays["chosen_mean"]).all()
    with (tmp_path / "test_categories.csv").open() as file:
        rows = {row["group"]: row for row in csv.DictReader(file)}
    assert rows["math"]["chosen"] == "true"
    assert rows["phys"]["chosen"] == rows["held_out"]["chosen"] == "false"
    assert float(rows["bio"]["perplexity"]) == pytest.approx(measured["bio"].perplexity[0], rel=1e-5)
    assert rows["bio"]["windows"] == "40"
    assert rows["bio"]["documents"] == "20"
    with (tmp_path / "test.csv").open() as file:
        curve = list(csv.DictReader(file))
    assert len(curve) == 5 * 20
    assert float(curve[3]["loss"]) == pytest.approx(measured["chosen"].mean[3], rel=1e-5)


def test_the_picture_is_drawn(windows, tmp_path):
    draw_in_context(
        tmp_path / "test.png", windows=windows, measured=measure(windows, num_resamples=50), title="t $x$ <"
    )
    assert (tmp_path / "test.png").read_bytes()[:4] == b"\x89PNG"


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=25))
def test_a_union_of_intervals_covers_the_same_numbers_once(drawn):
    intervals = np.array([(start, start + size) for start, size in drawn], dtype=np.int64).reshape(-1, 2)
    expected = {number for start, stop in intervals.tolist() for number in range(start, stop)}
    merged = union(intervals)
    numbers = [number for start, stop in merged.tolist() for number in range(start, stop)]
    assert sorted(expected) == numbers
    assert (merged[1:, 0] > merged[:-1, 1]).all()
