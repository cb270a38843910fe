"""A sweep of processes that only pretend to train (fake_job.py)."""

import sys

from lightning_apps.process.console import open_console
from lightning_apps.sweeps.grid import Job, SweepSettings
from lightning_apps.sweeps.jobs import JobRunner, Slot
from lightning_apps.sweeps.state import JobRecord, SweepState, read_state

COMMAND = [sys.executable, "-m", "tests.fakes.fake_job"]


def make(folder, behaviours, *, parallel=1, slots=None, **changes):
    """A runner whose jobs behave as they are told; what an earlier one wrote is kept."""
    settings = {
        "name": "s", "grid": {}, "overrides": [], "parallel": parallel, "devices": None, "retries": 0,
        "retry_failed": False, "on_failure": "continue", **changes,
    }  # fmt: skip
    jobs = [Job(name, {"seed": seed}) for seed, name in enumerate(behaviours)]
    known = {record.name: record for record in before.jobs} if (before := read_state(folder)) else {}
    records = []
    for job in jobs:
        directory = str(folder / "runs" / job.name)
        record = known.get(job.name, JobRecord(job.name, dict(job.values), [], directory))
        record.overrides = [directory, behaviours[job.name]]
        records.append(record)
    open_console()
    runner = JobRunner(
        folder=folder, state=SweepState("s", "x", "python -m x sweep=s", {"seed": [0]}, {}, records), jobs=jobs,
        slots=slots or [Slot(None, None) for _ in range(parallel)], settings=SweepSettings(**settings),
        command=COMMAND,
    )  # fmt: skip
    runner.look_at_runs()
    return runner
