"""Grading of worked answers: as lm-evaluation-harness grades GSM8K, and by the value of the number.

Source of the first two: EleutherAI/lm-evaluation-harness, task gsm8k, version 3 of its configuration.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from unicodedata import normalize

from datamodules.chat.files import Chat
from lightning_apps.statistics.proportions import wilson_interval

STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
IGNORED_BY_HARNESS = (",", r"\$", r"(?s).*#### ", r"\.$")
INVALID = "[invalid]"
"""What the harness takes for the answer where there is none."""
NUMBER = re.compile(
    r"(-\s?)?(?:\$\s?(-)?)?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:[eE]([+-]?\d{1,3})(?!\w)|(?: (\d+))? ?/ ?(\d+))?",
    re.ASCII,
)
"""Minus sign, minus sign behind a dollar sign, digits; power of ten, or a mixed number's numerator and denominator."""
THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|\\[,!;: ]|[\u00a0\u2009\u202f])(?=[0-9]{3})")
"""What LaTeX and typesetters write for the comma in 8,000."""
LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}")
VULGAR_FRACTION = re.compile(r"[\u00bc-\u00be\u2150-\u215e]")
PART_BEFORE = re.compile(r"(?:[0-9][/:.]|\^\s?)\Z")
"""What stands before digits that are a part of something: of a time, a ratio, a date, a power."""
PART_BEHIND = re.compile(
    r"[0-9]|[eE][+-]?[0-9]|[/:.][0-9]| ?[\^\u00b2\u00b3]|[ -](?:hundred|thousand|million|billion|trillion|dozen)\b"
)
"""What stands behind digits that are a part of something."""
GOES_ON = re.compile(r"[ \t]*(?:[-+*/^=:,\u00d7\u00b7\u00f7]|\\times|\\cdot|x|and|or|to)?[ \t]*\$?[0-9.]*[0-9]")
"""What stands behind the first number of a final answer that is a calculation, a range or a list."""


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


def numeric_answer(output: str) -> Fraction | None:
    """The number behind the first `####`, else the last number of all.

    A number that is a part of something else, such as the hours of a time or the first of a list, is not compared in
    its place. None where there is none, or where the answer as a whole is no number: it is not gradable by value.
    """
    text = output.replace("\N{MINUS SIGN}", "-")
    text = THOUSANDS.sub(",", LATEX_FRACTION.sub(r" \1/\2 ", text))
    text = VULGAR_FRACTION.sub(lambda sign: " " + normalize("NFKC", sign[0]).replace("\N{FRACTION SLASH}", "/"), text)
    final = text.partition("####")[2]
    found = NUMBER.search(final)
    if found is not None:
        return None if GOES_ON.match(final, found.end()) else _value(found)
    *_, found = [None, *NUMBER.finditer(text)]
    return None if found is None else _value(found)


def has_number(chat: Chat) -> bool:
    """Whether answers can be graded by value: the chat has a final number to grade against."""
    return chat.gold is not None and numeric_answer(chat.gold) is not None


def _value(found: re.Match[str]) -> Fraction | None:
    before = found.string[: found.start()]
    is_rest = found[3].startswith(".") and before[-1:].isdecimal()  # 1.2.3
    if is_rest or PART_BEFORE.search(before) or PART_BEHIND.match(found.string, found.end()):
        return None
    # between two terms it is no sign: "10 - 5" and "x-5" hold a 5, "is -5" holds -5
    is_operator = before[-1:].isalnum() or before.rstrip()[-1:] in tuple("0123456789)%")
    is_negative = (found[1] and not is_operator) or found[2]
    value = Fraction(found[3].replace(",", ""))
    if found[4]:
        value *= Fraction(10) ** int(found[4])
    if found[6]:
        if not int(found[6]):
            return None
        part = Fraction(1, int(found[6]))
        value = value * part if found[5] is None else value + int(found[5]) * part
    return -value if is_negative else value


def number_text(value: Fraction) -> str:
    """A number as people write it: decimal digits where they end, else a fraction."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest != 1:
        return str(value)
    digits = value.denominator.bit_length()  # more than it takes
    whole, decimals = divmod(abs(value.numerator) * 10**digits // value.denominator, 10**digits)
    return f"{'-' if value < 0 else ''}{whole}.{decimals:0{digits}}".rstrip("0").rstrip(".")


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
        numeric=None if value is None else number_text(value),
        is_strict=harness_form(strict) == expected,
        is_flexible=harness_form(flexible) == expected,
        is_numeric=value is not None and value == gold,
    )


def majority_answer(outputs: Sequence[str]) -> Fraction | None:
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
