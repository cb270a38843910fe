"""Bytes, text and JSON in files that are there whole or not at all; see datamodules/storage/atomic_files.py."""

import json
from pathlib import Path
from typing import Any

from datamodules.storage.atomic_files import written_aside


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write aside, flush, and rename."""
    with written_aside(path) as file:
        file.write(content)


def write_text_atomically(path: Path, text: str) -> None:
    """Write UTF-8; half of a surrogate pair, which UTF-8 lacks, is written as its escape."""
    write_bytes_atomically(path, text.encode("utf-8", "backslashreplace"))


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
