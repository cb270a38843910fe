"""What the runs of a sweep came to: gathered from its state and the run directories, grouped over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_apps.errors import ConfigError
from lightning_apps.run_files.directory import RunDirectory, read_config, whole_summary
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.statistics.t_interval import Estimate, mean_interval
from lightning_apps.sweeps.backends.local import is_running
from lightning_apps.sweeps.grid import BUDGETS, short_keys
from lightning_apps.sweeps.state import JobRecord, SweepState, read_state
from lightning_apps.training.plan import fraction_or_steps

REPEAT = "seed"
"""The grid key over which results are averaged."""
IN_CONTEXT_FILES = ("in_context/test.npz", "in_context/validation.npz")
Array = NDArray[np.float64]


@dataclass(frozen=True)
class InContext:
    """Mean loss by position in the window, of one run.

    Attributes:
        source: file that it was read from.
        position: (T,) tokens seen before the predicted one, from 1.
        chosen: (3, T) mean, lower and upper end of its interval over windows, nats, categories trained on.
        held_out: (3, T) mean, lower and upper end, nats, of the other categories; None where there are none.
    """

    source: str
    position: Array
    chosen: Array
    held_out: Array | None


@dataclass(frozen=True)
class JobResult:
    """One job of the sweep.

    Attributes:
        name: what the job is called within the sweep.
        values: grid key -> value.
        status: completed, running, failed, stopped, interrupted or missing.
        reason: why it is not completed, or why it ended.
        directory: where its run wrote.
        steps: optimizer steps done; None where there is no summary.
        tokens: tokens fed to the model; None where there is no summary.
        wall_s: seconds of the run over all its starts; None where there is no summary.
        metrics: final val/ and test/ metrics by name.
        monitor: the metric that chose its best checkpoint; None where there is none.
        commit: git commit of the code that ran it; None where nobody knows.
        curve: (n,) tokens and (n,) val/loss of its evaluations after the warmup.
        in_context: loss by position in the window; None where the run has none.
    """

    name: str
    values: Mapping[str, Any]
    status: str
    reason: str
    directory: Path
    steps: int | None = None
    tokens: int | None = None
    wall_s: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    monitor: str | None = None
    commit: str | None = None
    curve: tuple[Array, Array] = field(default_factory=lambda: (np.empty(0), np.empty(0)))
    in_context: InContext | None = None


@dataclass(frozen=True)
class Group:
    """The completed jobs that differ in their seed only.

    Attributes:
        values: grid key -> value, without the seed.
        jobs: completed ones, by seed.
    """

    values: Mapping[str, Any]
    jobs: Sequence[JobResult]

    def metric(self, name: str) -> list[float]:
        """The final values of a metric, finite ones only."""
        return [value for job in self.jobs if np.isfinite(value := job.metrics.get(name, np.nan))]

    def mean(self, name: str) -> Estimate | None:
        """Mean of a metric over seeds; None where no job has it."""
        values = self.metric(name)
        return mean_interval(values) if values else None


@dataclass(frozen=True)
class SweepResults:
    """All jobs of a sweep.

    Attributes:
        folder: where sweep.json lies.
        state: what sweep.json holds, as the last start left it.
        jobs: in the state's order.
        factors: grid keys other than the seed, in the grid's order.
        labels: full grid key -> short one.
    """

    folder: Path
    state: SweepState
    jobs: Sequence[JobResult]
    factors: Sequence[str]
    labels: Mapping[str, str]

    @property
    def completed(self) -> list[JobResult]:
        """The jobs that count."""
        return [job for job in self.jobs if job.status == "completed"]

    @property
    def budget_key(self) -> str | None:
        """The grid key that sets the length of a job."""
        return next((key for key in BUDGETS if key in self.factors), None)

    @property
    def metrics(self) -> list[str]:
        """Every metric that a completed job ended with, validation first."""
        names = {name for job in self.completed for name in job.metrics}
        first = ("val/loss", "val/perplexity", "val/bits_per_byte", "test/loss", "test/perplexity")
        return [name for name in first if name in names] + sorted(names.difference(first), key=_validation_first)

    def groups(self) -> list[Group]:
        """Completed jobs by everything but their seed, sorted by the values of the factors."""
        found: dict[str, list[JobResult]] = {}
        for job in self.completed:
            found.setdefault(repr([job.values.get(key) for key in self.factors]), []).append(job)
        groups = [
            Group(
                {key: jobs[0].values.get(key) for key in self.factors},
                sorted(jobs, key=lambda job: sort_key(job.values.get(REPEAT))),
            )
            for jobs in found.values()
        ]
        return sorted(groups, key=lambda group: [sort_key(value) for value in group.values.values()])

    def label(self, values: Mapping[str, Any], *, without: Sequence[str] = ()) -> str:
        """`num_categories 3, max_tokens 1,000,000`; `all runs` where nothing is left to tell apart."""
        parts = [f"{self.labels[key]} {show(value)}" for key, value in values.items() if key not in without]
        return ", ".join(parts) or "all runs"


def _validation_first(name: str) -> tuple[int, str]:
    return (0 if name.startswith("val/") else 1), name


def sort_key(value: object) -> tuple[int, float, str]:
    """Numbers by size, then everything else by its text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, float(value), ""
    return 1, 0.0, str(value)


