"""From a node of the configuration to the call that its `_target_` names, checked against the call's signature."""

import importlib
import inspect
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from lightning_apps.config.package_folder import in_package
from lightning_apps.errors import ConfigError, did_you_mean

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
    "early_stopping": "lightning.pytorch.callbacks.EarlyStopping",
    "reduce_on_plateau": "lightning_apps.callbacks.reduce_on_plateau.ReduceOnPlateau",
    "weight_average": "lightning_apps.callbacks.weight_average.ExponentialWeightAverage",
}
"""Callbacks that are null or the arguments of one of these."""
PROGRAM_KEYS = {"optimizer": {"freeze": "freeze_parameters", "unfreeze": "unfreezing_steps"}}
"""Keys of a node that its target does not take: the program hands each to this function of parameter_groups."""


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
