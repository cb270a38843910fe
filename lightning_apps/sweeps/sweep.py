"""`python -m lightning_apps.train sweep=arxiv_scaling`: one process for each job of a grid, and the state of all.

Each job is the train command with its own overrides, run directory and process, so that several devices inside a job,
W&B runs and crashes stay apart (Lightning#11300, #18175, wandb#1314). This process imports no torch: it may wait for
days beside its jobs.
"""

import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_apps.config.binding import bind
from lightning_apps.config.checks import check_config
from lightning_apps.config.command_line import explain
from lightning_apps.config.composition import CONF, plain
from lightning_apps.config.override_value import override_value
from lightning_apps.config.search_path import search_path_override
from lightning_apps.errors import ConfigError
from lightning_apps.process.console import open_console, say
from lightning_apps.process.file_lock import lock_soon, owner_text, sign_lock, this_process
from lightning_apps.run_files.directory import RunDirectory, locate_run, read_config, whole_summary
from lightning_apps.run_files.settings import different_settings
from lightning_apps.sweeps.grid import (
    Job,
    SweepSettings,
    check_overrides,
    check_settings,
    describe_grid,
    expand,
    flat_grid,
    override_key,
)
from lightning_apps.sweeps.jobs import JobRunner, Slot, wait_for_orphans
from lightning_apps.sweeps.state import (
    JobRecord,
    SweepState,
    continue_state,
    read_state,
)

Config = dict[str, Any]


def run_sweep(cfg: DictConfig) -> None:
    """Run every job of the sweep that is not done; exits with 1 where one failed, 128 + signal when stopped.

    Raises:
        ConfigError: the sweep or one of its jobs is configured wrongly, it contradicts an earlier start, or another
            process is running it.
    """
    from hydra.core.hydra_config import HydraConfig

    choices = HydraConfig.get().runtime.choices
    node = OmegaConf.to_container(cfg.sweep, resolve=True)
    settings = read_settings(node, option=str(choices["sweep"]))
    jobs = expand(settings.grid)
    axes = flat_grid(settings.grid)
    given = [word for word in HydraConfig.get().overrides.task if override_key(word).split(".")[0] != "sweep"]
    check_overrides(settings.overrides, axes, "sweep.overrides: ")
    check_overrides(given, axes, "")
    shared = [f"experiment={choices['experiment']}", *_without_experiment(settings.overrides + given)]
    search_path = search_path_override(sys.argv[1:])
    folder = Path(cfg.run.output_root) / "sweeps" / settings.name

    commands = {job.name: [*shared, *job.overrides, *own_overrides(settings.name, job)] for job in jobs}
    base, configs = compose_jobs([*search_path, *shared], {name: [*search_path, *commands[name]] for name in commands})
    slots = make_slots(settings, configs)
    state = SweepState(
        name=settings.name,
        experiment=base["experiment"],
        command=shlex.join(["python", "-m", "lightning_apps.train", *sys.argv[1:]]),
        grid=axes,
        settings=without(base, [*axes, "run", "sweep"]),
        jobs=[
            JobRecord(
                name=job.name,
                values=dict(job.values),
                overrides=commands[job.name],
                run_directory=str(locate_run(configs[job.name]["run"], base["experiment"]).path),
            )
            for job in jobs
        ],
    )
    state = continue_state(read_state(folder), state, folder)
    unfinished = {}
    for name, config in configs.items():
        directory = RunDirectory(Path(state.job(name).run_directory))
        refuse_foreign_run(directory, config)
        if (summary := whole_summary(directory)) is None or summary["status"] != "completed":
            unfinished[name] = config
    if unfinished:
        # it imports torch; Ctrl-C is answered here
        context, ignore = multiprocessing.get_context("spawn"), (signal.SIGINT, signal.SIG_IGN)
        with ProcessPoolExecutor(1, mp_context=context, initializer=signal.signal, initargs=ignore) as pool:
            pool.submit(check_jobs, unfinished).result()
    with only_runner(folder):
        state = continue_state(read_state(folder), state, folder)  # again: now nobody else writes it
        open_console(folder / "sweep.log")
        wait_for_orphans(folder, [job.name for job in jobs])
        runner = JobRunner(
            folder=folder, state=state, jobs=jobs, slots=slots, settings=settings, command=train_command(search_path)
        )
        runner.look_at_runs()
        say(banner(runner, axes, folder))
        code = runner.run()
        say(runner.closing_lines())
    if code:
        sys.exit(code)


def read_settings(node: object, *, option: str) -> SweepSettings:
    """The `sweep` node of a configuration, checked.

    Raises:
        ConfigError: a key is missing, unknown or of the wrong type.
    """
    if not isinstance(node, Mapping):
        raise ConfigError(f"sweep={node!r}: choose an option of the group, or leave it away")
    if node.get("name") in (None, "???"):
        raise ConfigError(f"sweep={option} needs a name: sweep.name=<name>")
    settings: SweepSettings = bind("sweep", {**node, "_target_": "lightning_apps.sweeps.grid.SweepSettings"})()
    check_settings(settings)
    return settings


