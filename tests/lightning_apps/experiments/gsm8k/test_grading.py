"""Scores equal those of lm-evaluation-harness itself, on outputs that tell implementations apart."""

import math
from decimal import Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_apps.experiments.gsm8k.grading import (
    accuracy_metrics,
    flexible_answer,
    grade,
    harness_form,
    majority_answer,
    numeric_answer,
    strict_answer,
)
from lightning_apps.experiments.repeated_answers import is_repeating
from lightning_apps.statistics.paired_comparison import compare_predictions
from lightning_apps.statistics.proportions import mcnemar_p_value, wilson_interval

OUTPUTS = [
    "She has 2 + 3 = 5.\n#### 5", "#### 5", "####5", "#### 5.", "#### 5.0", "#### 5.00", "#### $5", "#### -5",
    "#### - 5", "#### 1,200", "#### 1200", "#### 1,200.", "#### 1200.00", "The answer is 1,200 dollars.", "$1,200",
    "It costs $29.00.", "#### 29", "29.00", "####  5", "#### five", "five", "", "   ", "\n\n", "#### 5\n#### 6",
    "#### 6\n#### 5", "so 5 #### 6", "5 apples and 7 pears", "10-5", "10 - 5 = 5", "-5", "--5", "..", ".", "$", ",,",
    "$,.", "5%", "#### 5%", "1/2", "#### 1/2", "3.14159", ".5", "#### .5", "5 .", "5,", "5..", "#### 5..",
    "#### 1.200,00", "#### ,5", "a#### 5b", "#### 5 #### 5", "x = 5x", "٣", "#### ٣", "５", "#### 5 apples",
    "The answer is: 5!", "#### -$5", "-$5", "$-5", "#### 05", "007", "#### +5", "5e3", "#### 1,2,3", "12,34",
    "#### <<2+3=5>>5", "\N{MINUS SIGN}5", "#### \N{MINUS SIGN}5", "Answer: **5**", "\\boxed{5}", "#### \\$5",
    "#### 5\\", "#### [invalid]", "[invalid]", "####\n5", "#### \n5", "Step 1: 4\nStep 2: 5", "#### 5.5",
    "#### 5\r\n", "A #### B #### 5", "#### 1 200", "0", "#### 0", "-0", "#### 0.0", "5\x00", "#### 5\x00",
]  # fmt: skip
REFERENCES = ["2+3=5\n#### 5", "x\n#### 1,200", "x\n#### 29", "#### -5", "#### 0", "7 #### 7\n#### 5.5", "x\n#### 200"]


def harness_scores(output, reference):
    """lm-evaluation-harness's own filters and metric, with the settings of its task gsm8k."""
    extraction = pytest.importorskip("lm_eval.filters.extraction")
    metrics = pytest.importorskip("lm_eval.api.metrics")
    filters = [
        extraction.RegexFilter(regex_pattern=r"#### (\-?[0-9\.\,]+)"),
        extraction.RegexFilter(regex_pattern=r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1),
    ]
    found = [next(iter(entry.apply([[output]], [{}])))[0] for entry in filters]
    scores = [
        metrics.exact_match_hf_evaluate(
            predictions=[text],
            references=[reference],
            regexes_to_ignore=[",", r"\$", "(?s).*#### ", r"\.$"],
            ignore_case=True,
            ignore_punctuation=False,
        )["exact_match"]
        for text in found
    ]
    return found, [bool(score) for score in scores]


def test_the_settings_are_those_of_the_harness_task():
    import yaml

    lm_eval = pytest.importorskip("lm_eval")
    from pathlib import Path

    task = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml").read_text())
    assert task["metric_list"][0]["regexes_to_ignore"] == [",", "\\$", "(?s).*#### ", "\\.$"]
    patterns = [entry["filter"][0] for entry in task["filter_list"]]
    assert patterns[0]["regex_pattern"] == "#### (\\-?[0-9\\.\\,]+)"
    assert (patterns[1]["regex_pattern"], patterns[1]["group_select"]) == ("(-?[$0-9.,]{2,})|(-?[0-9]+)", -1)


