"""Small files that are there whole or not at all."""

import json
from pathlib import Path
from typing import Any


def write_text_atomically(path: Path, text: str) -> None:
    """Write aside and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def write_json_atomically(path: Path, value: Any) -> None:
    """Write JSON; NaN and infinity, which JSON lacks, become null."""
    write_text_atomically(path, json.dumps(json_safe(value), indent=2) + "\n")


def json_safe(value: Any) -> Any:
    """The value as JSON keeps it: tuples are lists, NaN and infinity null."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: json_safe(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(entry) for entry in value]
    return value
