"""A search by Optuna's ask and tell: a free place gets the next trial at once, and every trial is a job."""

import contextlib
import logging
import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_apps.errors import ConfigError
from lightning_apps.process.safe_stop import PRUNED
from lightning_apps.run_files.directory import RunDirectory, whole_summary
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.sweeps.grid import Axis, SweepSettings
from lightning_apps.sweeps.spaces import MOST_TRIALS, distribution, make_pruner, make_sampler, read_values
from lightning_apps.sweeps.state import JobRecord, SweepState

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

JOURNAL = "optuna.journal"
"""In the sweep's folder: Optuna's storage, which `optuna-dashboard` opens."""
Objective = Mapping[str, str]
"""Metric -> min or max."""


class OptunaSearch:
    """The jobs of a search, as the engine asks for them.

    Optuna's journal knows the trials, the sweep's state the jobs, and values join them: a trial whose values have been
    tried before has that job's result at once.

    Args:
        folder: of the sweep.
        settings: the `sweep` node of the configuration.
        axes: the space, by key.
        objective: what is to become small or large.
        state: of the sweep; its jobs are those of this search.
        make_record: the record of a job from its values, not yet in the state.
        is_closed: whether no further job is started: asked while trials are drawn that need none.
    """

    def __init__(
        self,
        *,
        folder: Path,
        settings: SweepSettings,
        axes: Mapping[str, Axis],
        objective: Objective,
        state: SweepState,
        make_record: Callable[[Mapping[str, Any]], JobRecord],
        is_closed: Callable[[], bool],
    ) -> None:
        self.settings = settings
        self.axes = axes
        self.objective = objective
        self.state = state
        self.make_record = make_record
        self.is_closed = is_closed
        self.distributions = {key: distribution(axis) for key, axis in axes.items()}
        self.study = open_study(folder / JOURNAL, settings, objective)
        self._check_space()
        self.budget = MOST_TRIALS if settings.trials is None else settings.trials
        if settings.sampler == "grid":
            combinations = 1
            for axis in axes.values():
                combinations *= len(axis.values)
            self.budget = min(self.budget, combinations)
        self._sizes: dict[str, int] = {}  # bytes of metrics.csv when it was last read
        self._unstarted: list[JobRecord] | None = None
        self._by_name = {record.name: record for record in state.jobs}
        self._by_trial: dict[int, JobRecord] = {}
        self.num_told = 0  # trials that ended in this start
        for trial in self._trials():  # those that a lost state has forgotten
            self._record(trial)

    @property
    def jobs(self) -> Sequence[JobRecord]:
        """Those of all trials so far."""
        return self.state.jobs

    @property
    def total(self) -> int:
        """Trials of the budget; where time is the budget, as many as there are."""
        return max(len(self.jobs), self.budget if self.budget < MOST_TRIALS else 0)

    def next(self) -> JobRecord | None:
        """The job of the next trial: first those that an earlier engine had begun."""
        if self._unstarted is None:
            self._unstarted = self._taken_up()
        if self._unstarted:
            return self._unstarted.pop(0)
        while not self.is_closed() and (self._used() < self.budget or self._states("WAITING")):
            trial = self._ask()
            record = self._record(trial)
            self._note(trial.number, record)
            if self.state.waits(record):
                return record
            if record.status != "running":  # tried before: its result is that of this trial, too
                self._tell(trial, record)
        return None

    def look(self, record: JobRecord) -> bool:
        """Hand new evaluations on; True once the pruner gives the job up."""
        path = RunDirectory(Path(record.run_directory)).metrics
        with contextlib.suppress(OSError):
            if (size := path.stat().st_size) != self._sizes.get(record.name):
                self._sizes[record.name] = size
                for trial in self._running(record):
                    if self._report(trial, path):
                        return True
        return False

    def ended(self, record: JobRecord) -> None:
        """Tell Optuna how a job ended; one that was interrupted stays a running trial, for the next start."""
        if self.state.waits(record):
            return
        for trial in self._running(record):
            self._tell(trial, record)

    def is_well(self) -> bool:
        """Whether there is a result and no job waits for another start."""
        return bool(self._states("COMPLETE")) and not any(map(self.state.waits, self.jobs))

    def closing_lines(self, command: Sequence[str]) -> list[str]:
        """The best configurations as commands to paste; nothing where no trial is complete.

        Args:
            command: words of the train command that all jobs share, the module's name first.
        """
        if not self._states("COMPLETE"):
            return []
        lines = []
        best = self.study.best_trials if len(self.objective) > 1 else [self.study.best_trial]
        for trial in best[:5]:
            record = self._record(trial)
            values = ", ".join(
                f"{metric} {value:.6g}" for metric, value in zip(self.objective, trial.values, strict=True)
            )
            own = ("run.name=", "run.resume=", "run.group=")
            words = [word for word in record.overrides if not word.startswith(own)]
            lines += [f"best  {values}: {record.name}", f"  {shlex.join([*command, *words])}"]
        return lines

    def note_importance(self) -> None:
        """Write into the state how much each key decided, by Optuna's PED-ANOVA; nothing where trials are too few."""
        from optuna.importance import get_param_importances

        notes = self.state.search
        assert notes is not None
        notes["importance"] = {}
        for index, metric in enumerate(self.objective):
            with contextlib.suppress(ValueError, RuntimeError), warnings.catch_warnings(action="ignore"):
                found = get_param_importances(self.study, target=_target(index) if len(self.objective) > 1 else None)
                notes["importance"][metric] = {key: float(value) for key, value in found.items()}

    def _check_space(self) -> None:
        from optuna.distributions import check_distribution_compatibility

        for trial in self._states("COMPLETE", "PRUNED", "FAIL"):
            if trial.params and set(trial.distributions) != set(self.distributions):
                raise ConfigError(
                    f"the search knows {', '.join(sorted(trial.distributions))}, now the space has "
                    f"{', '.join(sorted(self.distributions))}; choose another sweep.name"
                )
            for key, kind in trial.distributions.items():
                try:
                    check_distribution_compatibility(kind, self.distributions[key])
                except ValueError as error:
                    raise ConfigError(
                        f"{key}={self.axes[key].text}: a search cannot change what it chooses from; choose another "
                        "sweep.name"
                    ) from error

    def _trials(self) -> list["FrozenTrial"]:
        """All that have their values: an engine that was killed while it asked leaves some without."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if len(trial.params) == len(self.axes)]

    def _states(self, *names: str) -> list["FrozenTrial"]:
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name in names]

    def _running(self, record: JobRecord) -> list["FrozenTrial"]:
        return [trial for trial in self._states("RUNNING") if self._record(trial) is record]

    def _record(self, trial: "FrozenTrial") -> JobRecord:
        """The job of a trial; a new one joins the state."""
        if trial.number not in self._by_trial:
            record = self.make_record(read_values(trial.params))
            if record.name not in self._by_name:
                self._by_name[record.name] = record
                self.state.jobs.append(record)
            self._by_trial[trial.number] = self._by_name[record.name]
        return self._by_trial[trial.number]

    def _used(self) -> int:
        """Trials that count: not those without values, and those that failed only if their job is not tried again.

        Each trial of the same values counts: where few values all fail, a set of them would never reach the budget.
        """
        failed = [self._record(trial) for trial in self._trials() if trial.state.name == "FAIL"]
        others = [self._record(trial).name for trial in self._trials() if trial.state.name not in ("FAIL", "WAITING")]
        final = [record for record in failed if not self.state.waits(record) and record.name not in others]
        return len(others) + len(final) + len(self._states("WAITING"))

    def _taken_up(self) -> list[JobRecord]:
        """What an earlier engine left: jobs that are to go on. What has ended meanwhile is told."""
        from optuna.trial import TrialState

        for trial in self._states("RUNNING"):
            if len(trial.params) < len(self.axes):
                self.study.tell(trial.number, state=TrialState.FAIL)
        open_jobs = []
        for trial in self._states("RUNNING"):
            record = self._record(trial)
            if record.status == "pending" and PRUNED in trial.user_attrs:
                record.status = "pruned"
            if self.state.waits(record):
                if record not in open_jobs:
                    open_jobs.append(record)
            elif record.status != "running":
                self._tell(trial, record)
        tried = {self._record(trial).name for trial in self._trials() if trial.state.name != "FAIL"}
        for trial in self._trials():
            record = self._record(trial)
            if record.status == "pending" and record.name not in tried:  # it failed, and is wanted again
                tried.add(record.name)
                if record.is_out_of_time:  # before its first evaluation: it gets as much time again
                    record.reason = ""
                self.study.enqueue_trial(trial.params)
        return open_jobs

    def _ask(self) -> "FrozenTrial":
        from optuna.samplers import RandomSampler

        number = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = make_sampler(self.settings, self.axes, number)
        trial = self.study.ask(fixed_distributions=self.distributions)
        self.study.sampler = RandomSampler()  # reporting draws again, and that of a grid ends a loop which is not there
        return self.study.get_trials(deepcopy=False)[trial.number]

    def _report(self, trial: "FrozenTrial", path: Path) -> bool:
        """Report evaluations that Optuna does not know; whether one of them is the last that is wanted.

        Raises:
            ConfigError: the run logs no such metric.
        """
        from optuna import Trial

        evaluations = [row for row in read_metrics(path) if any(key.startswith("val/") for key in row)]
        for metric in self.objective:
            if len(evaluations) > 1 and not any(metric in row for row in evaluations):
                raise ConfigError(no_such_metric(metric, {key for row in evaluations for key in row}))
        if len(self.objective) > 1:
            return False
        if PRUNED in trial.user_attrs:
            return True
        (metric,) = self.objective
        live = Trial(self.study, trial._trial_id)
        values = [row[metric] for row in evaluations if metric in row]
        known = len(trial.intermediate_values)
        for number in range(known + 1, len(values) + 1):
            live.report(values[number - 1], number)
            if live.should_prune():
                live.set_user_attr(PRUNED, number)
                return True
        return False

    def _tell(self, trial: "FrozenTrial", record: JobRecord) -> None:
        """Tell how a trial ended: what the pruner gave up is pruned, even if the job was faster than its stop."""
        from optuna.trial import TrialState

        path = RunDirectory(Path(record.run_directory)).metrics
        given_up = PRUNED in trial.user_attrs
        if not given_up and record.status in ("done", PRUNED) and path.is_file():
            given_up = self._report(trial, path)
        values = None
        if not given_up and record.status != "failed":
            values = objective_values(record, self.objective)
        state = TrialState.PRUNED if given_up else TrialState.COMPLETE if values else TrialState.FAIL
        self.study.tell(trial.number, values if state is TrialState.COMPLETE else None, state=state)
        self.num_told += 1
        self._note(trial.number, record)

    def _note(self, number: int, record: JobRecord) -> None:
        """Write a trial into the sweep's state, for the report."""
        trial = self.study.get_trials(deepcopy=False)[number]
        notes = self.state.search
        assert notes is not None
        trials = notes.setdefault("trials", {})
        trials[str(number)] = {
            "job": record.name,
            "state": trial.state.name.lower(),
            "values": None if trial.values is None else list(trial.values),
            "evaluations": [value for _, value in sorted(trial.intermediate_values.items())],
            "params": dict(trial.params),
        }


