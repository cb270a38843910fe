"""Prepared data on disk: written once, keyed by a fingerprint of everything that shaped it, never read half-made."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that change whenever a setting does; settings must be JSON values."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prepared_folder(
    root: Path, experiment: str, settings: Mapping[str, Any], write: Callable[[Path], Mapping[str, Any]]
) -> Path:
    """The folder that holds prepared data for these settings; made by `write` if it is not there yet.

    Args:
        root: cache root; the folder is root/experiment/fingerprint.
        experiment: name of the experiment.
        settings: everything that shapes the data (source, tokenizer, options, code version), as JSON values.
        write: fills an empty folder and returns facts to keep in the manifest.

    Returns:
        A folder whose manifest is present. It appears by one rename, so that a killed preparation leaves nothing that
        could be read, and processes that prepare the same data at once do not meet.
    """
    folder = root / experiment / fingerprint(settings)
    if (folder / MANIFEST).is_file():
        return folder
    new_parents = [parent for parent in (folder.parent, root) if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        facts = write(unfinished)
        manifest = {"settings": dict(settings), "facts": dict(facts)}
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        try:
            os.rename(unfinished, folder)  # noqa: PTH104 (Path.rename cannot say why it failed any better)
        except OSError:
            if not (folder / MANIFEST).is_file():  # not another process that was first: a folder without manifest
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        for parent in new_parents:  # data that was refused leaves no empty folders behind
            with contextlib.suppress(OSError):
                parent.rmdir()
    return folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """Settings and facts of a prepared folder."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest
