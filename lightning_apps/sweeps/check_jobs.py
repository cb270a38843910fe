"""The configurations of a sweep's jobs, composed and checked before one of them starts."""

import multiprocessing
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_apps.config.checks import check_config
from lightning_apps.config.command_line import explain
from lightning_apps.config.composition import CONF, plain
from lightning_apps.errors import ConfigError
from lightning_apps.run_files.directory import RunDirectory, read_config, whole_summary
from lightning_apps.run_files.settings import different_settings
from lightning_apps.sweeps.state import SweepState

Config = dict[str, Any]


def compose_jobs(overrides: Mapping[str, Sequence[str]], *, whole: bool = True) -> dict[str, Config]:
    """The configuration of every job by its name.

    Args:
        overrides: by name.
        whole: whether a value may be missing; it is `???` then.

    Raises:
        ConfigError: one cannot be composed.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    configs: dict[str, Any] = {}
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        for name, words in overrides.items():
            try:
                cfg = compose("config", overrides=list(words))
                configs[name] = plain(cfg) if whole else OmegaConf.to_container(cfg, resolve=True)
            except (HydraException, OmegaConfBaseException) as error:
                raise ConfigError(f"job {name}: {explain(error, CONF, 'config', words)}") from error
            except ConfigError as error:
                raise ConfigError(f"job {name}: {error}") from error
    return configs


def check_apart(configs: Mapping[str, Config]) -> None:
    """check_jobs in a process of its own: it imports torch. Ctrl-C is answered here."""
    if configs:
        context, ignore = multiprocessing.get_context("spawn"), (signal.SIGINT, signal.SIG_IGN)
        with ProcessPoolExecutor(1, mp_context=context, initializer=signal.signal, initargs=ignore) as pool:
            pool.submit(check_jobs, configs).result()


def check_jobs(configs: Mapping[str, Config]) -> None:
    """check_config for every job, which must leave something to compare.

    Raises:
        ConfigError: naming the first job that is wrong.
    """
    for name, config in configs.items():
        try:
            check_config(config)
        except ConfigError as error:
            raise ConfigError(f"job {name}: {error}") from None
        if config["trainer"].get("fast_dev_run"):
            raise ConfigError(
                f"job {name}: trainer.fast_dev_run={config['trainer']['fast_dev_run']} keeps nothing, so that a sweep "
                "has nothing to compare; try one run without the sweep"
            )


def unfinished_jobs(state: SweepState, configs: Mapping[str, Config]) -> dict[str, Config]:
    """The configurations of the jobs that are to run.

    Raises:
        ConfigError: one of the runs was made with other settings.
    """
    unfinished = {}
    for name, config in configs.items():
        directory = RunDirectory(Path(state.job(name).run_directory))
        refuse_foreign_run(directory, config)
        if (summary := whole_summary(directory)) is None or summary["status"] != "completed":
            unfinished[name] = config
    return unfinished


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
