"""Ctrl-C in a command: one line and exit code 130, in its first second too, while it imports."""

import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

EXIT_CODE = 128 + signal.SIGINT
MESSAGE = "stopped by Ctrl-C"


def arm_in_commands(words: Sequence[str]) -> None:
    """Take over Ctrl-C where this process was started as one of the commands; programs that import us keep theirs.

    A run that trains takes it over from here (SafeStop) and gives it back.

    Args:
        words: with which the interpreter was started.
    """
    names = [word for flag, word in itertools.pairwise(words) if flag == "-m"]
    is_command = (
        any(name.startswith(f"{__package__.partition('.')[0]}.") for name in names)
        or any(
            os.path.basename(word).startswith("lightning-apps-")  # noqa: PTH119 (importing pathlib takes time)
            for word in words[:2]
        )
    )
    # a shell that starts a command with & has it ignore Ctrl-C
    if is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)


_is_caught = False


@contextlib.contextmanager
def caught() -> Iterator[None]:
    """Within it somebody catches KeyboardInterrupt and says the line."""
    global _is_caught
    before, _is_caught = _is_caught, True
    try:
        yield
    finally:
        _is_caught = before


def interrupt(signum: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt where it is caught; before and after that, and in the middle of an import, end at once.

    Libraries turn an exception inside their import into others, of which a user can make nothing; and nothing is half
    written that is not written aside.
    """
    while frame is not None and _is_caught:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            end_at_once()
        frame = frame.f_back
    if not _is_caught:
        end_at_once()
    raise KeyboardInterrupt


def end_at_once() -> None:
    """Say the line and end, without what Python does at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed, or there is none
            continue
    os.write(2, f"error: {MESSAGE}\n".encode())
    os._exit(EXIT_CODE)
