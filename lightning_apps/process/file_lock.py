"""Lock files: one process at a time, and who it is."""

import contextlib
import datetime
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def try_lock(path: Path) -> int | None:
    """An open descriptor that holds the lock, or None where another process does.

    The kernel gives the lock up when the last process that inherited the descriptor ends, however it ends: there is
    no stale lock. Where the file system has no locks, nothing is locked. A symbolic link is not followed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    if _taken(descriptor, "LOCK_EX"):
        os.close(descriptor)
        return None
    return descriptor


def lock_soon(path: Path, patience_s: float = 0.5) -> int | None:
    """try_lock, tried again for a while: somebody may just be looking whether it is taken."""
    end = time.monotonic() + patience_s
    while (lock := try_lock(path)) is None and time.monotonic() < end:
        time.sleep(0.05)
    return lock


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock; looking needs no right to write."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return _taken(descriptor, "LOCK_SH")
    finally:
        os.close(descriptor)


def _taken(descriptor: int, kind: str) -> bool:
    """Try to lock; whether somebody else has done so."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, getattr(fcntl, kind) | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    return False


def sign_lock(descriptor: int, owner: Mapping[str, Any]) -> None:
    """Write into a lock file who holds it, for the one who finds it taken."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(dict(owner)).encode(), 0)


def this_process() -> dict[str, Any]:
    """What sign_lock writes for this process: number, host, and since when, UTC."""
    since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return {"pid": os.getpid(), "host": platform.node(), "since": since}


def lock_owner(path: Path) -> dict[str, Any]:
    """What sign_lock wrote; empty where it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        owner = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(owner, dict):
            return owner
    return {}


def owner_text(path: Path) -> str:
    """`process 12 on host a, since 2026-11-25 10:00:00 UTC`, as far as the file says it."""
    owner = lock_owner(path)
    since = f", since {owner['since']}" if "since" in owner else ""
    return f"process {owner.get('pid', 'unknown')} on host {owner.get('host', 'unknown')}{since}"


def has_died(path: Path) -> bool:
    """Whether the signed owner was a process of this host that is no more."""
    owner = lock_owner(path)
    pid = owner.get("pid")
    if owner.get("host") != platform.node() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
