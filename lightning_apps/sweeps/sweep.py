"""Many runs by one command, `--multirun seed=0,1,2` or `sweep=arxiv_scaling`: one engine behind two doors.

Each job is the train command with its own overrides, run directory and process, so that several devices inside a job,
W&B runs and crashes stay apart (Lightning#11300, #18175, wandb#1314). This process imports no torch: it may wait for
days beside its jobs.
"""

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from lightning_apps.config.binding import bind
from lightning_apps.config.override_value import override_value
from lightning_apps.config.overrides import override_key
from lightning_apps.config.search_path import search_path_override
from lightning_apps.errors import ConfigError
from lightning_apps.process.console import open_console, say
from lightning_apps.process.file_lock import lock_soon, owner_text, sign_lock, this_process
from lightning_apps.process.safe_stop import max_time_seconds
from lightning_apps.process.side_products import side_product
from lightning_apps.run_files.directory import RunDirectory, locate_run, whole_summary
from lightning_apps.sweeps.backends.backend import Backend
from lightning_apps.sweeps.check_jobs import check_apart, compose_jobs, unfinished_jobs
from lightning_apps.sweeps.engine import Engine, Queue
from lightning_apps.sweeps.grid import (
    Axis,
    Job,
    SweepSettings,
    check_overrides,
    check_settings,
    corners,
    default_name,
    describe_axes,
    expand,
    grid_axes,
    make_job,
    read_axis,
)
from lightning_apps.sweeps.optuna_search import OptunaSearch, read_objective
from lightning_apps.sweeps.places import make_backend, most_hardware
from lightning_apps.sweeps.spaces import check_search
from lightning_apps.sweeps.state import JobRecord, SweepState, continue_state, read_state

Config = dict[str, Any]


