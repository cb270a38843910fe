"""Running the jobs of a sweep: processes, signals, exit codes, and a line for each start and end."""

import contextlib
import datetime
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from lightning_apps.process.console import human_time, say
from lightning_apps.process.file_lock import is_locked, lock_owner, lock_soon, sign_lock
from lightning_apps.process.parent_death import PARENT_VARIABLE
from lightning_apps.process.safe_stop import SIGNALS, heeded_signals
from lightning_apps.run_files.directory import RunDirectory, whole_summary
from lightning_apps.sweeps.grid import Job, SweepSettings, time_left
from lightning_apps.sweeps.state import JobRecord, Status, SweepState

POLL_S = 0.2
STOP_SIGNALS = SIGNALS
"""What makes a sweep stop; a closed terminal (SIGHUP) counts as SIGTERM for the jobs, which are in other sessions."""
WRONG_CONFIGURATION = 2
"""Exit code of a job that fails again however often it is tried."""


@dataclass(frozen=True)
class Slot:
    """A place for one job at a time.

    Attributes:
        devices: CUDA_VISIBLE_DEVICES of its jobs; None leaves the sweep's own.
        threads: OMP_NUM_THREADS of its jobs; None leaves the sweep's own.
    """

    devices: str | None
    threads: int | None

    def environment(self) -> dict[str, str]:
        """Environment of a job: this process's own, with the slot's share of the machine."""
        # run_command sets this for itself; a job reports its mistakes in one line
        environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
        environment[PARENT_VARIABLE] = str(os.getpid())
        if self.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        return environment


@dataclass(frozen=True)
class RunningJob:
    """A job whose process was started and has not been waited for.

    Attributes:
        job: what runs.
        slot: where it runs.
        process: the train command.
        started: time.monotonic() of its start, in seconds.
        log_start: byte of the job's log at which its output begins.
    """

    job: Job
    slot: Slot
    process: subprocess.Popen[bytes]
    started: float
    log_start: int


