"""The state of a sweep: `<run.output_root>/sweeps/<name>/sweep.json`.

The state is a record for people and for the report. Whether a job is done is read from the job's own summary.json, so
that a lost state costs nothing.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from lightning_apps.errors import ConfigError
from lightning_apps.run_files.atomic_files import json_safe, write_json_atomically
from lightning_apps.run_files.settings import different_settings

Status = Literal["pending", "running", "done", "failed", "pruned"]


@dataclass
class JobRecord:
    """What the sweep's state knows of one job.

    Attributes:
        name: what the job is called within the sweep; its run is called `<sweep>-<name>`.
        values: full key of the grid -> value.
        overrides: words of its command that make its configuration, those for all jobs included.
        run_directory: where its run writes.
        status: `pending` also means interrupted: it is resumed by the next start.
        reason: why it failed or was interrupted, in one line.
        attempts: processes started for it.
        exit_code: what the last process returned; negative for a signal that killed it, None before its end.
        started_at: when the last process was started, ISO 8601 in UTC.
        ended_at: when the last process ended, ISO 8601 in UTC; None before its end.
        wall_s: seconds of the run over all its processes, from its summary.
        handle: what its back end knew the last one by.
        where: where that ran, for people.
    """

    name: str
    values: dict[str, Any]
    overrides: list[str]
    run_directory: str
    status: Status = "pending"
    reason: str = ""
    attempts: int = 0
    exit_code: int | None = None
    started_at: str | None = None
    ended_at: str | None = None
    wall_s: float | None = None
    handle: str | None = None
    where: str = ""

    @property
    def is_out_of_time(self) -> bool:
        """Whether trainer.max_time ended it: it has had what it was given."""
        return self.status == "pending" and self.reason.startswith("trainer.max_time")


@dataclass
class SweepState:
    """What sweep.json holds.

    Attributes:
        name: what the sweep is called.
        experiment: which experiment all its jobs run.
        command: command line of the last start.
        grid: full key -> values, as the last start gave them.
        settings: resolved configuration that the jobs share, without the grid's keys.
        jobs: what is known of the jobs of all starts; those that left the grid stay.
        search: of a search: `objective` (metric -> min or max), `trials` (number -> job, state, values, evaluations,
            params) and `importance` (metric -> key -> share); None for a grid.
    """

    name: str
    experiment: str
    command: str
    grid: dict[str, list[Any]]
    settings: dict[str, Any]
    jobs: list[JobRecord] = field(default_factory=list)
    search: dict[str, Any] | None = None

    def write(self, folder: Path) -> None:
        """Write sweep.json, whole or not at all."""
        write_json_atomically(folder / "sweep.json", asdict(self))

    def waits(self, record: JobRecord) -> bool:
        """Whether the next start goes on with a job; a search has its result of one that is out of time."""
        return record.status == "pending" and (self.search is None or not record.is_out_of_time)

    def job(self, name: str) -> JobRecord:
        """The record of a job."""
        return next(record for record in self.jobs if record.name == name)


def read_state(folder: Path) -> SweepState | None:
    """The state in a sweep's folder, or None where there is none.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / "sweep.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = {entry.name for entry in fields(JobRecord)}  # other versions have others
        jobs = [
            JobRecord(**{key: value for key, value in record.items() if key in known}) for record in content.pop("jobs")
        ]
        return SweepState(**content, jobs=jobs)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path} is no state of a sweep ({str(error).splitlines()[0]}); delete it: what is done is found again "
            "from the runs"
        ) from error


def continue_state(before: SweepState | None, now: SweepState, folder: Path) -> SweepState:
    """The state of a new start: what is known of its jobs is kept, as are jobs that have left the grid.

    Args:
        before: what the earlier starts left; None at the first.
        now: what this start wants, every job pending.
        folder: where the sweep lies, for messages.

    Raises:
        ConfigError: this start contradicts the earlier ones.
    """
    if before is None:
        return now
    other_name = "; choose another sweep.name"
    if before.experiment != now.experiment:
        raise ConfigError(f"{folder} is a sweep of experiment={before.experiment}, not {now.experiment}{other_name}")
    if (before.search is None) != (now.search is None):
        raise ConfigError(f"{folder} is a {'search' if before.search is not None else 'grid'}{other_name}")
    if before.grid.keys() != now.grid.keys():
        raise ConfigError(
            f"{folder} has the grid keys {', '.join(sorted(before.grid))}, now they are {', '.join(sorted(now.grid))}; "
            f"values may be added, keys may not{other_name}"
        )
    if different := different_settings(before.settings, json_safe(now.settings)):
        raise ConfigError(
            f"{folder} was started with other settings ({'; '.join(different[:3])}); restore them, or choose another "
            "sweep.name"
        )
    known = {record.name: record for record in before.jobs}
    jobs = []
    for record in now.jobs:
        earlier = known.pop(record.name, record)
        jobs.append(
            JobRecord(**{**asdict(earlier), "overrides": record.overrides, "run_directory": record.run_directory})
        )
    search = now.search if before.search is None else {**before.search, **(now.search or {})}
    return SweepState(**{**vars(now), "jobs": [*jobs, *known.values()], "search": search})
