"""Prepared data on disk: written once, keyed by a fingerprint of everything that shaped it, never read half-made."""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

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
        could be read; what it left is removed by the next. Of processes that want the same data at once, one prepares
        it and the others wait.
    """
    folder = root / experiment / fingerprint(settings)
    if (folder / MANIFEST).is_file():
        return folder
    new_parents = [parent for parent in (folder.parent, root) if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(folder.with_name(f".{folder.name}.lock")):
            if not (folder / MANIFEST).is_file():
                _remove_leftovers(folder)
                _write_and_rename(folder, settings, write)
    finally:
        for parent in new_parents:  # data that was refused leaves no empty folders behind
            with contextlib.suppress(OSError):
                parent.rmdir()
    return folder


def _write_and_rename(folder: Path, settings: Mapping[str, Any], write: Callable[[Path], Mapping[str, Any]]) -> None:
    owner = f"{platform.node()}-{os.getpid()}"
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-{owner}-", dir=folder.parent))
    try:
        facts = write(unfinished)
        manifest = {"settings": dict(settings), "facts": dict(facts)}
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        try:
            os.rename(unfinished, folder)  # noqa: PTH104 (Path.rename cannot say why it failed any better)
        except OSError:
            if not (folder / MANIFEST).is_file():  # not another machine that was first: a folder without manifest
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock file that goes away with its holder; where the system has no locks, do not wait."""
    if fcntl is None:
        yield
        return
    while True:
        with path.open("a") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            try:  # the one before may have removed the file while this process waited for it
                current = path.stat().st_ino == os.fstat(file.fileno()).st_ino
            except FileNotFoundError:
                current = False
            if current:
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed preparations on this machine left."""
    for path in folder.parent.glob(f".{folder.name}-{platform.node()}-*-*"):
        pid = int(path.name.split("-")[-2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:  # another user's, alive
            continue


def read_manifest(folder: Path) -> dict[str, Any]:
    """Settings and facts of a prepared folder."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest
