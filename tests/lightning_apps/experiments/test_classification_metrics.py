import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from lightning_apps.experiments.baselines import linear_probabilities, majority_probabilities
from lightning_apps.experiments.classification_metrics import (
    classification_metrics,
    confusion_matrix,
    metric_names,
    probabilities_of,
    reliability,
    sample_outcomes,
)
from lightning_apps.experiments.classification_picture import wilson_reach
from lightning_apps.statistics.bootstrap import bootstrap_interval, bootstrap_totals

pytestmark = pytest.mark.numeric

NAMES = ["a", "b", "c"]
PROBABILITIES = torch.tensor(
    [
        [0.7, 0.2, 0.1],  # a, right
        [0.6, 0.3, 0.1],  # a, right
        [0.5, 0.4, 0.1],  # a, but b
        [0.2, 0.7, 0.1],  # b, right
        [0.1, 0.3, 0.6],  # c, but b
        [0.1, 0.1, 0.8],  # c, right
    ],
    dtype=torch.float64,
)
TARGETS = torch.tensor([0, 0, 1, 1, 1, 2])


def test_a_table_worked_by_hand():
    found = classification_metrics(PROBABILITIES, TARGETS, NAMES)
    # predicted: a 3 (2 right), b 1 (1 right), c 2 (1 right); true: a 2, b 3, c 1
    expected = {
        "accuracy": 4 / 6,
        "precision/a": 2 / 3, "precision/b": 1.0, "precision/c": 1 / 2, "precision_macro": (2 / 3 + 1 + 1 / 2) / 3,
        "recall/a": 1.0, "recall/b": 1 / 3, "recall/c": 1.0, "recall_macro": (1 + 1 / 3 + 1) / 3,
        "f1/a": 4 / 5, "f1/b": 1 / 2, "f1/c": 2 / 3, "f1_macro": (4 / 5 + 1 / 2 + 2 / 3) / 3,
        "f1_weighted": (2 * 4 / 5 + 3 * 1 / 2 + 1 * 2 / 3) / 6,
        # pairs ranked right, ties half. a: 8 of 8. b: (0.2 0.3 0.1) against (0.4 0.7 0.3): 8 + 1/2 of 9. c: 5 of 5
        "auroc": (1 + 8.5 / 9 + 1) / 3,
        # confidences 0.7 0.6 0.5 0.7 0.6 0.8 in bins of 1/15: (0.7, 0.7: both right), (0.6, 0.6: one right of two;
        # 0.6 = 9/15 lies in the bin that it begins), (0.5: wrong), (0.8: right)
        "calibration_error": (2 * 0.3 + 2 * 0.1 + 0.5 + 0.2) / 6,
    }  # fmt: skip
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-6)
    assert set(found) == {*expected, "accuracy_low", "accuracy_high", "f1_macro_low", "f1_macro_high"}


def test_several_labels_worked_by_hand():
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.6], [0.2, 0.7], [0.4, 0.3]], dtype=torch.float64)
    targets = torch.tensor([[1, 0], [1, 0], [0, 1], [1, 1]])
    found = classification_metrics(probabilities, targets, ["x", "y"], multi_label=True)
    expected = {
        "accuracy": 2 / 4, "accuracy_per_label": 5 / 8, "precision/x": 1.0, "recall/x": 2 / 3, "f1/x": 4 / 5,
        "precision/y": 1 / 2, "recall/y": 1 / 2, "f1/y": 1 / 2, "f1_macro": 0.65,
        "f1_weighted": (3 * 0.8 + 2 * 0.5) / 5, "auroc": (1 + 3 / 4) / 2,
    }  # fmt: skip
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-6)


def test_against_scikit_learn():
    torch.manual_seed(0)
    logits, targets = torch.randn(200, 4) * 2, torch.randint(0, 4, (200,))
    probabilities = probabilities_of(logits, multi_label=False)
    found = classification_metrics(probabilities, targets, list("wxyz"))
    predicted = probabilities.argmax(1)
    assert found["f1_macro"] == pytest.approx(f1_score(targets, predicted, average="macro"), abs=1e-6)
    assert found["auroc"] == pytest.approx(roc_auc_score(targets, probabilities, multi_class="ovr"), abs=1e-6)


