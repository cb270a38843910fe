"""Two models on the same questions: what each got right, the difference with its interval, questions won and lost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.text.jsonl import read_rows
from lightning_apps.errors import ConfigError
from lightning_apps.statistics.bootstrap import bootstrap_interval
from lightning_apps.statistics.proportions import mcnemar_p_value, wilson_interval


@dataclass(frozen=True)
class Comparison:
    """One score of two models on n questions.

    Attributes:
        score: name of the column in predictions.jsonl.
        num_questions: n.
        first, first_low, first_high: mean score of the first model and its 95 % interval.
        second, second_low, second_high: mean score of the second model and its 95 % interval.
        difference, difference_low, difference_high: mean of second - first over the questions, and its paired 95 %
            bootstrap interval.
        won: questions that only the second got right; where scores are no verdicts, with a higher score of the second.
        lost: questions that only the first got right; where scores are no verdicts, with a lower score of the second.
        p_value: exact McNemar test that both are right equally often; None where scores are no verdicts.
    """

    score: str
    num_questions: int
    first: float
    first_low: float
    first_high: float
    second: float
    second_low: float
    second_high: float
    difference: float
    difference_low: float
    difference_high: float
    won: int
    lost: int
    p_value: float | None


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Rows of a predictions.jsonl.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    if not path.is_file():
        raise ConfigError(
            f"compare= needs the answers to each question, and this experiment's evaluation writes none ({path})"
        )
    try:
        return read_rows(path)
    except ValueError as error:
        raise ConfigError(f"compare=: {error}") from error


def compare_predictions(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> list[Comparison]:
    """Compare every verdict (`right_...`) that both have, or else their `score`.

    Raises:
        ConfigError: they answer different questions, or no question has a score in both.
    """
    if [row["input"] for row in first] != [row["input"] for row in second]:
        raise ConfigError("compare=: the two evaluations asked different questions")
    names = [name for name in first[0] if name.startswith("right_") and name in second[0]] or ["score"]
    return [_compare(name, first, second) for name in names]


def _compare(name: str, first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> Comparison:
    pairs = [
        (a[name], b[name]) for a, b in zip(first, second, strict=True) if a[name] is not None and b[name] is not None
    ]
    if not pairs:
        raise ConfigError(f"compare=: no question has a {name} in both evaluations")
    verdicts = all(isinstance(value, bool) for pair in pairs for value in pair)
    one, other = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    difference = other - one
    won, lost = int((difference > 0).sum()), int((difference < 0).sum())
    intervals = [
        wilson_interval(int(values.sum()), len(values)) if verdicts else bootstrap_interval(values, np.mean)
        for values in (one, other)
    ]
    return Comparison(
        name, len(pairs), float(one.mean()), *intervals[0], float(other.mean()), *intervals[1],
        float(difference.mean()), *bootstrap_interval(difference, np.mean), won, lost,
        mcnemar_p_value(lost, won) if verdicts else None,
    )  # fmt: skip


def comparison_lines(comparison: Comparison, names: tuple[str, str]) -> list[str]:
    """What is said of a comparison; loud where the second model is worse and higher scores are better.

    Args:
        comparison: the score's means, intervals and counts.
        names: how the first and the second model are called.
    """
    c = comparison
    if c.p_value is None:
        return [
            f"{c.score}: {names[0]} {c.first:.4g} ({c.first_low:.4g} to {c.first_high:.4g}), "
            f"{names[1]} {c.second:.4g} ({c.second_low:.4g} to {c.second_high:.4g}), "
            f"difference {c.difference:+.4g} (paired 95 % {c.difference_low:+.4g} to {c.difference_high:+.4g}), "
            f"{c.won:,} questions higher, {c.lost:,} lower"
        ]
    width = max(map(len, names))
    lines = [f"{c.score.removeprefix('right_')}, {c.num_questions:,} questions"]
    for name, share, low, high in (
        (names[0], c.first, c.first_low, c.first_high),
        (names[1], c.second, c.second_low, c.second_high),
    ):
        lines.append(f"  {name:{width}}  {share:6.1%}  (95 % {low:.1%} to {high:.1%})")
    lines.append(
        f"  difference {100 * c.difference:+.1f} points (paired 95 % {100 * c.difference_low:+.1f} to "
        f"{100 * c.difference_high:+.1f}), McNemar p = {c.p_value:.2g}; {c.won:,} questions won, {c.lost:,} lost"
    )
    if c.difference < 0:
        sure = "beyond chance" if c.p_value < 0.05 else "though not beyond chance"
        lines.append(
            f"  WARNING: {names[1]} is WORSE than {names[0]} by {-100 * c.difference:.1f} points, {sure}: "
            "training has cost what the model could do before"
        )
    return lines
