"""Jobs as processes of this machine, each in a place with devices and threads of its own."""

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_apps.process.console import say
from lightning_apps.process.file_lock import is_locked, lock_owner, lock_soon, sign_lock
from lightning_apps.process.parent_death import PARENT_VARIABLE
from lightning_apps.sweeps.backends.backend import BackendError, Handle, Sign, Task

POLL_S = 0.2
ORPHAN_GRACE_S = 60.0
"""How long a job that was told to save and end, since its engine died, may take before it is killed."""


@dataclass(frozen=True)
class Place:
    """Room for one job at a time.

    Attributes:
        devices: CUDA_VISIBLE_DEVICES of its jobs; None leaves the sweep's own.
        threads: OMP_NUM_THREADS of its jobs; None leaves the sweep's own.
    """

    devices: str | None
    threads: int | None

    def environment(self) -> dict[str, str]:
        """Environment of a job: this process's own, with the place's share of the machine."""
        # run_command sets this for itself; a job reports its mistakes in one line
        environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
        environment[PARENT_VARIABLE] = str(os.getpid())
        if self.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        return environment


class LocalBackend:
    """Processes in sessions of their own, so that Ctrl-C in a terminal reaches them once, from the engine.

    A job holds a lock as long as it lives, and on Linux it saves and ends when its engine dies.

    Args:
        folder: where the locks are.
        rooms: the places.
    """

    def __init__(self, folder: Path, rooms: Sequence[Place]) -> None:
        self.folder = folder
        self.rooms = list(rooms)
        self._processes: dict[str, tuple[subprocess.Popen[bytes], Place]] = {}

    def __str__(self) -> str:
        """How many at once, and on what."""
        devices = sorted({room.devices for room in self.rooms if room.devices is not None})
        where = f" on devices {'; '.join(devices)}" if devices else ""
        threads = self.rooms[0].threads
        return f"{self.places}{where}{'' if threads is None else f', {threads} threads each'}"

    @property
    def places(self) -> int:
        """Jobs at once."""
        return len(self.rooms)

    def submit(self, task: Task) -> Handle:
        """Start a process in the first free place."""
        taken = [room for process, room in self._processes.values() if process.returncode is None]
        place = next(room for room in self.rooms if not any(room is other for other in taken))
        lock = lock_soon(lock_path(self.folder, task.name))
        if lock is None:
            raise BackendError(f"job {task.name} is running already")
        try:
            with task.log.open("ab") as output:
                # the job inherits the lock and keeps it as long as it lives, whatever becomes of this process
                process = subprocess.Popen(  # noqa: S603
                    task.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=place.environment(),
                    pass_fds=(lock,),
                    start_new_session=True,
                )
            sign_lock(lock, {"pid": process.pid, "host": platform.node()})
        except OSError as error:
            raise BackendError(f"job {task.name} cannot be started: {error.strerror or error}") from error
        finally:
            os.close(lock)
        self._processes[str(process.pid)] = process, place
        return Handle(str(process.pid), "" if place.devices is None else f"devices {place.devices}")

    def poll(self, handle: Handle) -> Sign:
        """Whether the process is there; what one that failed may have left behind, ranks and loaders, is killed."""
        process, _ = self._processes[handle.key]
        ended = process.returncode is not None
        code = process.poll()
        if code is None:
            return Sign("running")
        if code and not ended:
            _kill_group(process.pid)
        return Sign("ended", code)

    def cancel(self, handle: Handle, signum: int) -> None:
        """Send the signal to the job's first process, which tells the others; SIGKILL goes to all."""
        process, _ = self._processes[handle.key]
        if signum == signal.SIGKILL:
            _kill_group(process.pid)
        elif process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                process.send_signal(signum)

    def recover(self, started: Mapping[str, Handle]) -> Mapping[str, Handle]:
        """Wait until no process of an earlier engine works on these jobs.

        On Linux such processes have been told to save and end, and one that hangs is killed; elsewhere they go on to
        their end.
        """
        began, told = time.monotonic(), False
        while alive := {
            name: lock_owner(lock_path(self.folder, name)) for name in started if is_running(self.folder, name)
        }:
            if not told:
                told = True
                jobs = ", ".join(f"{name} (process {owner.get('pid', 'unknown')})" for name, owner in alive.items())
                say(f"waiting for {len(alive)} jobs that an earlier start left running: {jobs}")
            if sys.platform == "linux" and time.monotonic() - began >= ORPHAN_GRACE_S:
                for name, owner in alive.items():
                    # the lock is held, so that the number still is that of the job's processes
                    if owner.get("host") == platform.node() and isinstance(owner.get("pid"), int):
                        say(f"{name} hangs: its processes are killed")
                        _kill_group(owner["pid"])
                began = time.monotonic()
            time.sleep(POLL_S)
        return {}

    def close(self) -> None:
        """Nothing is held."""


def _kill_group(pid: int) -> None:
    """Kill all processes of a job, which is the leader of its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def lock_path(folder: Path, job: str) -> Path:
    """The file that a job's process holds locked."""
    return folder / "locks" / f"{job}.lock"


def is_running(folder: Path, job: str) -> bool:
    """Whether some process of this machine works on a job."""
    return is_locked(lock_path(folder, job))