def test_a_class_that_is_not_there_is_left_out_of_averages():
    found = classification_metrics(PROBABILITIES[:2], TARGETS[:2], NAMES)
    assert found["accuracy"] == found["f1_macro"] == found["f1_macro_low"] == 1.0
    assert np.isnan(found["auroc"])  # nothing to rank a against
    two = classification_metrics(PROBABILITIES[:4], TARGETS[:4], NAMES)
    assert two["f1_macro"] == pytest.approx((4 / 5 + 2 / 3) / 2)  # as torchmetrics, not a third of it
    assert two["auroc"] == pytest.approx(1.0)


def test_intervals_are_those_of_resampling():
    rng = np.random.default_rng(0)
    right = (rng.random(300) < 0.8).astype(np.float64)
    slow = bootstrap_interval(right, np.mean, num_resamples=4000)
    fast = bootstrap_totals(right[:, None], lambda totals, n: totals[:, 0] / n, num_resamples=4000)
    assert fast == pytest.approx(slow, abs=0.006)
    assert bootstrap_totals(np.ones((9, 1)), lambda totals, n: totals[:, 0] / n) == (1.0, 1.0)


def test_what_a_sample_adds():
    outcomes = sample_outcomes(PROBABILITIES[[0, 2]], TARGETS[[0, 2]])
    assert outcomes.tolist() == [[1, 1, 0, 0, 1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0, 1, 0]]


def test_confusions_and_reliability():
    matrix = confusion_matrix(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2]), 3)
    assert matrix.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    confidence, right = np.array([0.55, 0.65, 0.62, 1.0]), np.array([True, False, True, True])
    mean, share, counts = reliability(confidence, right, 10)
    assert counts.tolist() == [0, 0, 0, 0, 0, 1, 2, 0, 0, 1]
    assert mean[[5, 6, 9]].tolist() == pytest.approx([0.55, 0.635, 1.0])
    assert share[[5, 6, 9]].tolist() == [1.0, 0.5, 1.0]
    assert np.isnan(mean[0])


def test_wilson_reach():
    below, above = wilson_reach(np.array([0.5, 1.0]), np.array([10, 10]))
    assert (0.5 - below[0], 0.5 + above[0]) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert (1.0 - below[1], above[1]) == pytest.approx((0.7225, 0.0), abs=1e-4)


def test_names_fit_into_metric_names():
    assert metric_names(["cs.CV", "Very Good!"]) == ["cs_cv", "very_good_"]
    assert metric_names(["a b", "a-b", "c"]) == ["a_b_0", "a_b_1", "c"]
    assert metric_names(["a b", "a-b", "a_b_0"]) == ["a_b_0_", "a_b_1", "a_b_0"]


@pytest.mark.parametrize(
    "names", [["macro", "weighted", "c"], ["macro_low", "macro_high", "macro"], ["accuracy", "auroc", "kappa"]]
)
def test_a_class_overwrites_no_average(names):
    found = classification_metrics(PROBABILITIES, TARGETS, names, ordered=True)
    usual = classification_metrics(PROBABILITIES, TARGETS, NAMES, ordered=True)
    averages = {key: value for key, value in usual.items() if "/" not in key}
    assert {key: value for key, value in found.items() if "/" not in key} == averages
    assert found["f1_macro"] == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    assert [found[f"f1/{name}"] for name in names] == pytest.approx([4 / 5, 1 / 2, 2 / 3])


