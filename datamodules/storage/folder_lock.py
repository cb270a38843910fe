"""One process at a time in a folder."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows, where nobody else is kept out
    fcntl = None


@contextlib.contextmanager
def locked(folder: Path, report: Callable[[str], None] | None = None, *, wait: bool = True) -> Iterator[None]:
    """Hold a folder against other processes; the lock ends with the process, however that ends.

    Args:
        folder: there is no lock where its file system, or Windows, has none.
        report: told that another process is waited for.
        wait: whether to wait for it.

    Raises:
        BlockingIOError: another process holds the folder, and `wait` is False.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            if report is not None:
                report(f"waiting for another process that works on {folder}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)
