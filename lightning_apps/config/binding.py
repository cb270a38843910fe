"""From a node of the configuration to the call that its `_target_` names, checked against the call's signature."""

import importlib
import inspect
import typing
from collections.abc import Mapping
from functools import partial
from typing import Any, NotRequired, Required, get_args, get_origin

from typing_extensions import Unpack, get_type_hints

from lightning_apps.config.package_folder import in_package
from lightning_apps.config.value_checks import checked_value
from lightning_apps.errors import ConfigError, did_you_mean
from models.from_data import FROM_DATA

RUNTIME_ARGUMENTS = {
    "module": {"build_net", "build_optimizer", "schedule", "plan"},
    "optimizer": {"module", "fused", "total_steps"},
    "scheduler": {"total_steps"},
    "callbacks": {"run_directory", "plan", "monitor", "mode", "check_on_train_epoch_end"},
    "logger": {"save_dir"},
}
"""Arguments that the program itself supplies when it calls a node's target; supplied_by_data names those of the data,
and every other one comes from the configuration."""
OPTIONAL_CALLBACKS = {
    "early_stopping": "lightning_apps.callbacks.early_stopping.EarlyStopping",
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


def parameters_of(call: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """The named parameters of a callable, and whether it takes any others besides.

    The fields of `**options: Unpack[Options]` (PEP 692) are parameters like the others; a field that is not required
    has the default `...`, for there is one, but only the callable knows it.
    """
    parameters: dict[str, inspect.Parameter] = {}
    takes_any = False
    for name, parameter in inspect.signature(call, eval_str=True).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:  # a configuration has names only
            continue
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            parameters[name] = parameter
        elif get_origin(parameter.annotation) in (Unpack, typing.Unpack):
            (options,) = get_args(parameter.annotation)
            for field, annotation in get_type_hints(options, include_extras=True).items():
                if get_origin(annotation) in (Required, NotRequired):
                    (annotation,) = get_args(annotation)
                default = inspect.Parameter.empty if field in options.__required_keys__ else ...
                parameters[field] = inspect.Parameter(
                    field, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
                )
        else:
            takes_any = True
    return parameters, takes_any


def supplied_by_data(call: Any) -> set[str]:
    """Names of the parameters that are marked as coming from the data, `vocab_size: FromData[int]`."""
    parameters, _ = parameters_of(call)
    return {
        name for name, parameter in parameters.items() if FROM_DATA in getattr(parameter.annotation, "__metadata__", ())
    }


def bind(key: str, node: Mapping[str, Any]) -> Any:
    """A partial of the node's target over its arguments, after checking each name and type against its signature.

    A target with an attribute `check`, see checked_by, has it called with the arguments.

    Raises:
        ConfigError: an argument is unknown, missing, of the wrong type or out of range.
    """
    call = target(key, node)
    parameters, takes_any = parameters_of(call)
    not_for_target = {"_target_", *PROGRAM_KEYS.get(key, {}).keys() - parameters.keys()}
    given = {name: in_package(f"{key}.{name}", value) for name, value in node.items() if name not in not_for_target}
    runtime = RUNTIME_ARGUMENTS.get(key.split(".")[0], set()) | supplied_by_data(call)
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
        arguments[name] = checked_value(f"{key}.{name}", value, annotation)
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in {*given, *runtime}:
            raise ConfigError(f"{key}.{name} is missing; {node['_target_']} needs it")
    if (check := getattr(call, "check", None)) is not None:
        try:
            check(arguments)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    return partial(call, **arguments)


def bind_callback(config: Mapping[str, Any], name: str) -> Any:
    """One of OPTIONAL_CALLBACKS as bind gives it; None where it is off."""
    node = config["callbacks"][name]
    if node is None:
        return None
    if not isinstance(node, Mapping):
        raise ConfigError(f"callbacks.{name}={node!r}: give its settings, callbacks.{name}={{key: value}}, or null")
    return bind(f"callbacks.{name}", {**node, "_target_": OPTIONAL_CALLBACKS[name]})
