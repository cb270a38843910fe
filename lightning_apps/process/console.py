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
Item = TypeVar("Item")


class _Terminal(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if sys.stdout is None:  # a program without a terminal
            return
        text = self.format(record)
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        with contextlib.suppress(OSError, ValueError, LookupError, RuntimeError):  # a closed terminal stops no run
            tqdm.write(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stdout)
            sys.stdout.flush()


class _LogFile(logging.FileHandler):
    """train.log; where it cannot be written (a full disk), the run goes on without it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Say nothing: the terminal has the line."""

    def close(self) -> None:
        """Close, whatever is left in the buffer."""
        with contextlib.suppress(OSError):
            super().close()


def say(text: str) -> None:
    """One or more lines for the user."""
    _log.info(text)


_said: set[str] = set()  # keys of say_once


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


class ProgressCount:
    """How far work is whose parts end one by one: a bar, or a line every fifteen seconds where there is no terminal.

    Args:
        total: parts.
        name: of the work.
        units: parts, in the plural.
    """

    def __init__(self, total: int, *, name: str, units: str) -> None:
        self.total, self.name, self.units = total, name, units
        self.done = 0
        self._started = self._last_line = time.perf_counter()
        is_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=name, unit=f" {units}", leave=False) if is_terminal else None

    def add(self, count: int = 1) -> None:
        """So many more parts are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.perf_counter()
        if self.done and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            left_s = (now - self._started) / self.done * (self.total - self.done)
            say(f"{self.name}: {self.done:,} of {self.total:,} {self.units}, {human_time(left_s)} left")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


def human_time(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def open_console(log_path: Path | None = None, *, main_process: bool = True) -> None:
    """Route `say` to the terminal and to `log_path`; only the main process speaks."""
    _said.clear()
    _log.setLevel(logging.INFO)
    _log.propagate = False
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
        _log.addHandler(_LogFile(log_path))


def log_file_only(text: str) -> None:
    """Details that belong into train.log but not on the screen, a traceback for one."""
    for handler in _log.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(_log.makeRecord(_log.name, logging.ERROR, "", 0, text, (), None))
