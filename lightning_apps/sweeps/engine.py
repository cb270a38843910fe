"""The engine of a sweep: jobs into free places, signals, time limits, exit codes, and a line for each start and end."""

import contextlib
import datetime
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

from lightning_apps.errors import ConfigError
from lightning_apps.process.console import human_time, log_file_only, say
from lightning_apps.process.safe_stop import PRUNED, SIGNALS, heeded_signals
from lightning_apps.run_files.directory import RunDirectory, whole_summary
from lightning_apps.sweeps.backends.backend import Backend, BackendError, Handle, Sign, Task
from lightning_apps.sweeps.grid import SweepSettings, job_size, time_left
from lightning_apps.sweeps.state import JobRecord, Status, SweepState
from lightning_apps.sweeps.table import live_table, no_view

POLL_S = 0.2
GRACE_S = 60.0
"""How long a job that was told to save and end may take before it is killed."""
STOP_SIGNALS = SIGNALS
"""What makes a sweep stop; a closed terminal (SIGHUP) counts as SIGTERM for the jobs, which are in other sessions."""
WRONG_CONFIGURATION = 2
"""Exit code of a job that fails again however often it is tried."""


class Source(Protocol):
    """Where the jobs come from: a grid that is known beforehand, or a search that looks at what came out."""

    @property
    def total(self) -> int:
        """Jobs of the whole sweep."""

    @property
    def jobs(self) -> Sequence[JobRecord]:
        """Those that are known by now; a search thinks of one after the other."""

    def next(self) -> JobRecord | None:
        """The next job to start; None where there is none."""

    def look(self, record: JobRecord) -> bool:
        """A running job may have evaluated itself; returns whether it is not worth going on with."""

    def ended(self, record: JobRecord) -> None:
        """A job is over: its record says how."""

    def is_well(self) -> bool:
        """Whether all that was wanted is there."""


class Queue:
    """The jobs of a grid, in order.

    Args:
        records: of all its jobs; those that are pending are to run.
    """

    def __init__(self, records: Sequence[JobRecord]) -> None:
        self.jobs = list(records)
        self.total = len(self.jobs)
        self.waiting = [record for record in records if record.status == "pending"]

    def next(self) -> JobRecord | None:
        """The first that waits."""
        return self.waiting.pop(0) if self.waiting else None

    def look(self, record: JobRecord) -> bool:
        """No job of a grid is given up."""
        return False

    def ended(self, record: JobRecord) -> None:
        """Nothing follows from it."""

    def is_well(self) -> bool:
        """Whether every job is done or out of its time budget."""
        return all(record.status == "done" or record.is_out_of_time for record in self.jobs)


@dataclass
class RunningJob:
    """A job that a back end has taken and that has not ended.

    Attributes:
        record: what the state says of it.
        handle: the back end's.
        started: time.monotonic() in seconds when it was submitted; once it has a place, when it got it.
        log_start: byte of the job's log at which its output begins.
        has_place: whether it runs rather than waits in a queue.
        asked_to_end: time.monotonic() in seconds when its time limit was over; None before.
    """

    record: JobRecord
    handle: Handle
    started: float
    log_start: int
    has_place: bool = False
    asked_to_end: float | None = None


