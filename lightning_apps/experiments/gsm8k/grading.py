"""Grading of worked answers: as lm-evaluation-harness grades GSM8K, and by the value of the number.

Source of the first two: EleutherAI/lm-evaluation-harness, task gsm8k, version 3 of its configuration.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from lightning_apps.statistics.proportions import wilson_interval

STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
IGNORED_BY_HARNESS = (",", r"\$", r"(?s).*#### ", r"\.$")
INVALID = "[invalid]"
"""What the harness takes for the answer where there is none."""
NUMBER = re.compile(r"(-\s?)?(?:\$\s?(-)?)?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)", re.ASCII)
"""Minus sign, minus sign behind a dollar sign, digits."""


def strict_answer(output: str) -> str:
    """The harness's strict-match: the first number behind `#### `."""
    found = STRICT.search(output)
    return found[1].strip() if found else INVALID


def flexible_answer(output: str) -> str:
    """The harness's flexible-extract: the last thing that looks like a number."""
    found = FLEXIBLE.findall(output)
    if not found:
        return INVALID
    return next((group for group in found[-1] if group), INVALID).strip()


def harness_form(text: str) -> str:
    """What the harness compares: without commas, dollar signs, all before `#### `, and a final period; lower case."""
    for pattern in IGNORED_BY_HARNESS:
        text = re.sub(pattern, "", text)
    return text.lower()


def numeric_answer(output: str) -> Decimal | None:
    """The number behind the first `####`, else the last number of all; None without any."""
    text = output.replace("\N{MINUS SIGN}", "-")
    final = next(_numbers(text.partition("####")[2]), None)
    return final if final is not None else next(iter(list(_numbers(text))[-1:]), None)


def _numbers(text: str) -> Iterator[Decimal]:
    for found in NUMBER.finditer(text):
        before = text[: found.start()]
        # between two terms it is no sign: "10 - 5" and "x-5" hold a 5, "is -5" holds -5
        is_operator = before[-1:].isalnum() or before.rstrip()[-1:] in tuple("0123456789)%")
        is_negative = (found[1] and not is_operator) or found[2]
        yield Decimal(("-" if is_negative else "") + found[3].replace(",", ""))


@dataclass(frozen=True)
class Grade:
    """How one output compares with the reference answer.

    Attributes:
        strict: what lmeval_strict extracted.
        flexible: what lmeval_flexible extracted.
        numeric: the number that was compared by value, as text; None where the output has none.
        is_strict: whether lmeval_strict calls the output right.
        is_flexible: whether lmeval_flexible calls the output right.
        is_numeric: whether the number equals the reference's by value.
    """

    strict: str
    flexible: str
    numeric: str | None
    is_strict: bool
    is_flexible: bool
    is_numeric: bool


def grade(output: str, reference: str) -> Grade:
    """Compare an output with the whole reference answer, whose last line is `#### <number>`."""
    strict, flexible, value = strict_answer(output), flexible_answer(output), numeric_answer(output)
    expected, gold = harness_form(reference), numeric_answer(reference)
    return Grade(
        strict=strict,
        flexible=flexible,
        numeric=None if value is None else f"{value.normalize():f}",
        is_strict=harness_form(strict) == expected,
        is_flexible=harness_form(flexible) == expected,
        is_numeric=value is not None and value == gold,
    )


def majority_answer(outputs: Sequence[str]) -> Decimal | None:
    """The number that most outputs end with (self-consistency, Wang et al. 2023); the first of those that tie."""
    values = [value for value in map(numeric_answer, outputs) if value is not None]
    return Counter(values).most_common(1)[0][0] if values else None


def accuracy_metrics(verdicts: dict[str, Sequence[bool]]) -> dict[str, float]:
    """`accuracy_<name>` with `_low` and `_high`, its Wilson interval, for each list of verdicts."""
    metrics: dict[str, float] = {}
    for name, values in verdicts.items():
        right, asked = sum(values), len(values)
        low, high = wilson_interval(right, asked)
        metrics[f"accuracy_{name}"] = right / asked if asked else 0.0
        metrics |= {f"accuracy_{name}_low": low, f"accuracy_{name}_high": high}
    return metrics
