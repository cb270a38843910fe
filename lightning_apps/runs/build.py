"""From a checked configuration to objects: data, module, callbacks, loggers, trainer."""

import hashlib
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from transformers import PreTrainedModel

from datamodules.contract import ExperimentData, Limits, Split
from lightning_apps.callbacks.checkpoints import RunCheckpoints
from lightning_apps.callbacks.device_batch_size import FindDeviceBatchSize
from lightning_apps.callbacks.gradual_unfreezing import GradualUnfreezing
from lightning_apps.callbacks.guards import Guards
from lightning_apps.callbacks.progress import RunProgress
from lightning_apps.callbacks.sample_log import SampleLog
from lightning_apps.callbacks.schedule_free_evaluation import ScheduleFreeEvaluation
from lightning_apps.callbacks.self_kill import KILL_VARIABLE, SelfKill
from lightning_apps.callbacks.step_clock import StepClock
from lightning_apps.callbacks.step_log import StepLog
from lightning_apps.config.binding import bind, bind_callback, parameters_of, supplied_by_data, target
from lightning_apps.config.composition import chosen
from lightning_apps.config.kind_checks import check_kinds
from lightning_apps.config.optimizer_checks import is_schedule_free
from lightning_apps.diagnostics.phases import PhaseProfiler
from lightning_apps.errors import ConfigError
from lightning_apps.experiments.experiment import Experiment, Start
from lightning_apps.process.safe_stop import SafeStop
from lightning_apps.run_files.checkpoint_files import AtomicCheckpointIO
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics_csv import MetricsCSV
from lightning_apps.run_files.side_logger import SideLogger
from lightning_apps.training.parameter_groups import freeze_parameters, unfreezing_steps
from lightning_apps.training.plan import RunPlan, plan_run
from lightning_apps.training.strategies import build_strategy, cluster_environment
from models.language.causal_lm import recompute_activations

Config = Mapping[str, Any]
Kind = TypeVar("Kind", bound=L.Callback)


def quiet_libraries() -> None:
    """Silence notices that no user of these commands can act on."""
    import logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loaders fork; fast tokenizers would warn each time
    import transformers

    transformers.utils.logging.disable_progress_bar()
    # a model whose folder brings code of its own is refused: transformers would ask on the terminal whether to run it
    transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # batches are built in memory; workers would slow them down
        ".*GPU available but not used.*",  # hardware=cpu asked for that
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*You are using `torch.load` with `weights_only=False`.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
        ".*LeafSpec.*",
        ".*Found .* module\\(s\\) in eval mode.*",
        ".*You have overridden `on_before_batch_transfer`.*",  # grpo means to
        ".*sync_dist=True.*",  # values are reduced before they are logged
        ".*pin_memory.*",
    ):
        warnings.filterwarnings("ignore", message)


def bind_data(config: Config) -> ExperimentData:
    """The experiment's data module; nothing is prepared yet.

    Raises:
        ConfigError: it, or the experiment's module, is another one than Lightning's Trainer is driven with here.
    """
    check_kinds(config)
    datamodule: ExperimentData = bind("data", config["data"])()
    return datamodule


def build_datamodule(config: Config, *, completed: bool = True) -> ExperimentData:
    """The experiment's data module, prepared and set up.

    Args:
        config: of the run.
        completed: whether the module adds its samples to the training split (Experiment.complete_data), which may
            take hours.

    Raises:
        ConfigError: the data contradict the configuration.
    """
    datamodule = bind_data(config)
    try:
        datamodule.prepare_data()
        datamodule.setup()
        module = target("module", config["module"])
        module.select_data(datamodule)
        if completed:
            module.complete_data(datamodule, start_of(config, datamodule))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    whole_epoch = datamodule.epoch_steps  # before there are limits
    datamodule.limits = limits_of(config["trainer"], epoch_steps=whole_epoch)
    return datamodule


def start_of(config: Config, datamodule: ExperimentData) -> Start:
    """The network that a run starts from; nothing is built yet."""

    def build_net() -> PreTrainedModel:
        return _draw_net(config["seed"], bind_net(config, datamodule.net_arguments))

    def to_device(net: PreTrainedModel) -> PreTrainedModel:
        name = available_accelerator(config["hardware"]["accelerator"])
        return net.to(torch.device({"gpu": "cuda"}.get(name, name)))  # type: ignore[arg-type]  # transformers' own wrapper

    dtypes = {"bf16": torch.bfloat16, "16": torch.float16}
    return Start(build_net, to_device, dtypes.get(config["precision"]["lightning"].partition("-")[0]))