class Engine:
    """Runs jobs in free places until none is left or somebody asks to stop.

    The first signal is passed on, and every job ends saved; the second asks the jobs to stop at once; the third kills
    them.

    Args:
        folder: where the sweep keeps its state and its logs.
        state: what is known of all jobs; written at every start and end of one.
        backend: where jobs run.
        settings: the `sweep` node of the configuration.
        command: the words that start every job, up to its overrides.
        hardware: the jobs' `hardware` settings: accelerator, devices, num_nodes.
        job_time_s: seconds that one start of a job may take; None for no limit.
        max_time_s: seconds after which no further job is started; None for no limit.
        metric: that the table shows.
    """

    def __init__(
        self,
        *,
        folder: Path,
        state: SweepState,
        backend: Backend,
        settings: SweepSettings,
        command: Sequence[str],
        hardware: tuple[str, int, int] = ("cpu", 1, 1),
        job_time_s: float | None = None,
        max_time_s: float | None = None,
        metric: str = "val/loss",
    ) -> None:
        self.folder = folder
        self.state = state
        self.backend = backend
        self.settings = settings
        self.command = list(command)
        self.hardware = hardware
        self.job_time_s = job_time_s
        self.max_time_s = max_time_s
        self.metric = metric
        self.source: Source = Queue([])
        self.running: list[RunningJob] = []
        self.signals: list[int] = []
        self._answered = 0
        self._again: list[JobRecord] = []  # jobs to be tried again
        self._attempts: dict[str, int] = {}  # of this start
        self._seconds: dict[str, float] = {}  # of jobs that this start ran from beginning to end
        self._started = time.monotonic()
        self._closed = ""  # why no further job is started
        self.error: ConfigError | None = None
        self._tell: Callable[[str], None] = say  # what a table shows is told to the log only

    def look_at_runs(self, jobs: Sequence[JobRecord]) -> None:
        """Find what an earlier engine left, set the status of each job from what its run says, and write the state."""
        open_jobs = [record for record in jobs if record.status != "done"]
        recovered = self.backend.recover({record.name: Handle(record.handle or "") for record in open_jobs})
        for record in jobs:
            if record.name in recovered:
                log = self.folder / "logs" / f"{record.name}.log"
                size = log.stat().st_size if log.exists() else 0
                self.running.append(RunningJob(record, recovered[record.name], time.monotonic(), size))
                record.status = "running"
                continue
            summary = whole_summary(RunDirectory(Path(record.run_directory)))
            status = summary["status"] if summary else None
            if summary and status == "completed":
                record.status, record.reason, record.wall_s = "done", "", summary["wall_s"]
                continue
            if summary and status == "stopped" and summary["reason"] == PRUNED:
                record.status, record.reason, record.wall_s = "pruned", PRUNED, summary["wall_s"]
                continue
            if summary and status == "stopped":  # an engine that was killed has not noted it
                record.reason = record.reason or str(summary["reason"])
            failed = record.status == "failed" or (record.status == "pending" and status == "failed")
            if failed and not self.settings.retry_failed:
                record.status = "failed"
                record.reason = record.reason or str(summary["reason"] if summary else "")
            else:
                record.status = "pending"
        self.state.write(self.folder)

    def run(self, source: Source) -> int:
        """Run what the source gives.

        Returns:
            0 where the source has got what it wanted, 1 where it has not, 128 + signal when stopped.

        Raises:
            ConfigError: the source found what no job can mend; those that ran have ended, saved.
        """
        self.source = source
        try:
            with self._signals_noted(), live_table(self.folder, self.metric) as show:
                self._tell = say if show is no_view else log_file_only
                while self._tick():
                    show(self.source.jobs)
                    time.sleep(POLL_S)
        finally:
            self.backend.close()
        if self.signals:
            return 128 + self.signals[0]
        if self.error is not None:
            raise self.error
        return 0 if self.source.is_well() else 1

    def is_closed(self) -> bool:
        """Whether no further job is started."""
        if self.max_time_s is not None and time.monotonic() - self._started >= self.max_time_s:
            self._closed = self._closed or f"sweep.max_time: {human_time(self.max_time_s)} are over"
        return bool(self._closed or self.signals)

    def _tick(self) -> bool:
        """Look at everything once; whether there is anything left to do."""
        try:
            return self._look_at_everything()
        except ConfigError as error:
            if self.error is None:
                self.error, self._closed = error, self._closed or "stopped"
                for entry in self.running:
                    self.backend.cancel(entry.handle, signal.SIGTERM)
            return bool(self.running)

    def _look_at_everything(self) -> bool:
        self._answer_signals()
        for entry in list(self.running):
            sign = self.backend.poll(entry.handle)
            if sign.phase == "ended":
                self.running.remove(entry)
                self._end(entry, sign)
            elif sign.phase == "running":
                self._watch(entry)
        while not self.is_closed() and len(self.running) < self.backend.places:
            record = self._again.pop(0) if self._again else self.source.next()
            if record is None:
                break
            self._start(record)
        return bool(self.running)

    def _watch(self, entry: RunningJob) -> None:
        now = time.monotonic()
        if not entry.has_place:
            entry.has_place, entry.started = True, now
        if self.error is None and self.source.look(entry.record):
            with contextlib.suppress(OSError):  # it then trains to its end
                RunDirectory(Path(entry.record.run_directory)).stop_request.touch()
        if self.job_time_s is None or now - entry.started < self.job_time_s:
            return
        if entry.asked_to_end is None:
            entry.asked_to_end = now
            self.backend.cancel(entry.handle, signal.SIGTERM)
        elif now - entry.asked_to_end >= GRACE_S:
            self.backend.cancel(entry.handle, signal.SIGKILL)

    def closing_lines(self) -> str:
        """How the sweep ended, which jobs are not done and why, and what to do next."""
        records = self.source.jobs
        open_ones = [record for record in records if record.status not in ("done", "pruned")]
        failed = [record for record in open_ones if record.status == "failed"]
        interrupted = [record for record in open_ones if record.status == "pending" and record.reason]
        done, pruned = (sum(record.status == status for record in records) for status in ("done", "pruned"))
        lines = [
            f"\n{self._why_it_ended()}: {done} of {self.source.total} jobs done"
            f"{f', {pruned} pruned' if pruned else ''}, {time.monotonic() - self._started:,.0f} s"
        ]
        lines += [f"      failed  {record.name}: {record.reason}" for record in failed]
        lines += [f" interrupted  {record.name}: {record.reason}" for record in interrupted]
        unfinished = any(record.status == "running" or self.state.waits(record) for record in open_ones)
        if unfinished or self._closed or self.signals:
            lines.append(f"go on with\n  {self.state.command}")
        elif failed:
            retry = "" if "sweep.retry_failed=true" in self.state.command else " sweep.retry_failed=true"
            lines.append(f"try again with\n  {self.state.command}{retry}")
        lines.append(f"report  python -m lightning_apps.report sweep={self.folder}")
        return "\n".join(lines)

    def _why_it_ended(self) -> str:
        if self.signals:
            return f"stopped by {signal.Signals(self.signals[0]).name}"
        return self._closed or "sweep ended"

    def _start(self, record: JobRecord) -> None:
        log = self.folder / "logs" / f"{record.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self._attempts[record.name] = attempt = self._attempts.get(record.name, 0) + 1
        record.attempts += 1
        record.status, record.reason, record.exit_code, record.handle = "running", "", None, None
        record.started_at, record.ended_at = utc_now(), None
        self.state.write(self.folder)  # before there is a process: an engine that is killed here looks for one
        accelerator, devices, nodes = self.hardware
        log_start = log.stat().st_size if log.exists() else 0
        task = Task(
            name=record.name, command=[*self.command, *record.overrides], log=log,
            accelerator=accelerator, devices=devices, nodes=nodes,
        )  # fmt: skip
        try:
            handle = self.backend.submit(task)
        except BackendError as error:
            record.status, record.reason, record.ended_at = "failed", str(error), utc_now()
            self.state.write(self.folder)
            say(f"{self._place(record)} FAILED   {record.name}: {error}")
            self.source.ended(record)
            return
        record.handle, record.where = handle.key, handle.where
        self.state.write(self.folder)
        self.running.append(RunningJob(record, handle, time.monotonic(), log_start))
        again = f", attempt {attempt}" if attempt > 1 else ""
        resumes = ", resumes" if RunDirectory(Path(record.run_directory)).holds_a_run() else ""
        where = f" ({handle.where})" if handle.where else ""
        self._tell(f"{self._place(record)} started  {record.name}{where}{again}{resumes}{self._outlook()}")

    def _end(self, entry: RunningJob, sign: Sign) -> None:
        """Note how a job ended, and whether it is to be tried again."""
        record, log = entry.record, self.folder / "logs" / f"{entry.record.name}.log"
        record.ended_at, record.exit_code = utc_now(), sign.code
        record.status, record.reason = self._outcome(entry, sign, last_line(log, entry.log_start))
        place, seconds = self._place(record), time.monotonic() - entry.started
        tried = self._attempts.get(record.name, 1)
        failed = record.status == "failed"
        retry = not self.is_closed() and (
            (sign.again and record.status != "done")
            or (failed and sign.code != WRONG_CONFIGURATION and tried <= self.settings.retries)
        )
        if retry:
            record.status = "pending"
            self._again.append(record)
        elif failed and self.settings.on_failure == "stop":
            self._closed = self._closed or "stopped after a failure"
        try:
            if not retry:
                self.source.ended(record)
        finally:
            self.state.write(self.folder)
        if record.status == "done":
            if record.attempts == 1:
                self._seconds[record.name] = seconds
            self._tell(f"{place} done     {record.name}{_loss(record)}, {seconds:,.0f} s{self._outlook()}")
        elif failed:
            say(f"{place} FAILED   {record.name} (exit code {sign.code}): {record.reason}; log: {log}")
        elif record.status == "pruned":
            self._tell(f"{place} pruned   {record.name}{_loss(record)}, {seconds:,.0f} s{self._outlook()}")
        else:
            say(f"{place} stopped  {record.name}: {record.reason}")

    def _outcome(self, entry: RunningJob, sign: Sign, line: str) -> tuple[Status, str]:
        record, code = entry.record, sign.code
        summary = whole_summary(RunDirectory(Path(record.run_directory)))
        if summary and code in (0, None) and summary["status"] == "completed":
            record.wall_s = summary["wall_s"]
            return "done", ""
        if entry.asked_to_end is not None:
            return "failed", f"sweep.job_time: {human_time(self.job_time_s or 0)} are over; {line}"
        if summary and code in (0, None) and summary["status"] == "stopped":
            record.wall_s = summary["wall_s"]
            return ("pruned" if summary["reason"] == PRUNED else "pending"), str(summary["reason"])
        if sign.again:
            return "pending", sign.note or "its place was lost"
        for signum in STOP_SIGNALS:
            if code in (128 + signum, -signum):
                return "pending", f"stopped by {signal.Signals(signum).name}"
        note = f"{sign.note}; " if sign.note else ""
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            if name == "SIGKILL" and self.signals:
                return "pending", "killed while stopping"
            memory = " (out of memory?)" if name == "SIGKILL" and not note else ""
            return "failed", f"{note}killed by {name}{memory}; {line}"
        return "failed", f"{note}{line}" if code else f"{note}ended without a summary of a completed run; {line}"

    def _place(self, record: JobRecord) -> str:
        total = str(self.source.total)
        return f"[{self.source.jobs.index(record) + 1:>{len(total)}}/{total}]"

    def _outlook(self) -> str:
        records, now = self.source.jobs, time.monotonic()
        finished = [
            (job_size(record.values), self._seconds.get(record.name, record.wall_s))
            for record in records
            if record.status == "done" and record.wall_s is not None
        ]
        running = [(job_size(entry.record.values), now - entry.started) for entry in self.running]
        waiting = [job_size(record.values) for record in records if record.status == "pending"]
        ended = sum(record.status in ("done", "pruned", "failed") for record in records)
        unknown = self.source.total - len(records)  # a search has not thought of these yet
        left_s = time_left(finished, running, [*waiting, *[1.0] * unknown], self.backend.places)
        left = "" if left_s is None or ended >= self.source.total else f", about {human_time(left_s)} left"
        return f"; {sum(record.status == 'done' for record in records)} of {self.source.total} done{left}"

    @contextmanager
    def _signals_noted(self) -> Iterator[None]:
        def note(signum: int, frame: FrameType | None) -> None:
            self.signals.append(signum)

        before = {signum: signal.signal(signum, note) for signum in heeded_signals()}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _answer_signals(self) -> None:
        while self._answered < len(self.signals):
            received = self.signals[self._answered]
            self._answered += 1
            self._closed = self._closed or signal.Signals(received).name
            passed_on = signal.SIGTERM if received == signal.SIGHUP else received
            if self._answered > 1:
                passed_on = signal.SIGINT if self._answered == 2 else signal.SIGKILL
            manner = {1: "save after their step; again stops them at once", 2: "stop at once; again kills them"}
            say(
                f"{signal.Signals(received).name}: {len(self.running)} running jobs "
                f"{manner.get(self._answered, 'are killed')}"
            )
            for entry in self.running:
                self.backend.cancel(entry.handle, passed_on)


def _loss(record: JobRecord) -> str:
    summary = whole_summary(RunDirectory(Path(record.run_directory)))
    loss = (summary or {}).get("metrics", {}).get("val/loss")
    return f": val/loss {loss:.4g}" if isinstance(loss, float) else ""


def last_line(log: Path, start: int) -> str:
    """What a job's output says of its failure: the last line that begins with `error:`, else the last line at all."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - 65536))
        text = file.read().decode(errors="replace").replace("\r", "\n")
        lines = [line for raw in text.splitlines() if (line := "".join(filter(str.isprintable, raw)).strip())]
        errors = [line for line in lines if line.startswith("error:")]
        if lines:
            return (errors or lines)[-1][:500]
    return "no output"


def utc_now() -> str:
    """The time, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