def _target(index: int) -> Callable[["FrozenTrial"], float]:
    return lambda trial: float(trial.values[index])


def objective_values(record: JobRecord, objective: Objective) -> list[float] | None:
    """The objectives of a job at its best checkpoint; None where one is no number or there was no evaluation.

    Raises:
        ConfigError: the run logs no such metric.
    """
    summary = whole_summary(RunDirectory(Path(record.run_directory)))
    best = (summary or {}).get("best")
    if not best:
        return None
    known = {**best["metrics"], best["metric"]: best["value"]}
    for metric in objective:
        if metric not in known:
            raise ConfigError(no_such_metric(metric, set(known)))
    values = [float(known[metric]) for metric in objective]
    return None if any(value != value for value in values) else values


def no_such_metric(metric: str, known: set[str]) -> str:
    """What is said of a metric that no run logs."""
    named = ", ".join(sorted(key for key in known if key.startswith("val/")))
    return f"sweep.objective={metric}: no run logs it; evaluations log {named}"


def read_objective(settings: SweepSettings, checkpoints: Mapping[str, Any]) -> dict[str, str]:
    """What the search is after; null is what chooses the best checkpoint.

    Args:
        settings: of the sweep.
        checkpoints: `callbacks.checkpoints` of the jobs.

    Raises:
        ConfigError: it is no metric of an evaluation, or nobody says whether it is to be small.
    """
    given, monitor = settings.objective, {checkpoints["monitor"]: checkpoints["mode"], "val/loss": "min"}
    if given is None:
        return {checkpoints["monitor"]: checkpoints["mode"]}
    if isinstance(given, str):
        if given.startswith("val/") and given not in monitor:
            raise ConfigError(f"sweep.objective={given}: say which way, 'sweep.objective={{{given}:max}}' or min")
        given = {given: monitor.get(given, "min")}
    for metric, mode in given.items():
        if not metric.startswith("val/"):
            raise ConfigError(f"sweep.objective={metric}: selection looks at val/ metrics only")
        if mode not in ("min", "max"):
            raise ConfigError(f"sweep.objective.{metric}={mode!r}: allowed are min, max")
    if len(given) > 1 and settings.pruner is not None:
        raise ConfigError(
            f"sweep.pruner={settings.pruner}: with several objectives no job can be given up; leave it away"
        )
    return dict(given)


