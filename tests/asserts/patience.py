"""Waiting for another process, however busy the machine is."""

import time
from collections.abc import Callable

PATIENCE_S = 600
"""Only what hangs takes so long: a busy machine makes a test slow and not red."""


def wait_until(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Return as soon as the condition holds; fail where it never does."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.02)
