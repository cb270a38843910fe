"""COMPLETE, the object that says which files are below a URL; a folder is whole if and only if it is there."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from datamodules.storage.errors import StorageError
from datamodules.storage.object_store import bad_name

MARKER = "COMPLETE"
UNDER_WAY = "INCOMPLETE"
"""Names the objects of an upload that is not complete: they are its own, and it may delete them."""
FORMAT = 1


class MarkedFile(NamedTuple):
    """What COMPLETE says of a file: size in bytes, SHA-256 in hexadecimal digits."""

    size: int
    sha256: str


def marker_text(files: Mapping[str, MarkedFile]) -> str:
    """The content of COMPLETE; the same files give the same text."""
    entries = {name: {"size": file.size, "sha256": file.sha256} for name, file in sorted(files.items())}
    return json.dumps({"format": FORMAT, "files": entries}, indent=1, ensure_ascii=False) + "\n"


def read_marker(content: bytes, url: str) -> dict[str, MarkedFile]:
    """The files that COMPLETE lists; names, sizes and checksums are checked, since anybody may have written it.

    Raises:
        StorageError: it is no such list, or a name could lead out of the folder.
    """
    try:
        entries = _decoded(content)["files"]
        files = {name: MarkedFile(entry["size"], entry["sha256"]) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StorageError(
            f"{url}/{MARKER} is not a list of files with size and sha256; upload the folder again"
        ) from None
    for name, file in files.items():
        reason = bad_name(name) or ("is reserved" if name in (MARKER, UNDER_WAY) else None)
        if reason is None and any(parent in files for parent in _parents(name)):
            reason = "is that of a file in a file"
        if reason is None and not (type(file.size) is int and file.size >= 0):
            reason = "has no size"
        if reason is None and not (isinstance(file.sha256, str) and re.fullmatch(r"[0-9a-f]{64}", file.sha256)):
            reason = "has no SHA-256"
        if reason is not None:
            raise StorageError(f"{url}/{MARKER} lists {name!r}, whose name {reason}; nothing of it is used")
    return files


def names_text(names: Iterable[str]) -> str:
    """The content of INCOMPLETE."""
    return json.dumps({"format": FORMAT, "files": sorted(names)}, indent=1, ensure_ascii=False) + "\n"


def read_names(content: bytes) -> set[str]:
    """Names that COMPLETE or INCOMPLETE lists; empty where it is neither."""
    try:
        return {name for name in _decoded(content)["files"] if isinstance(name, str) and bad_name(name) is None}
    except (ValueError, KeyError, TypeError):
        return set()


def _decoded(content: bytes) -> dict[str, Any]:
    """The JSON of a marker of this format.

    Raises:
        ValueError: it is no JSON, or of another format.
    """
    value = json.loads(content.decode("utf-8"))
    if value["format"] != FORMAT:
        raise ValueError(value["format"])
    return value


def _parents(name: str) -> Iterable[str]:
    parts = name.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))
