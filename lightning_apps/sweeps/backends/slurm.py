"""Jobs on a cluster by SLURM, through submitit: arrays, pre-emption and requeueing are theirs.

submitit writes and reads pickles in the sweep's folder: the engine only writes them, and what it reads back is a number
and what `sacct` says.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # read when submitit is imported; at this signal a run saves itself

import submitit
from submitit import SlurmJob
from submitit.core.core import Executor, Job
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import DelayedSubmission
from submitit.slurm.slurm import SlurmInfoWatcher

from lightning_apps.errors import ConfigError
from lightning_apps.run_files.atomic_files import write_json_atomically, write_text_atomically
from lightning_apps.sweeps.backends.backend import Handle, Sign, Task
from lightning_apps.sweeps.backends.cluster_task import TrainTask
from lightning_apps.sweeps.backends.settings import SlurmSettings

logging.getLogger("submitit").setLevel(logging.ERROR)  # a site without accounting would be warned of at every question

ALIVE: dict[str, Literal["queued", "running"]] = {
    **dict.fromkeys(("PENDING", "REQUEUED", "CONFIGURING", "UNKNOWN", "READY"), "queued"),
    **dict.fromkeys(("RUNNING", "COMPLETING", "SUSPENDED"), "running"),
}
LOST = {"NODE_FAIL": "the node failed", "BOOT_FAIL": "the node did not start", "PREEMPTED": "pre-empted"}
"""States of jobs that are no more and not to blame."""
ENDED = {"OUT_OF_MEMORY": "out of memory", "TIMEOUT": "the time limit of the job is over", "CANCELLED": "cancelled",
         "DEADLINE": "its deadline is over"}  # fmt: skip
POLL_S = 0.2
ASK_S = 15
"""Seconds between two questions to `sacct`, which loads a cluster's database; how a job ended is told by a file."""
APPEARS_S = 20.0
"""How long a shared file system may take to show what a node wrote."""


