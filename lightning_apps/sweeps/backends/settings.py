"""What a configuration says of a cluster; nothing of the cluster's own libraries is imported here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_apps.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SlurmSettings:
    """The `sweep.slurm` node of a configuration: what a site asks of a job, in submitit's words.

    Attributes:
        partition: queue; None for the site's default.
        timeout_min: limit of a job in minutes; at its end a job is saved and queued again, up to `max_timeouts` times.
        max_timeouts: how often that may happen.
        cpus_per_task: cores of each process; None for the site's default.
        mem_gb: memory of each node, GB; None for the site's default.
        account: who pays; None for the site's default.
        qos: quality of service; None for the site's default.
        constraint: features that nodes must have; None for any node.
        setup: lines of shell ahead of the job, such as `module load cuda`.
        file: YAML with further parameters of submitit's executor, such as `slurm_additional_parameters`, for all sweeps
            of a site; the keys above win. None for no file.
    """

    partition: str | None = None
    timeout_min: int = 60
    max_timeouts: int = 100
    cpus_per_task: int | None = None
    mem_gb: float | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: list[str] = field(default_factory=list)
    file: str | None = None

    def parameters(self) -> dict[str, Any]:
        """Parameters of submitit's executor; what is None is left to the site.

        Raises:
            ConfigError: the file cannot be read.
        """
        given: dict[str, Any] = {}
        if self.file is not None:
            try:
                given = yaml.safe_load(Path(self.file).read_text(encoding="utf-8")) or {}
            except (OSError, ValueError, yaml.YAMLError) as error:
                raise ConfigError(f"sweep.slurm.file={self.file}: {str(error).splitlines()[0]}") from error
            if not isinstance(given, dict):
                raise ConfigError(f"sweep.slurm.file={self.file}: must hold parameters, as in `partition: gpu`")
        own = {
            "slurm_partition": self.partition,
            "timeout_min": self.timeout_min,
            "cpus_per_task": self.cpus_per_task,
            "mem_gb": self.mem_gb,
            "slurm_account": self.account,
            "slurm_qos": self.qos,
            "slurm_constraint": self.constraint,
            "slurm_setup": self.setup or None,
        }
        return {**given, **{key: value for key, value in own.items() if value is not None}}


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """The `sweep.ray` node of a configuration.

    Attributes:
        address: of a running cluster, `auto` for the one that this machine belongs to; None starts one on this machine.
        cpus_per_job: cores that a job takes of a node; a device of a GPU job takes one GPU.
        resources: further resources of a job, by the names that the cluster's nodes were given.
    """

    address: str | None = None
    cpus_per_job: float = 1.0
    resources: dict[str, float] = field(default_factory=dict)
