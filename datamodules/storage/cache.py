"""Prepared data on disk: written once, keyed by a fingerprint of everything that shaped it, never read half-made."""

import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datamodules.storage.atomic_files import fsync_folder

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MANIFEST = "manifest.json"
BLOCK_BYTES, MOST_BLOCKS = 4096, 64


class CacheError(ValueError):
    """The cache cannot be read or written: its folder, why, and what to do, in one line."""


@contextlib.contextmanager
def _in_words(root: Path) -> Iterator[None]:
    """Faults of the system with a cache are the user's to mend; those of what fills it keep their own words."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"run.cache_root={root}: {error.filename or root} cannot be used ({error.strerror or error}); it may be "
            "another user's, read-only, full, or a file: choose a folder of your own with run.cache_root=..."
        ) from error


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that change whenever a setting does; settings must be JSON values."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        A folder whose manifest is present. It appears by one rename after its files are on the disk, so that neither
        a killed preparation nor a power cut leaves anything that could be read; what they left is removed by the next.
        Of processes that want the same data at once, one prepares it and the others wait. Data that were damaged later
        are prepared again.

    Raises:
        CacheError: the cache cannot be read or written.
    """
    folder = root / experiment / fingerprint(settings)
    with _in_words(root):
        if damage(folder) is None:
            return folder
        new_parents = [parent for parent in (folder.parent, root) if not parent.exists()]
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(folder.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder.parent))
    try:
        with _alone(folder.with_name(f".{folder.name}.lock")):
            reason = damage(folder)
            if reason is not None:
                _remove_leftovers(folder)
                if (folder / MANIFEST).exists():
                    print(f"{folder} is damaged ({reason}) and is prepared again", file=sys.stderr)
                    _set_aside(folder)
                _write_and_rename(folder, settings, write)
    finally:
        for parent in new_parents:  # data that was refused leaves no empty folders behind
            with contextlib.suppress(OSError):
                parent.rmdir()
    return folder


def _write_and_rename(folder: Path, settings: Mapping[str, Any], write: Callable[[Path], Mapping[str, Any]]) -> None:
    owner = f"{platform.node()}-{os.getpid()}"
    with _in_words(folder.parent.parent):
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-{owner}-", dir=folder.parent))
        unfinished.chmod(0o777 & ~_umask())  # mkdtemp keeps others out, and a cache may be shared
    try:
        try:
            facts = write(unfinished)
            files = {name: _stamp(unfinished / name) for name in _files_in(unfinished)}
            manifest = {"settings": dict(settings), "facts": dict(facts), "files": files}
            (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            _flush(unfinished)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                with _in_words(folder.parent.parent):
                    raise
            raise
        try:
            os.rename(unfinished, folder)  # noqa: PTH104 (Path.rename cannot say why it failed any better)
        except OSError:
            if not (folder / MANIFEST).is_file():  # not another machine that was first: a folder without manifest
                raise
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _umask() -> int:
    """What this process takes from the rights of new files; read from Linux's own table, else set and put back."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").split("\n")
        return int(next(line.split()[1] for line in lines if line.startswith("Umask:")), 8)
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def damage(folder: Path) -> str | None:
    """What is wrong with a prepared folder, or None.

    Sizes are compared, and of each file up to 64 blocks of 4 KiB, spread evenly with the first and the last among
    them: files below 256 KiB are read whole, larger ones in milliseconds. That finds what a crash leaves (short files,
    stretches of zeros), and is no proof against one flipped bit in a large file.
    """
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        return "no manifest"
    except ValueError:
        return f"{MANIFEST} cannot be read"
    for name, stated in manifest.get("files", {}).items():  # made before there were stamps: nothing to compare
        try:
            found = _stamp(folder / name)
        except FileNotFoundError:
            return f"{name} is missing"
        if found["size"] != stated["size"]:
            return f"{name} has {found['size']:,} bytes instead of {stated['size']:,}"
        if found != stated:
            return f"{name} does not hold what was written"
    return None


def _files_in(folder: Path) -> list[str]:
    """Names of what was prepared; hidden files are notes of those who use it."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if not path.name.startswith("."))


def _stamp(path: Path) -> dict[str, Any]:
    """Size of a file, and a digest of its blocks; see damage."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    last = max(0, -(-size // BLOCK_BYTES) - 1)
    with path.open("rb") as file:
        for block in sorted({last * number // (MOST_BLOCKS - 1) for number in range(MOST_BLOCKS)}):
            file.seek(block * BLOCK_BYTES)
            digest.update(file.read(BLOCK_BYTES))
    return {"size": size, "blocks_sha256": digest.hexdigest()}


def _flush(folder: Path) -> None:
    """Bring the files of a folder, and their names, to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            fsync_folder(path)
    fsync_folder(folder)


def _set_aside(folder: Path) -> None:
    """Remove a damaged folder; readers that have its files open keep them."""
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-{platform.node()}-{os.getpid()}-", dir=folder.parent))
    folder.rename(aside / folder.name)
    shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock file that goes away with its holder; where the system has no locks, do not wait."""
    if fcntl is None:
        yield
        return
    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(
                    f"waiting for another process, which prepares the same data ({path})", file=sys.stderr, flush=True
                )
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # a file system without locks
                pass
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
    """Settings and facts of a prepared folder.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({str(error).splitlines()[0]}); delete {folder}") from error
    if not isinstance(manifest, dict) or not {"settings", "facts"} <= manifest.keys():
        raise ValueError(f"{path} is no manifest of prepared data; delete {folder}")
    return manifest
