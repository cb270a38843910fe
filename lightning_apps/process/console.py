"""What a command says: to the terminal without breaking a progress bar, and to the run's train.log."""

import contextlib
import logging
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 15
"""Of progress, where the output is no terminal that could show a bar."""

_log = logging.getLogger("lightning_apps")
_said: set[str] = set()
Item = TypeVar("Item")


class _Terminal(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # a terminal that was closed (OSError), or the stream to it (ValueError, or there is none), stops no run
        with contextlib.suppress(OSError, ValueError, AttributeError):
            tqdm.write(printable_text(self.format(record), sys.stdout.encoding), file=sys.stdout)
            sys.stdout.flush()


def printable_text(text: str, encoding: str | None) -> str:
    """The text with escapes for what the encoding lacks: halves of characters, and most of Unicode in latin-1."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def say(text: str) -> None:
    """One or more lines for the user."""
    _log.info(text)


def say_once(key: str, text: str) -> bool:
    """Say a text unless this run has said one under the same key; returns whether it was said."""
    if key in _said:
        return False
    _said.add(key)
    say(text)
    return True


def with_progress(items: Collection[Item], *, name: str, unit: str) -> Iterator[Item]:
    """The items, with a bar; where the output is no terminal (a log file, a pipe), a line every fifteen seconds."""
    if sys.stderr.isatty():
        yield from tqdm(items, desc=name, unit=unit, leave=False)
        return
    started = last_line = time.perf_counter()
    for done, item in enumerate(items):
        now = time.perf_counter()
        if done and now - last_line >= SECONDS_BETWEEN_LINES:
            last_line = now
            left_s = (now - started) / done * (len(items) - done)
            say(f"{name}: {done:,} of {len(items):,} {unit}s, {human_time(left_s)} left")
        yield item


def human_time(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def open_console(log_path: Path | None = None, *, main_process: bool = True) -> None:
    """Route `say` to the terminal and to `log_path`; only the main process speaks."""
    _log.setLevel(logging.INFO)
    _log.propagate = False
    _said.clear()
    for handler in list(_log.handlers):
        handler.close()
        _log.removeHandler(handler)
    if not main_process:
        _log.addHandler(logging.NullHandler())
        return
    terminal = _Terminal()
    terminal.setFormatter(logging.Formatter("%(message)s"))
    _log.addHandler(terminal)
    if log_path is not None:
        file = logging.FileHandler(log_path, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        _log.addHandler(file)


def log_file_only(text: str) -> None:
    """Details that belong into train.log but not on the screen, a traceback for one."""
    for handler in _log.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(_log.makeRecord(_log.name, logging.ERROR, "", 0, text, (), None))
