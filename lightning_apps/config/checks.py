"""The checks across groups, and what every command derives from a configuration; schema.py has the types.

Nothing here imports torch: composing, `--help` and most mistakes are answered in about a second.
"""

import hashlib
import importlib
import inspect
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

import lightning_apps.config.schema  # noqa: F401 (conf/config.yaml names it)
from datamodules.storage.errors import StorageError
from datamodules.storage.object_store import split_url
from lightning_apps.config.optimizer_checks import check_optimizer
from lightning_apps.config.package_folder import in_package
from lightning_apps.errors import ConfigError, did_you_mean
from lightning_apps.process.safe_stop import max_time_seconds

CONF = Path(__file__).resolve().parents[2] / "conf"
# ${project:tests/data/papers}: a path inside this project, wherever the command is started
OmegaConf.register_new_resolver("project", lambda path: str(CONF.parent / path), replace=True)


RUNTIME_ARGUMENTS = {
    "model": {"vocab_size", "pad_token_id", "eos_token_id", "label_names", "multi_label", "gguf"},
    "module": {"build_net", "build_optimizer", "schedule", "plan", "class_counts"},
    "optimizer": {"module", "fused", "total_steps"},
    "scheduler": {"total_steps"},
    "callbacks": {"run_directory", "plan", "monitor", "mode", "check_on_train_epoch_end"},
    "logger": {"save_dir"},
}
"""Arguments that the program supplies when it calls a node's target; every other one comes from the configuration."""
OPTIONAL_CALLBACKS = {
    "early_stopping": "lightning_apps.callbacks.early_stopping.EarlyStopping",
    "reduce_on_plateau": "lightning_apps.callbacks.reduce_on_plateau.ReduceOnPlateau",
    "weight_average": "lightning_apps.callbacks.weight_average.ExponentialWeightAverage",
}
"""Callbacks that are null or the arguments of one of these."""
PROGRAM_KEYS = {"optimizer": {"freeze": "freeze_parameters", "unfreeze": "unfreezing_steps"}}
"""Keys of a node that its target does not take: the program hands each to this function of parameter_groups."""


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain dicts and lists."""
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = re.search(r"full_key: (\S+)", str(error))
        name = key[1] if key else str(error).rpartition(" ")[2]
        raise ConfigError(f"{name} is missing: give it on the command line, {name}=...") from error
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    assert isinstance(container, dict)
    return container  # type: ignore[return-value]


def target(key: str, node: Mapping[str, Any]) -> Any:
    """The callable that a node's `_target_` names.

    Raises:
        ConfigError: there is no such thing.
    """
    path = node.get("_target_")
    if not isinstance(path, str) or "." not in path:
        raise ConfigError(f"{key}._target_={path!r}: expected the dotted path of a class or function")
    module_name, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}._target_={path!r} cannot be imported: {error}") from error


def bind(key: str, node: Mapping[str, Any]) -> Any:
    """A partial of the node's target over its arguments, after checking each name and type against its signature.

    Raises:
        ConfigError: an argument is unknown, missing, or of the wrong type.
    """
    from pydantic import TypeAdapter, ValidationError

    call = target(key, node)
    signature = inspect.signature(call, eval_str=True)
    not_for_target = {"_target_", *PROGRAM_KEYS.get(key, {}).keys() - signature.parameters.keys()}
    given = {name: in_package(f"{key}.{name}", value) for name, value in node.items() if name not in not_for_target}
    runtime = RUNTIME_ARGUMENTS.get(key.split(".")[0], set())
    parameters = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    takes_any = len(parameters) < len(signature.parameters)
    arguments = {}
    for name, value in given.items():
        if name not in parameters and not takes_any:
            allowed = [known for known in parameters if known not in runtime]
            raise ConfigError(
                f"{key}.{name} does not exist{did_you_mean(name, allowed)}; allowed: {', '.join(allowed)}"
            )
        annotation = parameters[name].annotation if name in parameters else inspect.Parameter.empty
        if annotation is inspect.Parameter.empty or takes_any:  # another library's signature
            arguments[name] = value
            continue
        try:
            arguments[name] = TypeAdapter(annotation).validate_python(value, strict=True)
        except ValidationError as error:
            problem = error.errors()[0]
            # where in a list; the place inside a union is a type's name, which helps nobody
            place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
            place = f" (at {name}{place})" if place.startswith("[") else ""
            raise ConfigError(
                f"{key}.{name}={value!r}: {problem['msg'].lower()}{place}; expected {_readable(annotation)}"
            ) from error
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in {*given, *runtime}:
            raise ConfigError(f"{key}.{name} is missing; {node['_target_']} needs it")
    return partial(call, **arguments)


def bind_callback(config: Mapping[str, Any], name: str) -> Any:
    """One of OPTIONAL_CALLBACKS as bind gives it; None where it is off."""
    node = config["callbacks"][name]
    if node is None:
        return None
    if not isinstance(node, Mapping):
        raise ConfigError(f"callbacks.{name}={node!r}: give its settings, callbacks.{name}={{key: value}}, or null")
    return bind(f"callbacks.{name}", {**node, "_target_": OPTIONAL_CALLBACKS[name]})


def _readable(annotation: Any) -> str:
    text = inspect.formatannotation(annotation)
    return re.sub(r"\b(?:typing|collections\.abc|datamodules|lightning_apps)\.(?:\w+\.)*", "", text)


def check_config(config: Mapping[str, Any]) -> None:
    """Reject what groups can only get wrong together, and every argument that its target would refuse.

    Raises:
        ConfigError: with the key, what is allowed and the remedy.
    """
    for key in ("model", "data", "optimizer", "scheduler", "module"):
        if not isinstance(config[key], Mapping):
            raise ConfigError(f"{key}={config[key]!r}: choose an option of the group, {key}=<{'|'.join(options(key))}>")
        bind(key, config[key])
    for name, function in PROGRAM_KEYS["optimizer"].items():
        if name in config["optimizer"]:
            path = f"lightning_apps.training.parameter_groups.{function}"
            bind("optimizer", {"_target_": path, name: config["optimizer"][name]})
    for name in OPTIONAL_CALLBACKS:
        bind_callback(config, name)
    for group, nodes in (("callbacks.extra", config["callbacks"]["extra"]), ("logger", config["logger"])):
        for name, node in nodes.items():
            if node is not None:
                bind(f"{group}.{name}", node)
    _check_run_name(config["run"]["name"])
    _check_upload(config["run"]["upload"])
    _check_numbers(config)
    _check_guards(config["callbacks"]["guards"])
    _check_model(config["model"])
    _check_data(config["data"], config["hardware"])
    _check_strategy(config["hardware"]["strategy"])
    _check_devices(config)
    check_optimizer(config)


def options(group: str) -> list[str]:
    """Options of a config group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _check_run_name(name: str | None) -> None:
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=,+@\[\]-]*", name):
        raise ConfigError(f"run.name={name!r}: use letters, digits and . _ = , + - (no slashes), starting with one")


