"""A sweep of processes that only pretend to train (fake_job.py)."""

import sys

from lightning_apps.process.console import open_console
from lightning_apps.sweeps.backends.local import LocalBackend, Place
from lightning_apps.sweeps.engine import Engine, Queue
from lightning_apps.sweeps.grid import SweepSettings
from lightning_apps.sweeps.state import JobRecord, SweepState, read_state

COMMAND = [sys.executable, "-m", "tests.fakes.fake_job"]
SETTINGS = {
    "name": "s", "grid": {}, "overrides": [], "backend": "local",
    "slurm": {}, "ray": {}, "parallel": None, "devices": None, "retries": 0,
    "retry_failed": False, "on_failure": "continue", "job_time": None, "max_time": None,
    "search": None, "sampler": "tpe", "trials": 20, "objective": None, "pruner": None, "seed": 0,
}  # fmt: skip


class FakeSweep(Engine):
    """An engine whose jobs are known."""

    def run(self):
        """Run what is pending."""
        return super().run(Queue(self.state.jobs))


def make(folder, behaviours, *, parallel=1, places=None, times=(None, None), backend=None, **changes):
    """An engine whose jobs behave as they are told; what an earlier one wrote is kept."""
    known = {record.name: record for record in before.jobs} if (before := read_state(folder)) else {}
    records = []
    for seed, name in enumerate(behaviours):
        directory = str(folder / "runs" / name)
        record = known.get(name, JobRecord(name, {"seed": seed}, [], directory))
        record.overrides = [directory, behaviours[name]]
        records.append(record)
    open_console()
    places = places or [Place(None, None) for _ in range(parallel)]
    engine = FakeSweep(
        folder=folder, state=SweepState("s", "x", "python -m x sweep=s", {"seed": [0]}, {}, records),
        backend=backend or LocalBackend(folder, places), settings=SweepSettings(**{**SETTINGS, **changes}),
        command=COMMAND, job_time_s=times[0], max_time_s=times[1],
    )  # fmt: skip
    engine.look_at_runs(records)
    return engine
