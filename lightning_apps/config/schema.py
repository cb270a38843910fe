"""Types of the root configuration; the values are in conf/."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class PrecisionConfig:
    """How numbers are stored and multiplied."""

    name: str = MISSING
    lightning: str = MISSING


@dataclass
class HardwareConfig:
    """Where the run happens."""

    name: str = MISSING
    accelerator: str = MISSING
    devices: int = MISSING
    strategy: str = MISSING
    num_threads: int | None = MISSING
    num_workers: int = MISSING
    pin_memory: bool = MISSING
    deterministic: bool = MISSING
    compile: bool = MISSING
    find_device_batch_size: bool = MISSING
    gradient_checkpointing: bool = MISSING


@dataclass
class TrainerConfig:
    """How long, how often."""

    max_steps: int | None = MISSING
    max_epochs: float | None = MISSING
    max_tokens: int | None = MISSING
    max_time: str | None = MISSING
    evaluate_every: Any = MISSING
    save_every: Any = MISSING
    log_every: int = MISSING
    clip_norm: float | None = MISSING


@dataclass
class CheckpointsConfig:
    """Which checkpoint is best, and how many are kept."""

    monitor: str = MISSING
    mode: str = MISSING
    keep: int | None = MISSING
    loss_ratio: float | None = MISSING


@dataclass
class GuardsConfig:
    """What is watched, and what happens when it goes wrong."""

    non_finite: str = MISSING
    token_ids: str = MISSING
    loss_spike: str = MISSING
    loss_spike_sigmas: float = MISSING
    collapsed_generator: str = MISSING
    collapsed_after: float = MISSING


@dataclass
class CallbacksConfig:
    """What happens beside training."""

    guards: GuardsConfig = field(default_factory=GuardsConfig)
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    # OmegaConf cannot put a mapping where an optional dataclass is null; check_config looks at the types of these
    early_stopping: Any = None
    reduce_on_plateau: Any = None
    weight_average: Any = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class RunConfig:
    """Where the run's files go."""

    output_root: str = MISSING
    name: str | None = MISSING
    resume: str | None = MISSING
    overwrite: bool = MISSING
    cache_root: str = MISSING
    upload: str | None = MISSING


@dataclass
class RootConfig:
    """The root keys."""

    experiment: str = MISSING
    seed: int = MISSING
    module: Any = MISSING
    model: Any = MISSING
    data: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    logger: dict[str, Any] = field(default_factory=dict)
    run: RunConfig = field(default_factory=RunConfig)
    sweep: Any = None  # null, or the settings of sweeps.grid.SweepSettings
    verify: list[str] = field(default_factory=list)  # overrides that turn the experiment into a run of seconds
    verify_files: str | None = None  # function that writes what such a run needs into a folder, returning overrides


ConfigStore.instance().store(name="schema", node=RootConfig)