@pytest.mark.parametrize("reference", REFERENCES)
def test_awkward_outputs_are_graded_as_the_harness_grades_them(reference):
    rights = 0
    for output in OUTPUTS:
        found, scores = harness_scores(output, reference)
        assert [strict_answer(output), flexible_answer(output)] == found, repr(output)
        graded = grade(output, reference)
        assert [graded.is_strict, graded.is_flexible] == scores, repr(output)
        rights += sum(scores)
    assert rights > 0


@given(st.text(st.sampled_from("#  $.,-019ab\n"), max_size=20))
def test_any_output_is_graded_as_the_harness_grades_it(output):
    found, scores = harness_scores(output, "x\n#### 10")
    graded = grade(output, "x\n#### 10")
    assert [graded.strict, graded.flexible] == found
    assert [graded.is_strict, graded.is_flexible] == scores


@pytest.mark.parametrize(
    ("output", "value"),
    [
        ("#### 29", "29"), ("It costs $29.00", "29"), ("#### $29.00", "29"), ("29.", "29"), ("#### 1,200", "1200"),
        ("1,200.50 in all", "1200.5"), ("#### -5", "-5"), ("#### - 5", "-5"), ("#### -$5", "-5"), ("$-5", "-5"),
        ("\N{MINUS SIGN}5", "-5"), ("it is -5", "-5"), ("x-5", "5"), ("10-5", "5"), ("10 - 5", "5"),
        ("x=-5", "-5"), ("#### .5", "0.5"), ("5%", "5"), ("50% - 5", "5"),
        ("#### 5 apples for 2", "5"), ("so 5 #### 6", "6"), ("#### 6\n#### 5", "6"), ("#### five, that is 5", "5"),
        ("12 #### none", "12"), ("Answer: **5**", "5"), ("\\boxed{5}", "5"), ("1, 2, 3", "3"), ("12,34", "34"),
        ("0.0", "0"), ("page 3", "3"), ("", None), ("none", None), ("$", None), ("####", None),
        ("#### 8{,}000", "8000"), ("$8{,}000$", "8000"), ("#### 8\\,000", "8000"), ("#### 1\u202f200", "1200"),
        ("#### 1/4", "0.25"), ("1/2", "0.5"), ("#### -3/4 of it", "-0.75"), ("#### 1 1/2", "1.5"), ("#### 1/0", None),
        ("#### \\frac{1}{4}", "0.25"), ("#### -\\frac{1}{4}", "-0.25"), ("#### 1\\frac{1}{2}", "1.5"), ("1½", "1.5"),
        ("#### 5e3", "5000"), ("#### 5e-1", "0.5"), ("#### 5e9999", None),
        ("#### 12:45", None), ("at 12:45", None), ("ratio 3:4", None), ("#### 5/6/2020", None), ("1.2.3", None),
        ("#### 2^3", None), ("#### 3*10^2", None), ("5 × 10^3", None), ("#### 2²", None), ("#### 2+3", None),
        ("#### 5-6", None), ("#### 5 to 6", None), ("#### 5 or 6", None), ("#### 1, 2", None), ("#### 12,34", None),
        ("#### 1 200", None), ("#### 1.200,00", None), ("#### 1,2000", None), ("#### 2 million", None),
        ("#### 5 (not 6)", "5"), ("#### 5.\n6 more", "5"), ("#### 60/hour", "60"), ("2 * 3 = 6", "6"),
    ],
)  # fmt: skip
def test_numbers_are_compared_by_value(output, value):
    assert numeric_answer(output) == (None if value is None else Decimal(value))


@pytest.mark.parametrize("pair", [("1/4", "1/2"), ("12:45", "12:30"), ("8{,}000", "8"), ("1/3", "0.33"), ("5e3", "5")])
def test_answers_that_begin_alike_are_not_alike(pair):
    output, reference = (f"so\n#### {answer}" for answer in pair)
    assert not grade(output, reference).is_numeric
    assert not grade(reference, output).is_numeric