def test_baselines():
    assert majority_probabilities(np.array([0, 1, 1, 1]), 2, 2).tolist() == [[0.25, 0.75]] * 2
    assert majority_probabilities(np.array([[1, 0], [1, 1]]), 1, 2).tolist() == [[1.0, 0.5]]
    texts, labels = ["good film", "fine good film", "bad film", "poor bad film"], np.array([2, 2, 0, 0])
    found = linear_probabilities(texts, labels, ["good", "bad"], 3)
    assert found.argmax(1).tolist() == [2, 0]
    assert found[:, 1].tolist() == [0, 0]  # a class without training samples
    assert found.sum(1) == pytest.approx(1)
    many = linear_probabilities(texts, np.array([[1, 1], [1, 1], [0, 1], [0, 1]]), ["good"], 2)
    assert many[0, 0] > 0.5
    assert many[0, 1] == 1  # every training sample bears it
    for only in range(3):  # a class alone is certain, whatever its number
        alone = linear_probabilities(["good film"], np.array([only]), ["good", "bad"], 3)
        assert alone.tolist() == [[float(number == only) for number in range(3)]] * 2


def test_the_linear_baseline_knows_rare_classes():
    draw = np.random.default_rng(0)
    common, telling = [f"w{number}" for number in range(60)], [f"t{number}" for number in range(6)]
    labels = (np.arange(300) % 10 == 0).astype(np.int64)  # one text in ten
    texts = [
        " ".join([*draw.choice(common, 20), *draw.choice(telling, 5 if label else draw.integers(3))])
        for label in labels
    ]
    found = linear_probabilities(texts[:200], labels[:200], texts[200:], 2).argmax(1)
    assert found[labels[200:] == 1].mean() >= 0.8  # where frequent classes weigh more it is 0
    assert found[labels[200:] == 0].mean() < 0.1
    alone = linear_probabilities(["good film", "fine film", "bad film"], np.array([1, 1, 0]), ["bad"], 2)
    assert alone.argmax(1).tolist() == [0]  # a class of one sample leaves nothing to validate with


def test_weighted_score_by_hand():
    found = classification_metrics(PROBABILITIES, TARGETS, NAMES, score_weights=[0.3, 0.3, 0.4])
    assert found["weighted_score"] == pytest.approx(0.3 * 4 / 5 + 0.3 * 1 / 2 + 0.4 * 2 / 3)
    assert found["weighted_score_low"] < found["weighted_score"] < found["weighted_score_high"]
    doubled = classification_metrics(PROBABILITIES, TARGETS, NAMES, score_weights=[0.6, 0.6, 0.8])
    assert doubled["weighted_score"] == pytest.approx(found["weighted_score"])
    # a class that is neither there nor predicted does not count
    some = PROBABILITIES[:2], TARGETS[:2], NAMES
    assert classification_metrics(*some, score_weights=[0.3, 0.0, 0.4])["weighted_score"] == 1
    assert classification_metrics(*some, score_weights=[0.0, 0.0, 0.4])["weighted_score"] == 0


def test_quadratic_kappa_against_scikit_learn():
    from sklearn.metrics import cohen_kappa_score

    draw = np.random.default_rng(0)
    targets = torch.from_numpy(draw.integers(0, 4, size=80))
    probabilities = torch.softmax(torch.from_numpy(draw.normal(size=(80, 4))), -1)
    probabilities[torch.arange(80), targets] += 0.4
    found = classification_metrics(probabilities, targets, ["a", "b", "c", "d"], ordered=True)
    expected = cohen_kappa_score(targets, probabilities.argmax(-1), weights="quadratic")
    assert found["kappa"] == pytest.approx(expected, abs=1e-6)
    # the statistic that is resampled is the same one
    from lightning_apps.experiments.classification_metrics import _quadratic_kappa

    confusion = confusion_matrix(probabilities.argmax(-1).numpy(), targets.numpy(), 4)
    assert _quadratic_kappa(confusion.reshape(1, -1).astype(float), 80)[0] == pytest.approx(expected)
    assert found["kappa_low"] < expected < found["kappa_high"]
    assert "kappa" not in classification_metrics(probabilities, targets, ["a", "b", "c", "d"])
    alike = classification_metrics(PROBABILITIES[:2], TARGETS[:2], NAMES, ordered=True)
    assert np.isnan(alike["kappa"])
    assert np.isnan(alike["kappa_low"])