def open_study(path: Path, settings: SweepSettings, objective: Objective) -> "Study":
    """The study in a journal, made where there is none; whoever calls holds the sweep's lock.

    Raises:
        ConfigError: the journal is of another search, or damaged.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("cmaes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    whole = path.resolve()
    whole.with_name(f"{whole.name}.lock").unlink(missing_ok=True)  # of an engine that was killed while it wrote
    if whole.exists():
        text = whole.read_bytes()
        if not text.endswith(b"\n"):  # and so may the last line be cut
            with whole.open("r+b") as file:
                file.truncate(text.rfind(b"\n") + 1)
    backend = JournalFileBackend(str(whole), lock_obj=JournalFileOpenLock(str(whole)))
    directions: list[Any] = ["minimize" if mode == "min" else "maximize" for mode in objective.values()]
    try:
        study = optuna.create_study(
            storage=JournalStorage(backend), study_name="sweep", load_if_exists=True, directions=directions,
            pruner=make_pruner(settings),
        )  # fmt: skip
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"{path} cannot be read ({str(error).splitlines()[0]}); move it away: what is done is found again"
        ) from error
    wanted = dict(zip(objective, directions, strict=True))
    before = study.user_attrs.get("objective", wanted)
    if before != wanted:
        if any(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.get_trials(deepcopy=False)):
            raise ConfigError(f"{path} is of a search for {', '.join(before)}; choose another sweep.name")
        optuna.delete_study(study_name="sweep", storage=study._storage)  # nothing was found yet
        return open_study(path, settings, objective)
    study.set_user_attr("objective", wanted)
    study.set_metric_names(list(objective))
    return study