def limits_of(trainer: Mapping[str, Any], *, epoch_steps: int) -> Limits:
    """What Lightning's `limit_*_batches` and `overfit_batches` leave of the data; a batch of training is a step.

    Args:
        trainer: the `trainer` settings; older configurations have none of these.
        epoch_steps: optimizer steps of a whole epoch.
    """
    overfit = trainer.get("overfit_batches") or None
    train, evaluated = trainer.get("limit_train_batches"), trainer.get("limit_val_batches")
    tested = trainer.get("limit_test_batches")
    if overfit is not None:  # as in Lightning: the same batches again and again, and as many in each evaluation
        train = evaluated = overfit
    if isinstance(train, float):
        train = max(1, int(train * epoch_steps))
    batches: dict[Split, int | float | None] = {"train": evaluated, "validation": evaluated, "test": tested}
    return Limits(
        epoch_steps=None if train is None else min(train, epoch_steps),
        repeats_first_epoch=overfit is not None,
        # 0 is no evaluation at all in training; a command that is asked for one looks at everything
        batches={split: limit for split, limit in batches.items() if limit},
    )


def build_plan(config: Config, datamodule: ExperimentData, *, trains: bool = True) -> RunPlan:
    """The plan of the run; without warmup where nobody trains, since the data there may make fewer steps of it."""
    trainer = config["trainer"]
    if trainer.get("limit_val_batches") == 0 and not trainer.get("overfit_batches"):
        trainer = {**trainer, "evaluate_every": "never"}
    return plan_run(
        num_train_samples=datamodule.num_train_samples,
        tokens_per_sample=datamodule.tokens_per_sample,
        global_batch_size=config["data"]["global_batch_size"],
        trainer=trainer,
        warmup=config["scheduler"]["warmup_steps"] if trains else 0,
        epoch_steps=datamodule.limits.epoch_steps,
        inner_steps=config["module"].get("inner_steps", 1),
    )


def build_module(config: Config, datamodule: ExperimentData, plan: RunPlan) -> Experiment:
    """The experiment's LightningModule with freshly drawn weights."""
    scheduler = {**config["scheduler"], "warmup_steps": plan.warmup_steps}
    torch.manual_seed(config["seed"])
    # a fused optimizer unscales float16 gradients inside its step, too late for clipping by norm
    fused = config["precision"]["name"] != "fp16_mixed"
    build_optimizer = partial(_call, bind("optimizer", config["optimizer"]), {"fused": fused})
    runtime = {
        "build_net": partial(_draw_net, config["seed"], bind_net(config, datamodule.net_arguments)),
        "build_optimizer": build_optimizer,
        "schedule": bind("scheduler", scheduler)(total_steps=plan.total_steps),
        "plan": plan,
        **datamodule.module_arguments,
    }
    module: Experiment = _call(bind("module", config["module"]), runtime)
    datamodule.weigh = module.weigh  # the collator counts what the loss divides by
    datamodule.inner_steps = module.inner_steps
    net: Any = module.net
    if config["hardware"]["gradient_checkpointing"]:
        try:
            recompute_activations(net)
        except ValueError as error:
            raise ConfigError(f"hardware.gradient_checkpointing=true: {error}; set it to false") from error
    freeze_parameters(net, freeze=config["optimizer"].get("freeze", []))
    # wrong patterns are found now, before anything is written
    unfreezing_steps(net, unfreeze=config["optimizer"].get("unfreeze", []), total_steps=plan.total_steps)
    build_optimizer(net)
    if config["hardware"]["compile"]:
        # in place, so that no name gains _orig_mod (Lightning#17415), and the inner net only: a compiled
        # LightningModule breaks on self.log (Lightning#21836)
        net.base_model.compile()
    return module


def bind_net(config: Config, net_arguments: Mapping[str, Any]) -> partial:
    """The function that makes the network, with what it must know of the data.

    Raises:
        ConfigError: the network is one for another task.
    """
    make = bind("model", config["model"])
    needed = supplied_by_data(make.func) - make.keywords.keys()
    if not needed <= set(net_arguments):
        raise ConfigError(
            f"{chosen('model', config)} does not go with experiment={config['experiment']}: the network needs "
            f"{', '.join(sorted(needed - set(net_arguments)))}, and the data give it {', '.join(net_arguments)}; leave "
            "model= to the experiment, or choose another"
        )
    return partial(_build_net, make, net_arguments)


