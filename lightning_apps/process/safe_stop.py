"""Stopping a run without losing it: signals and the time budget end it after the current optimizer step."""

import signal
import threading
import time
from types import FrameType

from lightning_apps.errors import ConfigError
from lightning_apps.process.console import say

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Scheduler's end, Ctrl-C, and SLURM's warning before pre-emption (sbatch --signal=USR1@120)."""


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
    """

    def __init__(self, max_time_s: float | None) -> None:
        self.signum: int | None = None
        self.in_training = False
        self._max_time_s = max_time_s
        self._start = time.monotonic()
        self._previous: dict[int, object] = {}

    def install(self) -> None:
        """Take over the signals; Lightning's handlers would stop in the middle of the bookkeeping of a step."""
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in SIGNALS:
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
        return self.signum is not None or self._time_is_up

    @property
    def _time_is_up(self) -> bool:
        return self._max_time_s is not None and time.monotonic() - self._start >= self._max_time_s

    def raise_stop(self) -> None:
        """End the run.

        Raises:
            StopRun: always.
        """
        if self.signum is not None:
            raise StopRun(signal.Signals(self.signum).name, self.signum)
        raise StopRun(f"trainer.max_time: {self._max_time_s:.0f} s are over")


def max_time_seconds(max_time: str | None) -> float | None:
    """Seconds of `HH:MM:SS` or `DD:HH:MM:SS`.

    Raises:
        ConfigError: the text has another form.
    """
    if max_time is None:
        return None
    parts = max_time.split(":")
    if len(parts) not in (3, 4) or not all(part.isdecimal() for part in parts):
        raise ConfigError(f'trainer.max_time={max_time!r}: write hours, minutes and seconds, as in "00:30:00"')
    *days, hours, minutes, seconds = map(int, parts)
    if minutes > 59 or seconds > 59:
        raise ConfigError(f"trainer.max_time={max_time!r}: minutes and seconds end at 59")
    return float((days[0] if days else 0) * 86400 + hours * 3600 + minutes * 60 + seconds)