def show(value: object) -> str:
    """A grid value for people: whole numbers with thousands separated."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def find_sweep(place: str, output_root: str = "outputs") -> Path:
    """The folder of a sweep, by its path or its bare name.

    Raises:
        ConfigError: no sweep is there.
    """
    for folder in (Path(place), Path(output_root) / "sweeps" / place):
        if (folder / "sweep.json").is_file():
            return folder
    there = sorted(path.parent.name for path in Path(output_root).glob("sweeps/*/sweep.json"))
    raise ConfigError(
        f"sweep={place}: no sweep is there (no sweep.json); in {output_root}/sweeps: {', '.join(there) or 'none'}"
    )


def read_sweep(folder: Path) -> SweepResults:
    """Gather what the jobs of a sweep wrote.

    Raises:
        ConfigError: there is no state, or a file of a run is damaged.
    """
    state = read_state(folder)
    if state is None:
        raise ConfigError(f"{folder} holds no sweep.json")
    # relative to the sweep, so that a folder of results can be moved, and read from anywhere
    root = folder.resolve().parent.parent
    jobs = [
        read_job(record, RunDirectory(root.joinpath(*Path(record.run_directory).parts[-2:])), folder)
        for record in state.jobs
    ]
    factors = [key for key in state.grid if key != REPEAT]
    return SweepResults(folder, state, jobs, factors, short_keys(state.grid))


def read_job(record: JobRecord, directory: RunDirectory, folder: Path) -> JobResult:
    """One job's record and run.

    Raises:
        ConfigError: one of the run's files is damaged.
    """
    summary = whole_summary(directory) or {}
    try:
        status, reason = _status(record, summary, directory, folder)
        result = JobResult(record.name, record.values, status, reason, directory.path)
        if not summary:
            return result
        return replace(
            result,
            steps=summary["optimizer_steps"],
            tokens=summary["tokens_seen"],
            wall_s=summary["wall_s"],
            metrics={name: value for name, value in summary["metrics"].items() if isinstance(value, int | float)},
            monitor=summary["best"]["metric"] if summary["best"] else None,
            commit=summary["git_commit"],
            curve=read_curve(directory),
            in_context=read_in_context(directory),
        )
    except Exception as error:  # whatever half a file, or a file of somebody else, makes of these
        raise ConfigError(
            f"{directory.path}: a file of this run cannot be read ({type(error).__name__}: {error})"
        ) from error


def _status(record: JobRecord, summary: Mapping[str, Any], directory: RunDirectory, folder: Path) -> tuple[str, str]:
    if summary.get("status") == "completed":
        return "completed", str(summary["reason"])
    if is_running(folder, record.name):
        return "running", "still at work"
    if record.status == "failed":
        return "failed", record.reason
    if summary:
        return str(summary["status"]), str(summary["reason"])
    if directory.holds_a_run() or record.attempts:
        return "interrupted", record.reason or "ended without a summary"
    return "missing", "not started"


def read_curve(directory: RunDirectory) -> tuple[Array, Array]:
    """Tokens (n,) and val/loss (n,) of the evaluations after the warmup: before it the rate still rises.

    With trainer.log_every above 1 the tokens of an evaluation lie between those of two logged steps.
    """
    if not directory.metrics.is_file():
        return np.empty(0), np.empty(0)
    rows = read_metrics(directory.metrics)
    logged = [(0, 0.0), *((row["step"], row["train/tokens"]) for row in rows if "train/tokens" in row)]
    steps, tokens = np.array(logged, dtype=np.float64).T
    warmup = _warmup_steps(directory)
    kept = [
        (float(np.interp(row["step"], steps, tokens)), row["val/loss"])
        for row in rows
        if "val/loss" in row and warmup < row["step"] <= steps[-1]
    ]
    kept = [(count, loss) for count, loss in kept if np.isfinite(loss) and loss > 0 and count > 0]
    points = np.array(kept, dtype=np.float64).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def _warmup_steps(directory: RunDirectory) -> int:
    config = read_config(directory)
    summary = whole_summary(directory) or {}
    return fraction_or_steps(
        "scheduler.warmup_steps", config["scheduler"]["warmup_steps"], summary.get("planned_steps", 0)
    )


def read_in_context(directory: RunDirectory) -> InContext | None:
    """The in-context curves of a run, on its test split where there is one."""
    for name in IN_CONTEXT_FILES:
        path = directory.path / name
        if path.is_file():
            with np.load(path, allow_pickle=False) as arrays:
                held_out = _curve(arrays, "held_out")
                return InContext(
                    source=str(path),
                    position=arrays["position"].astype(np.float64),
                    chosen=_curve(arrays, "chosen"),
                    held_out=held_out if np.isfinite(held_out[0]).any() else None,
                )
    return None


def _curve(arrays: Mapping[str, Any], name: str) -> Array:
    return np.stack([arrays[f"{name}_{part}"].astype(np.float64) for part in ("mean", "low", "high")])