class SlurmTask(TrainTask):
    """The train command as a job of SLURM; of several processes of a job the first says how it ended.

    Args:
        command: words of the train command.
        log: what its output is appended to.
        folder: that the command starts in.
        code: file that gets the exit code, negative for a signal; a shared folder is all that engine and node share.
    """

    def __init__(self, command: Sequence[str], log: Path, folder: Path, *, code: Path) -> None:
        super().__init__(command, log, folder)
        self.code = code

    def __call__(self) -> None:
        """Run the command to its end.

        Raises:
            SystemExit: it failed, so that the cluster's own records say so too.
        """
        process = self.start()
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda number, _: self.pass_on(number))
        while (code := process.poll()) is None:
            time.sleep(POLL_S)  # not wait(): it would hold the lock that the signal's handler needs to wait
        if os.environ.get("SLURM_PROCID", "0") == "0":
            write_text_atomically(self.code, f"{code}\n")
        if code:
            raise SystemExit(code if code > 0 else 128 - code)

    def pass_on(self, signum: int) -> None:
        """Hand a signal to the command, unless SLURM has done so: it signals all processes of a job."""
        if "SLURM_JOB_ID" not in os.environ:
            super().pass_on(signum)

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit at its signal, 90 seconds before the end; queued again, the command goes on."""
        self.save()
        return DelayedSubmission(self)


class SlurmBackend:
    """Jobs of a cluster; tasks that come together become an array.

    The engine may be killed: which job of the cluster is which task stands in `slurm.json`, written ahead of `sbatch`.

    Args:
        folder: of the sweep, on a file system that all nodes share.
        name: of the sweep; the cluster's jobs are called after it.
        settings: what the site asks for.
        places: tasks that may be queued or running at once.
        cluster: `slurm`, or `local` for submitit's own executor on this machine.

    Raises:
        ConfigError: there is no SLURM here, or submitit does not know a parameter.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        settings: SlurmSettings,
        *,
        places: int,
        cluster: Literal["slurm", "local"] = "slurm",
    ) -> None:
        self.folder, self.name, self.places, self.cluster = folder / "slurm", name, places, cluster
        self.settings = settings
        self._waiting: dict[str, Task] = {}  # by key, until the next poll
        self._jobs: dict[str, Job[None]] = {}  # by key
        self._refused: dict[str, str] = {}  # by key, why
        self._silent_since: dict[str, float] = {}  # by key: ended without a code
        SlurmJob.watcher = SlurmInfoWatcher(delay_s=ASK_S)
        self._executor(Task(name="", command=(), log=folder, accelerator="cpu", devices=1))  # mistakes are found now

    def __str__(self) -> str:
        """How many at once, and where."""
        partition = self.settings.partition
        return f"{self.places} on {self.cluster}{'' if partition is None else f', partition {partition}'}"

    def submit(self, task: Task) -> Handle:
        """Take a task; those that were taken until the next poll are submitted together."""
        key = uuid.uuid4().hex[:12]
        self._waiting[key] = task
        return Handle(key, self.cluster)

    def poll(self, handle: Handle) -> Sign:
        """By the exit code that the task left, else by what SLURM says of it."""
        self._submit_waiting()
        key = handle.key
        if key in self._refused:
            return Sign("ended", None, self._refused[key])
        with contextlib.suppress(OSError, ValueError):
            return Sign("ended", int(self._code(key).read_text(encoding="utf-8")))
        state = self._jobs[key].state.upper().split(" ")[0]  # CANCELLED by 1000
        if state in ALIVE:
            return Sign(ALIVE[state])
        if state in LOST:
            return Sign("ended", None, LOST[state], again=True)
        if state in ENDED:
            return Sign("ended", -signal.SIGKILL, ENDED[state])
        if time.monotonic() - self._silent_since.setdefault(key, time.monotonic()) < APPEARS_S:
            return Sign("running")
        return Sign(
            "ended", 1, f"{state.lower()}, and left no exit code in {self.folder}: do the nodes share this folder?"
        )

    def cancel(self, handle: Handle, signum: int) -> None:
        """Pass a signal on; SIGKILL cancels the job of the cluster."""
        if self._waiting.pop(handle.key, None) is not None:
            self._refused[handle.key] = "cancelled before it was submitted"
            return
        job = self._jobs[handle.key]
        with contextlib.suppress(subprocess.CalledProcessError, ProcessLookupError, OSError):
            if signum == signal.SIGKILL:
                job.cancel(check=False)
            elif self.cluster == "slurm":
                name = signal.Signals(signum).name
                # `--batch` would reach the shell only; SIGUSR1 would have it queued again
                name = "SIGTERM" if name == "SIGUSR1" else name
                subprocess.run(["scancel", f"--signal={name}", job.job_id], check=False)  # noqa: S603, S607
            else:
                os.kill(int(job.job_id), signum)

    def recover(self, started: Mapping[str, Handle]) -> Mapping[str, Handle]:
        """Jobs of the cluster live on without their engine; it finds them again by slurm.json."""
        known = self._known()
        for token, keys in known["submitting"].items():  # the engine was killed beside sbatch
            known["jobs"] |= dict(zip(keys, self._ids_by_name(token, len(keys)), strict=False))
        found = {}
        for name, handle in started.items():
            if (number := known["jobs"].get(handle.key)) is None:
                continue
            job: Job[None] = SlurmJob(folder=self.folder / "%j", job_id=number)
            if self._code(handle.key).exists() or job.get_info(mode="force"):
                self._jobs[handle.key], found[name] = job, handle
        self._write()
        return found

    def close(self) -> None:
        """Nothing is held: jobs of the cluster belong to it."""

    def _executor(self, task: Task) -> Executor:
        parameters = self.settings.parameters()
        try:
            executor = submitit.AutoExecutor(
                folder=self.folder / "%j", cluster=self.cluster, slurm_max_num_timeout=self.settings.max_timeouts
            )
            if task.accelerator in ("gpu", "cuda"):  # `auto` takes what the site gives, by sweep.slurm.file
                parameters["gpus_per_node"] = task.devices
            executor.update_parameters(**parameters, nodes=task.nodes, tasks_per_node=task.devices)
        except (RuntimeError, ValueError, NameError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"sweep.backend=slurm: {reason}; start it on a node of the cluster that has sbatch and srun, with "
                "parameters of submitit in sweep.slurm, or use sweep.backend=local"
            ) from error
        return executor

    def _submit_waiting(self) -> None:
        groups: dict[tuple[str, int, int], dict[str, Task]] = {}
        for key, task in self._waiting.items():
            groups.setdefault((task.accelerator, task.devices, task.nodes), {})[key] = task
        self._waiting = {}
        for tasks in groups.values():
            token = f"{self.name}-{uuid.uuid4().hex[:8]}"
            executor = self._executor(next(iter(tasks.values())))
            executor.update_parameters(name=token)
            self._write(submitting={token: list(tasks)})
            try:
                with executor.batch():
                    jobs = [
                        executor.submit(SlurmTask(task.command, task.log.absolute(), Path.cwd(), code=self._code(key)))
                        for key, task in tasks.items()
                    ]
                self._jobs |= dict(zip(tasks, jobs, strict=True))
            except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError, OSError) as error:
                reason = str(error).strip().splitlines()[-1]
                self._refused |= dict.fromkeys(tasks, f"sbatch refused it: {reason}")
            self._write()

    def _code(self, key: str) -> Path:
        return self.folder.absolute() / f"{key}.code"

    def _known(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / "slurm.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {"submitting": {}, "jobs": {}}

    def _write(self, submitting: Mapping[str, Sequence[str]] | None = None) -> None:
        """Which job of the cluster is which task, earlier starts included."""
        self.folder.mkdir(parents=True, exist_ok=True)
        jobs = {**self._known()["jobs"], **{key: job.job_id for key, job in self._jobs.items()}}
        write_json_atomically(self.folder / "slurm.json", {"submitting": submitting or {}, "jobs": jobs})

    @staticmethod
    def _ids_by_name(name: str, count: int) -> list[str]:
        """Numbers of the tasks of an array that was submitted under a name; none where it was not."""
        command = ["squeue", "--noheader", "--states=all", "--format=%F", f"--name={name}"]
        listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()  # noqa: S603
        if not listed:
            return []
        return [listed[0]] if count == 1 else [f"{listed[0]}_{number}" for number in range(count)]
