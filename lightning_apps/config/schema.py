"""Types of the root configuration; the values are in conf/."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, Predicate
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
    worker_start_method: str | None = MISSING
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
    # an older run's configuration has none of these
    fast_dev_run: Any = False
    limit_train_batches: Any = None
    limit_val_batches: Any = None
    limit_test_batches: Any = None
    overfit_batches: Any = 0
    detect_anomaly: bool = False
    profiler: str | None = None


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
    sweep: Any = None  # the settings of sweeps.grid.SweepSettings; null in a single run's own configuration
    verify: list[str] = field(default_factory=list)  # overrides that turn the experiment into a run of seconds
    verify_files: str | None = None  # function that writes what such a run needs into a folder, returning overrides


Count = Annotated[int, Ge(1)]
Share = Annotated[float, Ge(0), Le(1)]
WholeOrShare = Annotated[float, Gt(0), Predicate(lambda value: value < 1 or value % 1 == 0)]
Cadence = Literal["epoch", "never"] | Count | WholeOrShare
BATCHES = "a number of batches, or a share of them between 0.0 and 1.0"
CADENCE = "allowed are optimizer steps, a fraction of the run below 1, epoch, never"

RANGES: dict[str, tuple[Any, str | None]] = {
    "seed": (Annotated[int, Ge(0), Lt(2**32)], "must lie between 0 and 2**32 - 1"),
    "precision.lightning": (
        Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true", "64-true"],
        "allowed are 32-true, 16-mixed, bf16-mixed, bf16-true, 16-true, 64-true; precision= chooses one",
    ),
    "hardware.accelerator": (Literal["auto", "gpu", "mps", "cpu"], "allowed are auto, gpu, mps, cpu"),
    # those under which the process that started the run holds the trained weights when it ends
    "hardware.strategy": (Literal["auto", "ddp"], "allowed are auto, ddp"),
    "hardware.devices": (Count, None),
    "hardware.num_threads": (Count | None, None),
    "hardware.num_workers": (Annotated[int, Ge(0)], None),
    "hardware.worker_start_method": (
        Literal["fork", "spawn", "forkserver"] | None,
        "allowed are fork, spawn, forkserver, or null for Python's choice",
    ),
    "trainer.max_steps": (Count | None, None),
    "trainer.max_epochs": (Annotated[float, Gt(0)] | None, None),
    "trainer.max_tokens": (Count | None, None),
    "trainer.evaluate_every": (Cadence, CADENCE),
    "trainer.save_every": (Cadence, CADENCE),
    "trainer.log_every": (Count, None),
    "trainer.clip_norm": (Annotated[float, Gt(0)] | None, None),
    "trainer.fast_dev_run": (bool | Count, "allowed are false, true, or a number of steps, at least 1"),
    "trainer.limit_train_batches": (
        Count | Annotated[float, Gt(0), Le(1)] | None,
        f"give {BATCHES}, or null for all; a run without training is lightning_apps.evaluate",
    ),
    "trainer.limit_val_batches": (Annotated[int, Ge(0)] | Share | None, f"give {BATCHES}, or null for all"),
    "trainer.limit_test_batches": (Annotated[int, Ge(0)] | Share | None, f"give {BATCHES}, or null for all"),
    "trainer.overfit_batches": (Annotated[int, Ge(0)] | Share, f"give {BATCHES}; 0 is off"),
    "trainer.profiler": (
        Literal["phases", "simple", "advanced", "pytorch"] | None,
        "allowed are phases, simple, advanced, pytorch, or null",
    ),
    "callbacks.checkpoints.mode": (Literal["min", "max"], "allowed are min, max"),
    "callbacks.checkpoints.keep": (Count | None, None),
    "callbacks.checkpoints.loss_ratio": (Annotated[float, Gt(0), Lt(1)] | None, None),
    "callbacks.guards.loss_spike_sigmas": (Annotated[float, Gt(0)], None),
    "callbacks.guards.collapsed_after": (Share, "a share of the run, between 0 and 1"),
    "callbacks.early_stopping.patience": (Annotated[int, Ge(0)], None),
}
"""What the dataclasses above cannot say, since OmegaConf knows no ranges: the type of each key with its range, and the
words for what is allowed where the range does not say it itself."""

ConfigStore.instance().store(name="schema", node=RootConfig)
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="lightning_apps",
    node={
        "_target_": "hydra_plugins.lightning_apps_sweeper.LightningAppsSweeper",
        "max_batch_size": None,  # the two arguments of Hydra's own sweeper
        "params": None,
    },
)