def _draw_net(seed: int, build: partial) -> PreTrainedModel:
    """The network that a run starts from: the same weights whenever it is called."""
    torch.manual_seed(seed)
    net: PreTrainedModel = build()
    return net


def _build_net(build: partial, arguments: Mapping[str, Any]) -> Any:
    """The network; one that cannot be loaded, or does not suit the data, is the configuration's mistake."""
    wanted, _ = parameters_of(build.func)  # data may know more than the network needs
    try:
        return build(**{name: value for name, value in arguments.items() if name in wanted})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def build_callbacks(config: Config, directory: RunDirectory, plan: RunPlan, stop: SafeStop) -> list[L.Callback]:
    """Callbacks in the order in which they run: step clock, log, guards, the configured ones, stopping, checkpoints."""
    settings = config["callbacks"]
    clock, step_log, guards, *others = build_step_callbacks(config, plan, crash_dumps=directory.crash_dumps)
    assert isinstance(step_log, StepLog)
    callbacks = [clock, step_log, guards, SampleLog(directory.sample_log), RunProgress(step_log)]
    callbacks += build_extra_callbacks(config, directory, plan)
    # the average goes behind the evaluations: it puts the raw weights back when it is its turn at their end
    callbacks += others
    checkpoints = settings["checkpoints"]
    monitored = {"monitor": checkpoints["monitor"], "mode": checkpoints["mode"]}
    if (plateau := bind_callback(config, "reduce_on_plateau")) is not None:
        # ahead of the checkpoint of the same step, which holds the lowered rates
        callbacks.append(plateau(**monitored))
    if (stopping := bind_callback(config, "early_stopping")) is not None:
        callbacks.append(stopping(**monitored, check_on_train_epoch_end=False))
    if point := os.environ.get(KILL_VARIABLE):
        callbacks.append(SelfKill(point))
    callbacks.append(RunCheckpoints(plan=plan, folder=directory.checkpoints, stop=stop, **checkpoints))
    return callbacks


def callback_of(callbacks: Sequence[L.Callback], kind: type[Kind]) -> Kind:
    """The one callback of a class among those of a run, for what comes after training.

    Raises:
        ValueError: there is none, or more than one.
    """
    (found,) = [callback for callback in callbacks if isinstance(callback, kind)]
    return found


def build_step_callbacks(config: Config, plan: RunPlan, *, crash_dumps: Path | None) -> list[L.Callback]:
    """The callbacks that take part in a step: plan, log, guards, micro-batches, unfreezing, averages.

    Replaying a step needs these and no others; none of them writes, but for the crash dumps.
    """
    settings, trainer = config["callbacks"], config["trainer"]
    step_log = StepLog(plan, log_every=trainer["log_every"])
    guards = Guards(plan=plan, step_log=step_log, crash_dumps=crash_dumps, config=config, **settings["guards"])
    callbacks: list[L.Callback] = [StepClock(plan, config["seed"]), step_log, guards]
    if config["hardware"]["find_device_batch_size"]:
        callbacks.append(FindDeviceBatchSize())
    if unfreeze := config["optimizer"].get("unfreeze"):
        callbacks.append(GradualUnfreezing(plan=plan, unfreeze=unfreeze))
    if is_schedule_free(config):
        callbacks.append(ScheduleFreeEvaluation())
    if (average := bind_callback(config, "weight_average")) is not None:
        callbacks.append(average())
    return callbacks


def build_extra_callbacks(config: Config, directory: RunDirectory, plan: RunPlan) -> list[L.Callback]:
    """The callbacks of `callbacks.extra`; null or false switches one off."""
    runtime = {"run_directory": directory, "plan": plan}
    return [
        _call(bind(f"callbacks.extra.{name}", node), runtime)
        for name, node in config["callbacks"]["extra"].items()
        if node
    ]


def _call(call: partial, runtime: Mapping[str, Any], *arguments: Any) -> Any:
    """Call with those of the runtime's arguments that the target has."""
    wanted, _ = parameters_of(call.func)
    return call(*arguments, **{name: value for name, value in runtime.items() if name in wanted})


def build_loggers(config: Config, directory: RunDirectory) -> list[Logger]:
    """metrics.csv, and what the `logger` group adds."""
    loggers: list[Logger] = [MetricsCSV(directory.metrics)]
    for name, node in config["logger"].items():
        if name == "wandb":
            loggers.append(SideLogger(_wandb_logger(node, config, directory)))
        else:
            loggers.append(SideLogger(bind(f"logger.{name}", node)(save_dir=directory.path)))
    return loggers


