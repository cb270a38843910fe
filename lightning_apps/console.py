"""What a command says: to the terminal without breaking a progress bar, and to the run's train.log."""

import contextlib
import logging
import sys
from pathlib import Path

from tqdm import tqdm

_log = logging.getLogger("lightning_apps")


class _Terminal(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # a terminal that was closed stops no run
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()


def say(text: str) -> None:
    """One or more lines for the user."""
    _log.info(text)


def open_console(log_path: Path | None = None, *, main_process: bool = True) -> None:
    """Route `say` to the terminal and to `log_path`; only the main process speaks."""
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
        file = logging.FileHandler(log_path, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        _log.addHandler(file)


def log_file_only(text: str) -> None:
    """Details that belong into train.log but not on the screen, a traceback for one."""
    for handler in _log.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(_log.makeRecord(_log.name, logging.ERROR, "", 0, text, (), None))
