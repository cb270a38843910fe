"""What a comparison found, as one row of the table of `python -m benchmarks`, and what figures are kept beside."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROWS = "BENCHMARK_ROWS"
"""Environment variable: the file to which rows are added, a JSON object a line; without it nothing is kept."""


def add_row(
    work: str,
    *,
    peer: str,
    unit: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    memory_shares: Sequence[float] = (),
    loss_difference: float | None = None,
) -> None:
    """Keep a comparison.

    Args:
        work: what both did.
        peer: whom it is compared with.
        unit: of the values; those with `/s` are better where they are higher, others where they are lower.
        ours: a value for each pair.
        theirs: the peer's, in the same order.
        memory_shares: our peak memory over the peer's, for each pair.
        loss_difference: the largest relative difference of the losses of a step, where both did the same.
    """
    if ROWS not in os.environ:
        return
    row = {
        "work": work,
        "peer": peer,
        "unit": unit,
        "ours": list(ours),
        "theirs": list(theirs),
        "memory_shares": list(memory_shares),
        "loss_difference": loss_difference,
    }
    with Path(os.environ[ROWS]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def commit() -> str:
    """What is measured."""
    described = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(described, capture_output=True, text=True).stdout.strip()


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n")
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
