"""Where a sweep's jobs run, by its settings and theirs: places of this machine, or a cluster."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_apps.config.binding import bind
from lightning_apps.errors import ConfigError
from lightning_apps.sweeps.backends.backend import Backend
from lightning_apps.sweeps.backends.local import LocalBackend, Place
from lightning_apps.sweeps.backends.settings import RaySettings, SlurmSettings
from lightning_apps.sweeps.grid import SweepSettings

Config = dict[str, Any]


def most_hardware(configs: Mapping[str, Config]) -> tuple[str, int, int]:
    """Accelerator, devices of a node and nodes that the largest job asks for."""
    hardware = [config["hardware"] for config in configs.values()]
    on_cpu = any(entry["accelerator"] == "cpu" for entry in hardware)
    return (
        "cpu" if on_cpu else hardware[0]["accelerator"],
        max(entry["devices"] for entry in hardware),
        max(entry.get("num_nodes", 1) for entry in hardware),
    )


def make_backend(settings: SweepSettings, configs: Mapping[str, Config], folder: Path) -> Backend:
    """What runs the jobs.

    Raises:
        ConfigError: it cannot run these.
    """
    if settings.backend == "local":
        return LocalBackend(folder, make_places(settings, configs))
    if settings.devices is not None:
        raise ConfigError(
            f"sweep.devices={settings.devices}: sweep.backend={settings.backend} gives devices; leave null"
        )
    at = "lightning_apps.sweeps.backends.settings"
    try:
        if settings.backend == "slurm":
            from lightning_apps.sweeps.backends.slurm import SlurmBackend

            site: SlurmSettings = bind("sweep.slurm", {**settings.slurm, "_target_": f"{at}.SlurmSettings"})()
            return SlurmBackend(folder, settings.name or folder.name, site, places=settings.parallel or len(configs))
        from lightning_apps.sweeps.backends.ray import RayBackend

        cluster: RaySettings = bind("sweep.ray", {**settings.ray, "_target_": f"{at}.RaySettings"})()
        return RayBackend(folder, cluster, places=settings.parallel)
    except ImportError as error:
        raise ConfigError(
            f"sweep.backend={settings.backend} needs a package that is not installed ({error.name}): "
            f"pip install 'lightning-apps[{settings.backend}]'"
        ) from error


def make_places(settings: SweepSettings, configs: Mapping[str, Config]) -> list[Place]:
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
        Place(
            devices=None if devices is None else ",".join(devices[i % places * per_job : (i % places + 1) * per_job]),
            threads=threads,
        )
        for i in range(parallel)
    ]


def num_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