def _without_experiment(overrides: Sequence[str]) -> list[str]:
    return [override for override in overrides if override_key(override) != "experiment"]


def own_overrides(sweep: str, job: Job) -> list[str]:
    """What the sweep sets for a job beside its place in the grid."""
    return [f"run.name={override_value(f'{sweep}-{job.name}')}", "run.resume=auto"]


def compose_jobs(shared: list[str], overrides: Mapping[str, list[str]]) -> tuple[Config, dict[str, Config]]:
    """The configuration without the grid, missing values as `???`, and that of every job.

    Raises:
        ConfigError: a job's configuration cannot be composed.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    configs: dict[str, Config] = {}
    name, words = "without the grid", shared
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            base = OmegaConf.to_container(compose("config", overrides=shared), resolve=True)
            for name, words in overrides.items():
                configs[name] = plain(compose("config", overrides=words))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"job {name}: {explain(error, CONF, 'config', words)}") from error
    except ConfigError as error:
        raise ConfigError(f"job {name}: {error}") from error
    assert isinstance(base, dict)
    return base, configs  # type: ignore[return-value]


def check_jobs(configs: Mapping[str, Config]) -> None:
    """check_config for every job; it imports torch, so a process of its own calls this.

    Raises:
        ConfigError: naming the first job that is wrong.
    """
    for name, config in configs.items():
        try:
            check_config(config)
        except ConfigError as error:
            raise ConfigError(f"job {name}: {error}") from None


def without(config: Mapping[str, Any], keys: Sequence[str]) -> Config:
    """The configuration without these dotted keys."""
    kept: Config = {}
    for name, node in config.items():
        below = [key.removeprefix(f"{name}.") for key in keys if key.startswith(f"{name}.")]
        if name not in keys:
            kept[name] = without(node, below) if below and isinstance(node, Mapping) else node
    return kept


def make_slots(settings: SweepSettings, configs: Mapping[str, Config]) -> list[Slot]:
    """Places for jobs that run at once, each with its devices and its share of the processor's threads.

    Raises:
        ConfigError: the devices do not go round, or the jobs use none.
    """
    per_job = max(config["hardware"]["devices"] for config in configs.values())
    devices = None if settings.devices is None else [str(device) for device in settings.devices]
    if devices is not None:
        if any(config["hardware"]["accelerator"] in ("cpu", "mps") for config in configs.values()):
            raise ConfigError("sweep.devices names GPUs, but the jobs run without; choose hardware=gpu, or null")
        if len(devices) % per_job:
            raise ConfigError(
                f"sweep.devices={settings.devices}: {len(devices)} devices cannot be shared out to jobs of "
                f"hardware.devices={per_job}"
            )
    places = 1 if devices is None else len(devices) // per_job
    parallel = settings.parallel or places
    threads = None
    if parallel > 1 and "OMP_NUM_THREADS" not in os.environ:
        on_cpu = any(config["hardware"]["accelerator"] == "cpu" for config in configs.values())
        threads = max(1, num_cores() // (parallel * (per_job if on_cpu else 1)))
    return [
        Slot(
            devices=None if devices is None else ",".join(devices[i % places * per_job : (i % places + 1) * per_job]),
            threads=threads,
        )
        for i in range(parallel)
    ]


def num_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def refuse_foreign_run(directory: RunDirectory, config: Config) -> None:
    """A run of the job's name that was made otherwise is not this job.

    Raises:
        ConfigError: naming the first settings that differ.
    """
    if not directory.config.is_file():
        return
    before = read_config(directory)
    if different := different_settings(before, config):
        raise ConfigError(
            f"{directory.path} holds a run with other settings ({'; '.join(different[:3])}); restore them, or choose "
            "another sweep.name"
        )


def banner(runner: JobRunner, axes: Mapping[str, Sequence[object]], folder: Path) -> str:
    """What will happen."""
    slots = runner.slots
    where = (
        "" if slots[0].devices is None else f" on devices {'; '.join(sorted({str(slot.devices) for slot in slots}))}"
    )
    threads = "" if slots[0].threads is None else f", {slots[0].threads} threads each"
    records = [runner.state.job(job.name) for job in runner.jobs]
    begun = sum(
        record.status == "pending" and whole_summary(RunDirectory(Path(record.run_directory))) is not None
        for record in records
    )
    counts = {
        "done": sum(record.status == "done" for record in records),
        "to resume": begun,
        "failed before": sum(record.status == "failed" for record in records),
    }
    known = "".join(f", {count} {word}" for word, count in counts.items() if count)
    return "\n".join(
        [
            f"{'sweep':>12}  {runner.state.name}: {len(records)} jobs of experiment {runner.state.experiment} "
            f"({describe_grid(axes)}){known}",
            f"{'at once':>12}  {len(slots)}{where}{threads}",
            f"{'directory':>12}  {folder}",
        ]
    )