def _check_upload(url: str | None) -> None:
    if url is not None:
        try:
            split_url(url)
        except StorageError as error:
            raise ConfigError(f"run.upload: {error}") from error


def _check_numbers(config: Mapping[str, Any]) -> None:
    max_time_seconds(config["trainer"]["max_time"])
    trainer, checkpoints = config["trainer"], config["callbacks"]["checkpoints"]
    if trainer["log_every"] < 1:
        raise ConfigError(f"trainer.log_every={trainer['log_every']}: must be at least 1")
    if trainer["clip_norm"] is not None and trainer["clip_norm"] <= 0:
        raise ConfigError(f"trainer.clip_norm={trainer['clip_norm']}: must be positive, or null for no clipping")
    if checkpoints["mode"] not in ("min", "max"):
        raise ConfigError(f"callbacks.checkpoints.mode={checkpoints['mode']!r}: allowed are min, max")
    if not checkpoints["monitor"].startswith("val/"):
        raise ConfigError(
            f"callbacks.checkpoints.monitor={checkpoints['monitor']!r}: selection looks at val/ metrics only"
        )
    if checkpoints["keep"] is not None and checkpoints["keep"] < 1:
        raise ConfigError(f"callbacks.checkpoints.keep={checkpoints['keep']}: must be at least 1, or null for all")
    ratio = checkpoints["loss_ratio"]
    if ratio is not None and not 0 < ratio < 1:
        raise ConfigError(f"callbacks.checkpoints.loss_ratio={ratio}: must lie between 0 and 1, both excluded, or null")
    average = config["callbacks"]["weight_average"]
    if average is not None and not 0 < average["decay"] < 1:
        raise ConfigError(f"callbacks.weight_average.decay={average['decay']}: must lie between 0 and 1, both excluded")
    plateau = config["callbacks"]["reduce_on_plateau"]
    if plateau is not None:
        if not 0 < plateau["factor"] < 1:
            raise ConfigError(
                f"callbacks.reduce_on_plateau.factor={plateau['factor']}: must lie between 0 and 1, both excluded"
            )
        for name in ("patience", "threshold", "min_factor"):
            if plateau.get(name, 0) < 0:
                raise ConfigError(f"callbacks.reduce_on_plateau.{name}={plateau[name]}: must not be negative")
    if not 0 <= config["module"].get("label_smoothing", 0.0) < 1:
        raise ConfigError(
            f"module.label_smoothing={config['module']['label_smoothing']}: must be at least 0 and below 1"
        )
    if not 0 <= config["seed"] < 2**32:
        raise ConfigError(f"seed={config['seed']}: must lie between 0 and 2**32 - 1")