class JobRunner:
    """Runs jobs in free slots until none is left or somebody asks to stop.

    The first signal is passed on, and every job ends saved; the second asks the jobs to stop at once; the third kills
    them. Jobs are in sessions of their own, so that Ctrl-C in a terminal reaches them once, from here.

    Args:
        folder: where the sweep keeps its state, its logs and its locks.
        state: what is known of all jobs; written at every start and end of one.
        jobs: what this start runs, in order.
        slots: how many run at once, and on what.
        settings: the `sweep` node of the configuration.
        command: the words that start every job, up to its overrides.
    """

    def __init__(
        self,
        *,
        folder: Path,
        state: SweepState,
        jobs: Sequence[Job],
        slots: Sequence[Slot],
        settings: SweepSettings,
        command: Sequence[str],
    ) -> None:
        self.folder = folder
        self.state = state
        self.jobs = list(jobs)
        self.slots = list(slots)
        self.settings = settings
        self.command = list(command)
        self.running: list[RunningJob] = []
        self.signals: list[int] = []
        self._answered = 0
        self._attempts = dict.fromkeys((job.name for job in jobs), 0)
        self._seconds: dict[str, float] = {}  # of jobs that this start ran from beginning to end
        self._started = time.monotonic()
        self._closed = False

    def look_at_runs(self) -> None:
        """Set every job's status from what its run says, and write the state."""
        for job in self.jobs:
            record = self.state.job(job.name)
            summary = whole_summary(RunDirectory(Path(record.run_directory)))
            status = summary["status"] if summary else None
            if status == "completed":
                record.status, record.reason = "done", ""
                record.wall_s = summary["wall_s"] if summary else None
                continue
            failed = record.status == "failed" or (record.status == "pending" and status == "failed")
            if failed and not self.settings.retry_failed:
                record.status = "failed"
                record.reason = record.reason or str(summary["reason"] if summary else "")
            else:
                record.status = "pending"
        self.state.write(self.folder)

    def run(self) -> int:
        """Run what is pending.

        Returns:
            0 where all jobs are done or out of their time budget, 1 where one is not, 128 + signal when stopped.
        """
        queue = [job for job in self.jobs if self.state.job(job.name).status == "pending"]
        with self._signals_noted():
            while True:
                self._answer_signals()
                while queue and not self._closed and len(self.running) < len(self.slots):
                    self._start(queue.pop(0), queue)
                for entry in list(self.running):
                    if entry.process.poll() is not None:
                        self.running.remove(entry)
                        if self._end(entry, queue):
                            queue.insert(0, entry.job)
                if not self.running and (self._closed or not queue):
                    break
                time.sleep(POLL_S)
        if self.signals:
            return 128 + self.signals[0]
        return 0 if all(map(self._is_well, self.jobs)) else 1

    def closing_lines(self) -> str:
        """How the sweep ended, which jobs are not done and why, and what to do next."""
        records = [self.state.job(job.name) for job in self.jobs]
        done = sum(record.status == "done" for record in records)
        open_ones = [record for record in records if record.status != "done"]
        failed = [record for record in open_ones if record.status == "failed"]
        interrupted = [record for record in open_ones if record.status == "pending" and record.reason]
        lines = [
            f"\n{self._why_it_ended()}: {done} of {len(records)} jobs done, {time.monotonic() - self._started:,.0f} s"
        ]
        lines += [f"      failed  {record.name}: {record.reason}" for record in failed]
        lines += [f" interrupted  {record.name}: {record.reason}" for record in interrupted]
        if len(failed) < len(open_ones):
            lines.append(f"go on with\n  {self.state.command}")
        elif failed:
            retry = "" if "sweep.retry_failed=true" in self.state.command else " sweep.retry_failed=true"
            lines.append(f"try again with\n  {self.state.command}{retry}")
        lines.append(f"report  python -m lightning_apps.report sweep={self.folder}")
        return "\n".join(lines)

    def _why_it_ended(self) -> str:
        if self.signals:
            return f"stopped by {signal.Signals(self.signals[0]).name}"
        return "stopped after a failure" if self._closed else "sweep ended"

    def _is_well(self, job: Job) -> bool:
        record = self.state.job(job.name)
        return record.status == "done" or record.reason.startswith("trainer.max_time")

    def _start(self, job: Job, queue: Sequence[Job]) -> None:
        record = self.state.job(job.name)
        taken = [entry.slot for entry in self.running]
        slot = next(slot for slot in self.slots if not any(slot is other for other in taken))
        log = self.folder / "logs" / f"{job.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_soon(lock_path(self.folder, job.name))
        if lock is None:
            raise RuntimeError(f"job {job.name} is running already")
        self._attempts[job.name] += 1
        record.attempts += 1
        record.status, record.reason, record.exit_code = "running", "", None
        record.started_at, record.ended_at, record.devices = utc_now(), None, slot.devices
        self.state.write(self.folder)
        try:
            with log.open("ab") as output:
                log_start = output.tell()
                # the job inherits the lock and keeps it as long as it lives, whatever becomes of this process
                process = subprocess.Popen(  # noqa: S603
                    [*self.command, *record.overrides],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=slot.environment(),
                    pass_fds=(lock,),
                    start_new_session=True,
                )
            sign_lock(lock, {"pid": process.pid})
        finally:
            os.close(lock)
        self.running.append(RunningJob(job, slot, process, time.monotonic(), log_start))
        again = f", attempt {self._attempts[job.name]}" if self._attempts[job.name] > 1 else ""
        resumes = ", resumes" if RunDirectory(Path(record.run_directory)).holds_a_run() else ""
        where = f" (devices {slot.devices})" if slot.devices is not None else ""
        say(f"{self._place(job)} started  {job.name}{where}{again}{resumes}{self._outlook(queue)}")

    def _end(self, entry: RunningJob, queue: Sequence[Job]) -> bool:
        """Note how a process ended; True where the job is to be tried again."""
        record = self.state.job(entry.job.name)
        code = entry.process.returncode
        if code:  # what a crashed job may have left behind: other ranks, loader workers
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(entry.process.pid, signal.SIGKILL)
        log = self.folder / "logs" / f"{entry.job.name}.log"
        record.ended_at, record.exit_code = utc_now(), code
        record.status, record.reason = self._outcome(record, code, last_line(log, entry.log_start))
        retry = (
            record.status == "failed"
            and code != WRONG_CONFIGURATION
            and self._attempts[entry.job.name] <= self.settings.retries
            and not self._closed
        )
        if retry:
            record.status = "pending"
        elif record.status == "failed" and self.settings.on_failure == "stop":
            self._closed = True
        self.state.write(self.folder)
        place, seconds = self._place(entry.job), time.monotonic() - entry.started
        if record.status == "done":
            if record.attempts == 1:
                self._seconds[entry.job.name] = seconds
            say(f"{place} done     {entry.job.name}{self._loss(record)}, {seconds:,.0f} s{self._outlook(queue)}")
        elif record.status == "failed" or retry:
            say(f"{place} FAILED   {entry.job.name} (exit code {code}): {record.reason}; log: {log}")
        else:
            say(f"{place} stopped  {entry.job.name}: {record.reason}")
        return retry

    def _outcome(self, record: JobRecord, code: int, line: str) -> tuple[Status, str]:
        summary = whole_summary(RunDirectory(Path(record.run_directory)))
        status = summary["status"] if summary else None
        if summary and code == 0 and status == "completed":
            record.wall_s = summary["wall_s"]
            return "done", ""
        if summary and code == 0 and status == "stopped":
            return "pending", str(summary["reason"])
        for signum in STOP_SIGNALS:
            if code in (128 + signum, -signum):
                return "pending", f"stopped by {signal.Signals(signum).name}"
        if code < 0:
            name = signal.Signals(-code).name
            if name == "SIGKILL" and self.signals:
                return "pending", "killed while stopping"
            return "failed", f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        return "failed", line if code else f"ended without a summary of a completed run; {line}"

    def _place(self, job: Job) -> str:
        number = str(len(self.jobs))
        return f"[{self.jobs.index(job) + 1:>{len(number)}}/{number}]"

    def _loss(self, record: JobRecord) -> str:
        summary = whole_summary(RunDirectory(Path(record.run_directory)))
        loss = (summary or {}).get("metrics", {}).get("val/loss")
        return f": val/loss {loss:.4g}" if isinstance(loss, float) else ""

    def _outlook(self, queue: Sequence[Job]) -> str:
        records = [(job, self.state.job(job.name)) for job in self.jobs]
        finished = [
            (job.size, self._seconds.get(job.name, record.wall_s))
            for job, record in records
            if record.status == "done" and record.wall_s is not None
        ]
        now = time.monotonic()
        left_s = time_left(
            finished,
            [(entry.job.size, now - entry.started) for entry in self.running],
            [job.size for job in queue],
            len(self.slots),
        )
        count = sum(record.status == "done" for _, record in records)
        left = "" if left_s is None or not (queue or self.running) else f", about {human_time(left_s)} left"
        return f"; {count} of {len(self.jobs)} done{left}"

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
            self._closed = True
            passed_on = signal.SIGTERM if received == signal.SIGHUP else received
            if self._answered > 1:
                passed_on = signal.SIGINT if self._answered == 2 else signal.SIGKILL
            manner = {1: "save after their step; again stops them at once", 2: "stop at once; again kills them"}
            say(
                f"{signal.Signals(received).name}: {len(self.running)} running jobs "
                f"{manner.get(self._answered, 'are killed')}"
            )
            for entry in self.running:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    if passed_on == signal.SIGKILL:
                        os.killpg(entry.process.pid, signal.SIGKILL)
                    else:
                        entry.process.send_signal(passed_on)


def lock_path(folder: Path, job: str) -> Path:
    """The file that a job's process holds locked."""
    return folder / "locks" / f"{job}.lock"


def is_running(folder: Path, job: str) -> bool:
    """Whether some process works on a job."""
    return is_locked(lock_path(folder, job))


def wait_for_orphans(folder: Path, names: Sequence[str]) -> None:
    """Wait until no process of an earlier start works on these jobs.

    On Linux such processes have been told to save and end; elsewhere they go on to their end.
    """
    told = False
    while True:
        alive = [
            f"{name} (process {lock_owner(lock_path(folder, name)).get('pid', 'unknown')})"
            for name in names
            if is_running(folder, name)
        ]
        if not alive:
            return
        if not told:
            told = True
            say(f"waiting for {len(alive)} jobs that an earlier start left running: {', '.join(alive)}")
        time.sleep(POLL_S)


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
    """The time, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
