"""Standard output and error that no text and no closed pipe can break: what a command says is never worth its work."""

import contextlib
import os
import sys
from typing import Any, TextIO


class SteadyStream:
    """A text stream that shows what its encoding lacks as an escape, and falls silent once nobody listens.

    Args:
        stream: what is written to; any attribute that this class lacks is its own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        reconfigure = getattr(stream, "reconfigure", None)  # a stream in a notebook or a test has none
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or do not; returns the number of characters either way."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:  # a stream that could not be reconfigured
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(text.encode("ascii", "backslashreplace").decode())
        except RuntimeError:  # a signal's handler speaks while its program does: the buffer is taken
            pass
        except (OSError, ValueError):
            self._fall_silent()
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of them."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, or do not."""
        try:
            self._stream.flush()
        except RuntimeError:
            pass
        except (OSError, ValueError):
            self._fall_silent()

    def isatty(self) -> bool:
        """Whether this is a terminal that is there."""
        try:
            return self._stream.isatty()
        except (OSError, ValueError):
            return False

    def _fall_silent(self) -> None:
        """What is still in buffers goes to the null device: Python flushes them at its end, and complains."""
        with contextlib.suppress(OSError, ValueError):
            descriptor = self._stream.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)


def steady_streams() -> None:
    """Make sys.stdout and sys.stderr steady; where the shell closed one (`>&-`), what is said there is dropped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 (as long as the process)
        if not isinstance(stream, SteadyStream):
            setattr(sys, name, SteadyStream(stream))
