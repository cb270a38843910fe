"""Stopping a run without losing it: signals and the time budget end it after the current optimizer step."""

import signal
import threading
import time
from pathlib import Path
from types import FrameType

from lightning_apps.errors import ConfigError
from lightning_apps.process.console import say

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
"""Scheduler's end, Ctrl-C, SLURM's warning before pre-emption (sbatch --signal=USR1@120), and a closed terminal.

Windows has only the first two.
"""
PRUNED = "pruned"
"""Reason of a run that its search stopped: others are better at this point."""
LOOK_S = 1.0
"""Between two looks for the file that asks a run to stop."""
_NOBODY, _TIME_IS_UP, _REQUEST, _SIGNAL = 0, 1, 2, 3  # what a process says of itself; from 3 on its signal


def heeded_signals() -> list[int]:
    """Those of SIGNALS that this process is to act on: after `nohup`, a closed terminal is none of them."""
    return [
        signum
        for signum in SIGNALS
        if signal.Signals(signum).name != "SIGHUP" or signal.getsignal(signum) is not signal.SIG_IGN
    ]


class StopRun(Exception):  # noqa: N818 (a run that stops is not an error)
    """Ends a run that is saved up to its last optimizer step.

    Attributes:
        reason: in words, for summary.json.
        signum: the signal that asked for it; None when the time budget did.
    """

    def __init__(self, reason: str, signum: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.signum = signum


class SafeStop:
    """Remembers that somebody asked the run to stop.

    The first signal is noted and acted on at the end of the optimizer step; where there is no step to wait for
    (preparing data, exporting), and at the second Ctrl-C, it interrupts at once. Checkpoints appear by renaming, so
    neither can harm the last one.

    Args:
        max_time_s: seconds from now after which the run is to stop; None for no limit.
        request: file whose appearance asks the run to stop, as pruned; looked for every LOOK_S. None for none.
    """

    def __init__(self, max_time_s: float | None, request: Path | None = None) -> None:
        self.signum: int | None = None
        self.in_training = False
        self._max_time_s = max_time_s
        self._request = request
        self._requested, self._looked = False, 0.0
        self._start = time.monotonic()
        self._previous: dict[int, object] = {}

    def install(self) -> None:
        """Take over the signals; Lightning's handlers would stop in the middle of the bookkeeping of a step."""
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in heeded_signals():
            self._previous.setdefault(signum, signal.getsignal(signum))
            signal.signal(signum, self._handle)

    def restore(self) -> None:
        """Give the signals back."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        name = signal.Signals(signum).name
        if not self.in_training:
            raise StopRun(name, signum)
        if self.signum is not None:
            if signum == signal.SIGINT:
                raise StopRun(f"{name}, the second signal; work after the last checkpoint is repeated", signum)
            return
        self.signum = signum
        say(f"{name}: finishing this optimizer step, then saving; Ctrl-C again stops at once")

    @property
    def asked(self) -> bool:
        """Whether the run is to stop after this step."""
        return self.code != _NOBODY

    @property
    def code(self) -> int:
        """What this process knows, as a number of which the largest among all processes decides."""
        if self.signum is not None:
            return _SIGNAL + self.signum
        now = time.monotonic()
        if self._request is not None and now - self._looked >= LOOK_S:
            self._looked, self._requested = now, self._request.exists()
        if self._requested:
            return _REQUEST
        return _TIME_IS_UP if self._max_time_s is not None and now - self._start >= self._max_time_s else _NOBODY

    def raise_stop(self, code: int) -> None:
        """End the run, for the same reason and with the same exit code in each of its processes.

        Args:
            code: the largest among the processes; a signal may have reached one of them only.

        Raises:
            StopRun: always.
        """
        if code >= _SIGNAL:
            signum = code - _SIGNAL
            raise StopRun(signal.Signals(signum).name, signum)
        if code == _REQUEST:
            raise StopRun(PRUNED)
        raise StopRun(f"trainer.max_time: {self._max_time_s or 0:.0f} s are over")


def max_time_seconds(max_time: str | None, key: str = "trainer.max_time") -> float | None:
    """Seconds of `HH:MM:SS` or `DD:HH:MM:SS`; `key` is what the configuration calls it.

    Raises:
        ConfigError: the text has another form.
    """
    if max_time is None:
        return None
    parts = max_time.split(":")
    if len(parts) not in (3, 4) or not all(part.isdecimal() for part in parts):
        raise ConfigError(f'{key}={max_time!r}: write hours, minutes and seconds, as in "00:30:00"')
    *days, hours, minutes, seconds = map(int, parts)
    if minutes > 59 or seconds > 59:
        raise ConfigError(f"{key}={max_time!r}: minutes and seconds end at 59")
    return float((days[0] if days else 0) * 86400 + hours * 3600 + minutes * 60 + seconds)
