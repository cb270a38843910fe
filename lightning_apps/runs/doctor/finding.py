"""What a check of doctor says."""

import re
from dataclasses import dataclass
from typing import Literal

Level = Literal["green", "yellow", "red"]
LEVELS: tuple[Level, ...] = ("green", "yellow", "red")
"""From good to bad."""
Area = Literal["settings", "machine", "data", "model", "generation"]
OVERRIDE = re.compile(r"(?<![\w.])[a-z_]+(?:\.[\w-]+)*=[^\s;,()]*[^\s;,().]")
"""`key=value` inside a sentence."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: `green` holds; `yellow` should be looked at, the run would go on; `red` spoils or ends the run.
        area: what was looked at.
        claim: in words, as it should be.
        counted: in words, what was counted or measured, and on how much.
        remedy: overrides or a command to paste; empty where all is well.
    """

    level: Level
    area: Area
    claim: str
    counted: str
    remedy: str = ""


def judged(
    area: Area, claim: str, counted: str, *, red: bool = False, yellow: bool = False, remedy: str = ""
) -> Finding:
    """Red, else yellow, else green; only the first two have a remedy."""
    level: Level = "red" if red else "yellow" if yellow else "green"
    return Finding(level, area, claim, counted, remedy if red or yellow else "")


def said(level: Level, area: Area, claim: str, message: str, *, remedy: str = "") -> Finding:
    """A finding of a message that another part of the program has for it, and of the last override that it names."""
    named = OVERRIDE.findall(message)
    return Finding(level, area, claim, message, remedy or (named[-1] if named else MORE))


MORE = "python -m lightning_apps.train trainer.fast_dev_run=true trainer.detect_anomaly=true"
"""Remedy where a message names none: it tries everything once, and says more."""


def worst(findings: list[Finding]) -> Level:
    """The worst level among them."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="green")