GUARD_ACTIONS = {
    "non_finite": ("stop", "skip", "off"),
    "token_ids": ("stop", "off"),
    "loss_spike": ("stop", "skip", "warn", "off"),
    "collapsed_generator": ("stop", "warn", "off"),
}
"""What each guard of callbacks.guards may do."""


def _check_guards(guards: Mapping[str, Any]) -> None:
    for name, allowed in GUARD_ACTIONS.items():
        if guards[name] not in allowed:
            hint = '; in a YAML file off must be quoted, "off"' if guards[name] == "False" else ""
            raise ConfigError(
                f"callbacks.guards.{name}={guards[name]!r}{did_you_mean(guards[name], list(allowed))}: "
                f"allowed are {', '.join(allowed)}{hint}"
            )
    if guards["loss_spike_sigmas"] <= 0:
        raise ConfigError(f"callbacks.guards.loss_spike_sigmas={guards['loss_spike_sigmas']}: must be positive")
    if not 0 <= guards["collapsed_after"] <= 1:
        raise ConfigError(
            f"callbacks.guards.collapsed_after={guards['collapsed_after']}: a share of the run, between 0 and 1"
        )


def _check_model(model: Mapping[str, Any]) -> None:
    width, heads, key_heads = (
        model.get("hidden_size"),
        model.get("num_attention_heads"),
        model.get("num_key_value_heads"),
    )
    for name, value in model.items():
        if name.startswith("num_") or name.endswith("_size"):  # noqa: SIM102
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"model.{name}={value}: must be at least 1")
    if width and heads and width % heads:
        raise ConfigError(f"model.hidden_size={width} is not a multiple of model.num_attention_heads={heads}")
    if width and heads and (width // heads) % 2:
        raise ConfigError(
            f"model.hidden_size={width} / model.num_attention_heads={heads} = {width // heads}: "
            "rotary positions need an even head size"
        )
    if heads and key_heads and heads % key_heads:
        raise ConfigError(
            f"model.num_attention_heads={heads} is not a multiple of model.num_key_value_heads={key_heads}"
        )


def _check_data(data: Mapping[str, Any], hardware: Mapping[str, Any]) -> None:
    for name in (
        "global_batch_size", "device_batch_size", "evaluation_batch_size", "max_train_samples",
        "max_evaluation_samples", "max_length", "chunk_size", "stride", "max_chunks",
    ):  # fmt: skip
        value = data.get(name)
        if value is not None and value < 1:
            raise ConfigError(f"data.{name}={value}: must be at least 1")
    for name in ("num_validation", "num_test", "blend_cities"):
        lowest = 0 if name == "num_test" else 1
        if data.get(name) is not None and data[name] < lowest:
            raise ConfigError(f"data.{name}={data[name]}: must be at least {lowest}")
    if data.get("validation_share") is not None and not 0 < data["validation_share"] < 1:
        raise ConfigError(f"data.validation_share={data['validation_share']}: must lie between 0 and 1, both excluded")
    if data.get("test_share") is not None and not 0 <= data["test_share"] < 1:
        raise ConfigError(f"data.test_share={data['test_share']}: must be at least 0 (none) and below 1")
    if data.get("stride") and data.get("chunk_size") and data["stride"] >= data["chunk_size"]:
        raise ConfigError(
            f"data.stride={data['stride']}: chunks of data.chunk_size={data['chunk_size']} tokens, special ones "
            "included, would leave text between them out; choose a smaller stride"
        )
    whole, per_device, devices = data["global_batch_size"], data.get("device_batch_size"), hardware["devices"]
    if per_device is not None and per_device > -(-whole // devices):
        raise ConfigError(
            f"data.device_batch_size={per_device} is more than a device's share of "
            f"data.global_batch_size={whole} on {devices} device(s)"
        )


def _check_devices(config: Mapping[str, Any]) -> None:
    precision, accelerator = config["precision"]["name"], config["hardware"]["accelerator"]
    if config["hardware"]["devices"] < 1:
        raise ConfigError(f"hardware.devices={config['hardware']['devices']}: must be at least 1")
    if accelerator == "cpu" and precision == "fp16_mixed":
        raise ConfigError("precision=fp16_mixed needs a GPU; on a CPU choose precision=fp32 or bf16_mixed")
    if accelerator == "mps" and config["hardware"]["devices"] > 1:
        raise ConfigError(f"hardware.devices={config['hardware']['devices']}: with hardware=mps there is one device")
    if accelerator == "mps" and precision == "bf16_true":
        raise ConfigError("precision=bf16_true is not supported with hardware=mps; choose fp32 or fp16_mixed")


def run_name(overrides: list[str]) -> str:
    """Name of a run made from its command-line overrides: the same command finds the same run again.

    Settings that do not change what is trained are left out. Long names are cut and end in a hash of the whole.
    """
    neutral = ("run.", "experiment=", "hydra.", "hydra/", "logger", "~logger")
    return name_of_parts(
        [override.lstrip("+") for override in overrides if not override.lstrip("+").startswith(neutral)]
    )


def name_of_parts(parts: list[str]) -> str:
    """`key=value` parts, sorted, as a name for a folder; a long one is cut and ends in a hash of the whole."""
    whole = ",".join(sorted(parts))
    name = re.sub(r"[^A-Za-z0-9._=,+-]+", "_", whole) or "default"
    if len(name) > 100:
        name = f"{name[:80]}-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"
    return name if name[0].isalnum() else f"run{name}"


STRATEGIES = ("auto", "ddp")
"""Those under which the process that started the run holds the trained weights when it ends."""


def _check_strategy(strategy: str) -> None:
    if strategy not in STRATEGIES:
        raise ConfigError(
            f"hardware.strategy={strategy}{did_you_mean(strategy, list(STRATEGIES))}: allowed are "
            f"{', '.join(STRATEGIES)}; ddp starts a process for each device"
        )