def run_sweep(cfg: DictConfig) -> None:
    """Run every job of the sweep that is not done; exits with 1 where one failed, 128 + signal when stopped.

    Raises:
        ConfigError: the sweep or one of its jobs is configured wrongly, it contradicts an earlier start, or another
            process is running it.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    settings = read_settings(OmegaConf.to_container(cfg.sweep, resolve=True) if cfg.sweep is not None else None)
    axes, given = read_axes(list(hydra.overrides.task), settings)
    if settings.search is not None:
        check_search(settings, axes)
    jobs = expand(axes) if settings.search is None else corners(axes)
    experiment = [] if "experiment" in axes else [f"experiment={hydra.runtime.choices['experiment']}"]
    shared = [*experiment, *settings.overrides, *(word for word in given if override_key(word) != "experiment")]
    name = settings.name or default_name(shared, axes)
    search_path = search_path_override(sys.argv[1:])
    folder = Path(cfg.run.output_root) / "sweeps" / name

    base = compose_jobs({"without what is swept": [*search_path, *shared]}, whole=False)["without what is swept"]
    make_record = partial(record_of, sweep=name, shared=shared, base=base)
    records = {job.name: make_record(job) for job in jobs}
    configs = compose_jobs({job: [*search_path, *record.overrides] for job, record in records.items()})
    objective = read_objective(settings, next(iter(configs.values()))["callbacks"]["checkpoints"])
    backend = make_backend(settings, configs, folder)
    state = SweepState(
        name=name,
        experiment=", ".join(dict.fromkeys(config["experiment"] for config in configs.values())),
        command=shlex.join(["python", "-m", "lightning_apps.train", *sys.argv[1:]]),
        grid={key: list(axis.values) if settings.search is None else [axis.text] for key, axis in axes.items()},
        settings=without(base, [*axes, "run", "sweep"]),
        jobs=list(records.values()) if settings.search is None else [],
        search=None if settings.search is None else {"objective": objective},
    )
    before = read_state(folder)
    checked = continue_state(before, state, folder)
    if settings.search is None:
        check_apart(unfinished_jobs(checked, configs))
    elif before is None or search_is_open(before, settings):
        check_apart(configs)
    with only_runner(folder):
        state = continue_state(read_state(folder), state, folder)  # again: now nobody else writes it
        open_console(folder / "sweep.log")
        engine = Engine(
            folder=folder,
            state=state,
            backend=backend,
            settings=settings,
            command=train_command(search_path),
            hardware=most_hardware(configs),
            job_time_s=max_time_seconds(settings.job_time, "sweep.job_time"),
            max_time_s=max_time_seconds(settings.max_time, "sweep.max_time"),
            metric=next(iter(objective)),
        )
        search = None
        if settings.search is not None:
            search = OptunaSearch(
                folder=folder, settings=settings, axes=axes, objective=objective, state=state,
                make_record=lambda values: make_record(make_job(axes, values)), is_closed=engine.is_closed,
            )  # fmt: skip
        wanted = state.jobs if search else [state.job(job.name) for job in jobs]
        engine.look_at_runs(wanted)
        say(banner(state, wanted, axes, backend, settings))
        say(f"{'directory':>12}  {folder}")
        try:
            code = engine.run(search or Queue(wanted))
        finally:
            say(engine.closing_lines())
        if search is not None and not engine.signals:
            finish_search(search, state, folder, ["python", "-m", "lightning_apps.train", *search_path])
    if code:
        sys.exit(code)


def record_of(job: Job, *, sweep: str, shared: Sequence[str], base: Mapping[str, Any]) -> JobRecord:
    """A job as the state knows it before it has started."""
    run = {**base["run"], "name": f"{sweep}-{job.name}"}
    own = [f"run.name={override_value(run['name'])}", "run.resume=auto"]
    if "group" in run:  # where loggers put what belongs together
        own.append(f"run.group={override_value(sweep)}")
    return JobRecord(
        name=job.name,
        values=dict(job.values),
        overrides=[*shared, *job.overrides, *own],
        run_directory=str(locate_run(run, job.values.get("experiment", base["experiment"])).path),
    )


def search_is_open(state: SweepState, settings: SweepSettings) -> bool:
    """Whether a search has trials to come, as far as its state knows."""
    trials = (state.search or {}).get("trials", {}).values()
    ended = sum(trial["state"] in ("complete", "pruned", "fail") for trial in trials)
    return settings.retry_failed or ended < len(trials) or ended < (settings.trials or ended + 1)


def finish_search(search: OptunaSearch, state: SweepState, folder: Path, command: Sequence[str]) -> None:
    """Say what the search found, and write its report where it has found something new."""
    for line in search.closing_lines(command):
        say(line)
    if not search.num_told:
        return
    with side_product("the report"):
        search.note_importance()
        state.write(folder)
        from lightning_apps.sweeps.report import write_sweep_report

        files, _ = write_sweep_report(folder)
        say(f"wrote {files[0]}")


def read_settings(node: object) -> SweepSettings:
    """The `sweep` node of a configuration, checked.

    Raises:
        ConfigError: a key is missing, unknown or of the wrong type.
    """
    if not isinstance(node, Mapping):
        raise ConfigError(f"sweep={node!r}: choose an option of the group, or leave it away")
    settings: SweepSettings = bind("sweep", {**node, "_target_": "lightning_apps.sweeps.grid.SweepSettings"})()
    check_settings(settings)
    return settings


def read_axes(words: Sequence[str], settings: SweepSettings) -> tuple[dict[str, Axis], list[str]]:
    """What is swept, by key, the grid of the configuration first; and the overrides that all jobs have.

    Args:
        words: overrides of the command line.
        settings: of the sweep.

    Raises:
        ConfigError: an axis is wrong, or something contradicts it.
    """
    loader = GlobalHydra.instance().config_loader()
    axes, given = grid_axes(settings.grid, loader), []
    for word in words:
        if (axis := read_axis(word, loader)) is not None:
            if axis.key in axes:
                raise ConfigError(
                    f"{word} and sweep.grid.{axis.key}={axes[axis.key].text} sweep one key; keep one of them"
                )
            axes[axis.key] = axis
        elif override_key(word).split(".")[0] != "sweep":
            given.append(word)
    check_overrides(settings.overrides, axes, "sweep.overrides: ")
    check_overrides(given, axes, "")
    return axes, given


def without(config: Mapping[str, Any], keys: Sequence[str]) -> Config:
    """The configuration without these dotted keys."""
    kept: Config = {}
    for name, node in config.items():
        below = [key.removeprefix(f"{name}.") for key in keys if key.startswith(f"{name}.")]
        if name not in keys:
            kept[name] = without(node, below) if below and isinstance(node, Mapping) else node
    return kept


def train_command(search_path: Sequence[str]) -> list[str]:
    """The command of every job, up to its overrides."""
    return [sys.executable, "-m", "lightning_apps.train", *search_path]


@contextmanager
def only_runner(folder: Path) -> Iterator[None]:
    """Hold the sweep's lock.

    Raises:
        ConfigError: another process is running this sweep.
    """
    path = folder / "sweep.lock"
    lock = lock_soon(path)
    if lock is None:
        raise ConfigError(
            f"another command is running the sweep in {folder} ({owner_text(path)}); stop it, or wait for its end"
        )
    try:
        sign_lock(lock, this_process())
        yield
    finally:
        os.close(lock)


def banner(
    state: SweepState, records: Sequence[JobRecord], axes: Mapping[str, Axis], backend: Backend, settings: SweepSettings
) -> str:
    """What will happen."""
    begun = sum(
        state.waits(record) and whole_summary(RunDirectory(Path(record.run_directory))) is not None
        for record in records
    )
    counts = {
        "done": sum(record.status == "done" for record in records),
        "pruned": sum(record.status == "pruned" for record in records),
        "to resume": begun,
        "failed before": sum(record.status == "failed" for record in records),
    }
    known = "".join(f", {count} {word}" for word, count in counts.items() if count)
    what = f"{len(records)} jobs"
    if state.search is not None:
        number = "trials until the time is over" if settings.trials is None else f"{settings.trials} trials"
        what = f"{number} by {settings.sampler}"
    lines = {
        "sweep": f"{state.name}: {what} of experiment {state.experiment} ({describe_axes(axes)}){known}",
        "at once": str(backend),
    }
    if state.search is not None:
        lines["objective"] = ", ".join(f"{metric} ({mode})" for metric, mode in state.search["objective"].items())
    return "\n".join(f"{name:>12}  {text}" for name, text in lines.items())
