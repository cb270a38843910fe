"""Files that are there whole or not at all: the one way in which this project replaces a file."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[IO[bytes]]:
    """A file to write `path` into: it is flushed to the disk and takes the name when the block ends without an error.

    The name of the file aside cannot be guessed and is opened only if nothing has it: a symbolic link that somebody
    put into the folder is never written through. A link at `path` itself is replaced, not followed.

    Args:
        path: what to write; its folder is made where it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.part")
    try:
        with os.fdopen(open_new(aside), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    fsync_folder(path.parent)


def open_new(path: Path) -> int:
    """A descriptor of a file that was not there before, nor a link."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)


def fsync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut; where folders cannot be flushed, do without."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