def test_fractions_and_decimals_are_compared_by_value():
    assert grade("#### 0.25", "#### 1/4").is_numeric
    assert grade("#### 2/6", "#### 1/3").numeric == "1/3"
    assert grade("#### 2/6", "#### 1/3").is_numeric
    assert [grade(text, "#### 1").numeric for text in ("-1,000.50", "3/8", "0.0", "100")] == [
        "-1000.5", "0.375", "0", "100",
    ]  # fmt: skip


def test_twenty_nine_dollars_is_twenty_nine():
    graded = grade("She pays $29.00", "x\n#### 29")
    assert (graded.is_numeric, graded.is_strict, graded.is_flexible) == (True, False, False)
    assert graded.numeric == "29"
    assert grade("", "x\n#### 0") == type(graded)("[invalid]", "[invalid]", None, False, False, False)
    assert grade("1000000", "#### 1,000,000").numeric == "1000000"  # not 1E+6


def test_the_harness_form():
    assert harness_form("Some\nSteps #### $1,200.") == "1200"


def test_the_majority_counts_and_silence_does_not():
    assert majority_answer(["#### 5", "5.0", "#### 6", "none", "none"]) == 5
    assert majority_answer(["#### 6", "#### 5"]) == 6
    assert majority_answer(["none", ""]) is None


@pytest.mark.parametrize(("right", "asked"), [(0, 10), (10, 10), (3, 10), (81, 263), (1, 1), (200, 1319)])
def test_wilson_intervals(right, asked):
    """The ends are the shares that lie 1.96 of their own standard errors from what was seen."""
    share = right / asked
    low, high = wilson_interval(right, asked)
    for end in (low, high):
        assert (share - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / asked, abs=1e-12)
    assert 0 <= low <= share <= high <= 1
    assert (low == 0, high == 1) == (right == 0, right == asked)


@pytest.mark.parametrize(("one", "other"), [(0, 0), (5, 0), (3, 9), (20, 20), (100, 70)])
def test_mcnemar(one, other):
    ways = sum(math.comb(one + other, count) for count in range(min(one, other) + 1))
    assert mcnemar_p_value(one, other) == pytest.approx(min(1.0, 2 * ways / 2 ** (one + other)), rel=1e-9)
    assert mcnemar_p_value(one, other) == mcnemar_p_value(other, one)


def test_differences_are_paired():
    """Questions differ by up to 49, the models by 0.5 or 1: the interval knows only of the latter."""
    easy = [{"input": number, "score": float(number)} for number in range(50)]
    hard = [{**row, "score": row["score"] + 0.5 + 0.5 * (row["input"] < 30)} for row in easy]
    (found,) = compare_predictions(easy, hard)
    assert (found.difference, found.won, found.lost) == (0.8, 50, 0)
    assert 0.7 < found.difference_low < 0.8 < found.difference_high < 0.9
    (same,) = compare_predictions(hard, hard)
    assert (same.difference, same.difference_low, same.difference_high) == (0.0, 0.0, 0.0)


def test_accuracies_bring_their_intervals():
    metrics = accuracy_metrics({"numeric": [True, False, True, True]})
    assert metrics["accuracy_numeric"] == 0.75
    assert (metrics["accuracy_numeric_low"], metrics["accuracy_numeric_high"]) == wilson_interval(3, 4)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([7] * 4, True), ([7] * 3, False), ([], False), (list(range(40)), False),
        ([*range(30), *([1, 2, 3] * 10)], True), ([*range(90), *([1, 2, 3] * 5)], False),
        ([*range(90), *([1, 2, 3] * 7)], False),  # seven copies, but less than a quarter of the answer
        ([*range(10), *([4, 5, 6, 7] * 4)], True), ([1, 2, 3, 4, 5] * 3, False),
    ],
)  # fmt: skip
def test_endless_repetition_is_seen(tokens, expected):
    assert is_repeating(torch.tensor(tokens, dtype=torch.int64)) is expected