def _wandb_logger(node: Mapping[str, Any], config: Config, directory: RunDirectory) -> Logger:
    offline = node.get("offline", False) or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun")
    netrc = Path.home() / ".netrc"
    known = os.environ.get("WANDB_API_KEY") or (netrc.is_file() and "wandb" in netrc.read_text(encoding="utf-8"))
    if not offline and not known:
        raise ConfigError(
            "logger=wandb needs an account: run `wandb login`, set WANDB_API_KEY, or use logger.wandb.offline=true"
        )
    os.environ.setdefault("WANDB_SILENT", "true")
    logger: Logger = bind("logger.wandb", node)(
        save_dir=directory.path,
        name=f"{config['experiment']}/{config['run']['name']}",
        id=wandb_run_id(config["experiment"], config["run"]["name"]),  # a resumed run goes on in the same W&B run
        resume="allow",
    )
    return logger


def wandb_run_id(experiment: str, name: str) -> str:
    """Identifier of a run at W&B, at most 64 characters long, the same for the same run.

    W&B refuses some signs (:;,#?/' today, others elsewhere), and long names of a sweep's jobs begin alike: where signs
    were replaced or the name was cut, a hash of the whole tells runs apart.
    """
    whole = f"{experiment}-{name}"
    accepted = re.sub(r"[^A-Za-z0-9._=+-]", "_", whole)
    if accepted == whole and len(whole) <= 64:
        return whole
    return f"{accepted[:51]}-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"


def set_threads(config: Config) -> None:
    """Compute with `hardware.num_threads` threads, where they are named."""
    if config["hardware"]["num_threads"] is not None:
        torch.set_num_threads(config["hardware"]["num_threads"])


def build_trainer(
    config: Config,
    plan: RunPlan,
    *,
    callbacks: list[L.Callback],
    loggers: list[Logger],
    evaluation_only: bool = False,
    profiler: Profiler | None = None,
) -> L.Trainer:
    """Lightning's Trainer over one Lightning epoch of `plan.total_steps` step batches.

    The limits of Lightning's own (limit_val_batches and others) are not handed on: the data module keeps them, so that
    evaluations know which samples they look at.

    Raises:
        ConfigError: the hardware or precision that was asked for is not here.
    """
    hardware = config["hardware"]
    set_threads(config)
    accelerator = available_accelerator(hardware["accelerator"])
    if accelerator == "cpu" and config["precision"]["name"] == "fp16_mixed":
        raise ConfigError("precision=fp16_mixed needs a GPU, and none is here; choose precision=fp32 or bf16_mixed")
    return L.Trainer(
        accelerator=accelerator,
        devices=hardware["devices"],
        num_nodes=hardware.get("num_nodes", 1),
        strategy=build_strategy(config),
        precision=config["precision"]["lightning"],
        deterministic=hardware["deterministic"],
        max_epochs=1,
        max_steps=plan.total_steps,
        val_check_interval=plan.total_steps,  # StepClock sets the steps
        limit_val_batches=None if plan.evaluation_steps or evaluation_only else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=loggers,
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        plugins=[AtomicCheckpointIO(), *cluster_environment(hardware)],
        use_distributed_sampler=False,  # StepSampler gives each rank its share
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(callback, RunProgress) for callback in callbacks),
        detect_anomaly=config["trainer"].get("detect_anomaly", False),
        profiler=profiler,
    )


PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def build_profiler(config: Config, directory: RunDirectory, net: PreTrainedModel) -> Profiler | None:
    """The profiler that `trainer.profiler` names, Lightning's or ours; its report goes into the run directory."""
    name = config["trainer"].get("profiler")
    if name == "phases":
        phases = PhaseProfiler(dirpath=directory.profile, filename="phases")
        phases.watch(net.base_model)
        return phases
    return None if name is None else PROFILERS[name](dirpath=directory.profile, filename="profile")


def available_accelerator(wanted: str) -> str:
    """`auto` becomes gpu, mps or cpu, whatever is here.

    Raises:
        ConfigError: the wanted accelerator is not here.
    """
    here = {
        "gpu": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return next(name for name, there in here.items() if there)
    if wanted not in here:
        raise ConfigError(f"hardware.accelerator={wanted!r}: allowed are auto, {', '.join(here)}")
    if not here[wanted]:
        raise ConfigError(f"hardware={wanted}: no such device here; choose hardware=auto or hardware=cpu")
    return wanted
