"""The root keys and sections: each key's type and range. Values, and what each key means, are in conf/.

OmegaConf sees the plain types; check_config reads the ranges, and the types that OmegaConf has no word for (`Allowed`).
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, Predicate
from hydra.core.config_store import ConfigStore

from lightning_apps.config.value_checks import Allowed
from models.ranges import Count, Positive

Natural = Annotated[int, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
WholeOrShare = Annotated[float, Gt(0), Predicate(lambda value: value < 1 or value % 1 == 0)]
Cadence = Annotated[
    Any,
    Allowed(
        Literal["epoch", "never"] | Count | WholeOrShare,
        "allowed are optimizer steps, a fraction of the run below 1, epoch, never",
    ),
]
BATCHES = "give a number of batches, or a share of them between 0.0 and 1.0"
Batches = Annotated[Any, Allowed(Natural | Share | None, f"{BATCHES}, or null for all")]


@dataclass(kw_only=True)
class PrecisionConfig:
    """How numbers are stored and multiplied.

    Attributes:
        name: of the option.
        lightning: what Lightning's Trainer calls it; auto until a run begins.
    """

    name: str
    lightning: Annotated[
        str,
        Allowed(
            Literal["auto", "32-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true", "64-true"],
            "allowed are auto, 32-true, 16-mixed, bf16-mixed, bf16-true, 16-true, 64-true; precision= chooses one",
        ),
    ]


@dataclass(kw_only=True)
class HardwareConfig:
    """Where the run happens.

    Attributes:
        name: of the option.
        accelerator: kind of device; auto takes the GPU where there is one.
        devices: so many processes on each machine, each with a device of its own.
        num_nodes: machines.
        strategy: how several processes share the work; ddp averages gradients, fsdp2 holds weights in shards too.
        timeout_s: after which processes that wait for another one give up.
        pin_memory: page-locked host memory, for faster copies to a GPU.
    """

    name: str
    accelerator: Annotated[str, Allowed(Literal["auto", "gpu", "mps", "cpu"])]
    devices: Count
    num_nodes: Count = 1  # an older run's configuration has neither this
    strategy: str  # hardware_checks.py knows them
    timeout_s: Positive = 1800.0  # nor this
    num_threads: Count | None
    num_workers: Natural
    worker_start_method: Annotated[
        str | None,
        Allowed(
            Literal["fork", "spawn", "forkserver"] | None,
            "allowed are fork, spawn, forkserver, or null for Python's choice",
        ),
    ]
    pin_memory: bool
    deterministic: bool
    compile: bool
    find_device_batch_size: bool
    gradient_checkpointing: bool


@dataclass(kw_only=True)
class TrainerConfig:
    """How long, how often.

    Attributes:
        max_epochs: passes over the training samples; counts where neither max_steps nor max_tokens is given.
    """

    max_steps: Count | None
    max_epochs: Positive | None
    max_tokens: Count | None
    max_time: str | None
    evaluate_every: Cadence
    save_every: Cadence
    log_every: Count
    clip_norm: Positive | None
    # an older run's configuration has none of these
    fast_dev_run: Annotated[Any, Allowed(bool | Count, "allowed are false, true, or a number of steps, at least 1")] = (
        False
    )
    limit_train_batches: Annotated[
        Any,
        Allowed(
            Count | Annotated[float, Gt(0), Le(1)] | None,
            f"{BATCHES}, or null for all; a run without training is lightning_apps.evaluate",
        ),
    ] = None
    limit_val_batches: Batches = None
    limit_test_batches: Batches = None
    overfit_batches: Annotated[Any, Allowed(Natural | Share, f"{BATCHES}; 0 is off")] = 0
    detect_anomaly: bool = False
    profiler: Annotated[str | None, Allowed(Literal["phases", "simple", "advanced", "pytorch"] | None)] = None


@dataclass(kw_only=True)
class CheckpointsConfig:
    """Which checkpoint is best, how many are kept, how they are written.

    Attributes:
        monitor: metric of an evaluation that chooses the best checkpoint.
        mode: whether the smallest or the largest value of it is the best.
    """

    monitor: str
    mode: Annotated[str, Allowed(Literal["min", "max"])]
    keep: Count | None
    loss_ratio: Annotated[float, Gt(0), Lt(1)] | None
    write: Annotated[str, Allowed(Literal["foreground", "background"])] = "foreground"  # an older run has none
    layout: Annotated[str, Allowed(Literal["consolidated", "sharded"])] = "consolidated"  # nor of this


@dataclass(kw_only=True)
class GuardsConfig:
    """What is watched, and what happens when it goes wrong."""

    non_finite: Annotated[str, Allowed(Literal["stop", "skip", "off"])]
    token_ids: Annotated[str, Allowed(Literal["stop", "off"])]
    loss_spike: Annotated[str, Allowed(Literal["stop", "skip", "warn", "off"])]
    loss_spike_sigmas: Positive
    collapsed_generator: Annotated[str, Allowed(Literal["stop", "warn", "off"])]
    collapsed_after: Annotated[float, Allowed(Share, "a share of the run, between 0 and 1")]


@dataclass(kw_only=True)
class CallbacksConfig:
    """What happens beside training.

    Attributes:
        extra: further callbacks by names of your own, each with its `_target_`; null or false switches one off.
    """

    guards: GuardsConfig
    checkpoints: CheckpointsConfig
    # OmegaConf cannot put a mapping where an optional dataclass is null; binding.py looks at the types of these
    early_stopping: Any = None
    reduce_on_plateau: Any = None
    weight_average: Any = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class RunConfig:
    """Where the run's files go.

    Attributes:
        output_root: a run goes to the folder `<experiment>/<name>` in it.
        cache_root: folder of prepared data, which runs share.
        group: what loggers show together, such as the name of the sweep.
    """

    output_root: str
    name: str | None
    resume: str | None
    overwrite: bool
    cache_root: str
    group: str | None
    upload: str | None


@dataclass(kw_only=True)
class RootConfig:
    """The root keys.

    Attributes:
        experiment: name of the experiment, and of the folder of its runs.
        seed: of everything that is drawn: weights, order, dropout.
        verify: overrides that turn the experiment into a run of seconds, for verify.
        verify_files: function that writes what such a run needs into a folder, and returns overrides.
        verify_same: claims of the experiment's own: the overrides of two such runs that may differ in no bit.
    """

    experiment: str
    seed: Annotated[int, Allowed(Annotated[int, Ge(0), Lt(2**32)], "must lie between 0 and 2**32 - 1")]
    module: Any
    model: Any
    data: Any
    optimizer: Any
    scheduler: Any
    precision: PrecisionConfig
    hardware: HardwareConfig
    trainer: TrainerConfig
    callbacks: CallbacksConfig
    logger: dict[str, Any] = field(default_factory=dict)
    run: RunConfig
    sweep: Any = None  # the settings of sweeps.grid.SweepSettings; null in a single run's own configuration
    verify: list[str] = field(default_factory=list)
    verify_files: str | None = None
    verify_same: dict[str, list[list[str]]] = field(default_factory=dict)


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
