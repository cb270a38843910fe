"""Metrics as files hold them: rows of metrics.csv, and what their names say; nothing here imports torch."""

import csv
import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

HEADLINES = (
    "loss", "accuracy", "f1_macro", "haversine_km_median", "haversine_km_mean", "valid_ratio", "accuracy_numeric",
    "perplexity", "bits_per_byte",
)  # fmt: skip
"""Metrics that stand first, behind the one that chose the best checkpoint."""


def headlines_first(names: Collection[str], *, monitor: str | None) -> list[str]:
    """Names of metrics: the monitored one and its namesakes of other splits, then headlines, then all others."""
    chosen = None if monitor is None else monitor.partition("/")[2]

    def place(name: str) -> tuple[Any, ...]:
        split, _, metric = name.partition("/")
        rank = -1 if metric == chosen else HEADLINES.index(metric) if metric in HEADLINES else len(HEADLINES)
        return (split != "val", rank, metric)

    return sorted(names, key=place)


def is_headline(name: str, *, monitor: str | None) -> bool:
    """Whether a metric is one of HEADLINES, or what chose the best checkpoint, on any split."""
    return name.partition("/")[2] in (*HEADLINES, *([] if monitor is None else [monitor.partition("/")[2]]))


def is_interval_end(name: str, names: Collection[str]) -> bool:
    """Whether this is the lower or upper end of a metric that is there too."""
    base = name.removesuffix("_low") if name.endswith("_low") else name.removesuffix("_high")
    return base != name and {base, f"{base}_low", f"{base}_high"} <= set(names)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.csv: `step` as int, every other value as float, empty fields left out.

    A row that a crash left half-written is passed over: the last one where it does not end its line (its last number
    may have lost digits), and any that holds something else than numbers.
    """
    return parse_metrics(path.read_bytes())


def parse_metrics(content: bytes) -> list[dict[str, Any]]:
    """Rows of the content of a metrics.csv, see read_metrics."""
    text = content.decode("utf-8", "replace")
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    return [values for row in rows if (values := _numbers(row)) is not None]


def _numbers(row: dict[Any, Any]) -> dict[str, Any] | None:
    try:
        values = {key: int(value) if key == "step" else float(value) for key, value in row.items() if value}
    except (TypeError, ValueError):  # TypeError: more fields than columns
        return None
    return values if "step" in values else None
