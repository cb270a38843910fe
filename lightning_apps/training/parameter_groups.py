"""Which parameters are trained, and with which learning rate and weight decay: patterns, layers, frozen parts."""

import difflib
import re
import time
from typing import Annotated, Any, NotRequired

import regex
from annotated_types import Ge
from torch import nn
from typing_extensions import TypedDict  # pydantic refuses typing's before Python 3.12

from lightning_apps.errors import ConfigError
from lightning_apps.training.plan import fraction_or_steps

LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)\.")
"""Where a name says its layer: `model.layers.3.mlp`, `encoder.layer.3.output`, `transformer.h.3.attn`."""
PATTERN_PATIENCE_S = 5.0
"""For one pattern in all names; an honest one takes milliseconds."""


class GroupRule(TypedDict):
    """Own settings for the parameters that a pattern finds.

    Attributes:
        pattern: regular expression that is searched in the parameters' names.
        lr: peak learning rate; that of all other parameters where it is not given.
        weight_decay: decoupled decay of matrices; that of all other matrices where it is not given.
    """

    pattern: str
    lr: NotRequired[Annotated[float, Ge(0)]]
    weight_decay: NotRequired[Annotated[float, Ge(0)]]


class UnfreezeRule(TypedDict):
    """Parameters that start to learn later than the rest.

    Attributes:
        pattern: regular expression that is searched in the parameters' names.
        at_step: completed optimizer steps before which they stay as they are; below 1 a fraction of the run.
    """

    pattern: str
    at_step: float


def parameter_names(module: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Every parameter once, with all its names: a tied one has several."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names


def matching(key: str, pattern: str, module: nn.Module) -> list[nn.Parameter]:
    """Parameters in one of whose dotted names a regular expression is found.

    A number is found whole or not at all: `layers.1` does not find `layers.12.`, nor does `layers.[0-3]`.

    Args:
        key: dotted key of the setting, for the message.
        pattern: searched in the names, as `re.search` does.
        module: whose parameters are asked.

    Raises:
        ConfigError: the pattern is no regular expression, or finds nothing.
    """
    inside_number = r"(?!(?<=\d)\d)"
    try:
        re.compile(pattern)
        # as re finds it, but with a time limit: (\w+)+x tries every way to cut a name that has no x
        expression = regex.compile(f"{inside_number}(?:{pattern}){inside_number}")
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"{key}={pattern!r} is no regular expression ({error}); write parts of names, such as "
            "embed or layers.[0-3], and a backslash before a special character that is meant"
        ) from error
    names = parameter_names(module)
    end = time.monotonic() + PATTERN_PATIENCE_S

    def is_found(name: str) -> bool:
        return expression.search(name, timeout=max(end - time.monotonic(), 1e-3)) is not None

    try:
        found = [parameter for parameter, aliases in names.items() if any(map(is_found, aliases))]
    except TimeoutError as error:
        raise ConfigError(
            f"{key}={pattern!r} takes longer than {PATTERN_PATIENCE_S:.0f} s to look for: it has repetitions inside of "
            "repetitions; write parts of names, such as embed or layers.[0-3]"
        ) from error
    if not found:
        known = [name for aliases in names.values() for name in aliases]
        near = difflib.get_close_matches(pattern, known, n=3, cutoff=0) or known[:3]
        raise ConfigError(f"{key}={pattern!r} finds no parameter; the nearest names are {', '.join(near)}")
    return found


def embedding_parameters(module: nn.Module) -> set[nn.Parameter]:
    """Parameters of all nn.Embedding parts."""
    return {parameter for part in module.modules() if isinstance(part, nn.Embedding) for parameter in part.parameters()}


def layer_depths(module: nn.Module) -> tuple[dict[nn.Parameter, int], int]:
    """How far each parameter is from the input, and the number of layers n.

    0 to n - 1 are the numbered layers (several stacks count on from each other); -1 are embeddings, whatever else
    comes before the first layer included; n is everything behind it, the head.
    """
    places: dict[nn.Parameter, tuple[str, int] | None] = {}
    sizes: dict[str, int] = {}
    before_layers = embedding_parameters(module)
    for parameter, names in parameter_names(module).items():
        match = LAYER.search(names[0])
        if match is not None:
            stack, index = names[0][: match.start(1)], int(match[1])
            places[parameter] = (stack, index)
            sizes[stack] = max(sizes.get(stack, 0), index + 1)
            continue
        places[parameter] = None
        if not sizes:
            before_layers.add(parameter)
    offsets, num_layers = {}, 0
    for stack, size in sizes.items():
        offsets[stack] = num_layers
        num_layers += size
    depths = {
        parameter: (-1 if parameter in before_layers else num_layers) if place is None else offsets[place[0]] + place[1]
        for parameter, place in places.items()
    }
    return depths, num_layers


def hidden_matrices(module: nn.Module) -> set[nn.Parameter]:
    """Matrices inside the numbered layers: neither embedding, nor head, nor anything that is not 2-D."""
    depths, num_layers = layer_depths(module)
    embeddings = embedding_parameters(module)
    return {
        parameter
        for parameter, depth in depths.items()
        if 0 <= depth < num_layers and parameter.ndim == 2 and parameter not in embeddings
    }


def parameter_groups(
    module: nn.Module, *, lr: float, weight_decay: float, groups: list[GroupRule], layer_decay: float | None
) -> list[dict[str, Any]]:
    """Groups for an optimizer; every trainable parameter is in exactly one.

    Weights of two and more dimensions decay, embeddings among them; norms, biases and other vectors never do:
    decaying a gain or a bias pulls the function, not its complexity, toward zero.

    Layer-wise decay (Howard and Ruder 2018; in the form of BEiT, Bao et al. 2021) multiplies the learning rate of layer
    l of n by layer_decay ** (n - l): 1 for the head, layer_decay for the last layer, layer_decay ** (n + 1) for
    embeddings.

    Args:
        module: whose trainable parameters are grouped.
        lr: learning rate where no rule gives one.
        weight_decay: decoupled decay of matrices where no rule gives one; vectors never decay.
        groups: the first rule whose pattern finds a parameter is the one that counts.
        layer_decay: factor from one layer to the one before it; None for none.

    Returns:
        `params`, `lr`, `weight_decay` and a readable `name` such as `matrices`, `encoder/layer 3/vectors`.

    Raises:
        ConfigError: nothing is trainable, a pattern finds nothing, or there are no layers to decay over.
    """
    rule_of: dict[nn.Parameter, int] = {}
    for number, rule in enumerate(groups):
        for parameter in matching(f"optimizer.groups[{number}].pattern", rule["pattern"], module):
            rule_of.setdefault(parameter, number)
    depths, num_layers = layer_depths(module)
    if layer_decay is not None and num_layers == 0:
        known = [names[0] for names in parameter_names(module).values()][:3]
        raise ConfigError(
            f"optimizer.layer_decay={layer_decay}: no parameter's name has a numbered layer "
            f"(layers.3., layer.3., h.3., block.3.); the first are {', '.join(known)}; set optimizer.layer_decay=null"
        )
    made: dict[tuple[int | None, int | None, bool], dict[str, Any]] = {}
    for parameter, depth in depths.items():
        if not parameter.requires_grad:
            continue
        found = groups[rule_of[parameter]] if parameter in rule_of else None
        words = [] if found is None else [found["pattern"]]
        rate = lr if found is None else found.get("lr", lr)
        decay = weight_decay if found is None else found.get("weight_decay", weight_decay)
        if layer_decay is not None:
            rate *= layer_decay ** (num_layers - depth)
            words.append("embeddings" if depth < 0 else "head" if depth == num_layers else f"layer {depth}")
        is_vector = parameter.ndim < 2
        name = "/".join([*words, "vectors" if is_vector else "matrices"])
        key = (rule_of.get(parameter), depth if layer_decay is not None else None, is_vector)
        group = made.setdefault(
            key, {"params": [], "lr": rate, "weight_decay": 0.0 if is_vector else decay, "name": name}
        )
        group["params"].append(parameter)
    if not made:
        raise ConfigError("no parameter is trainable: take a pattern out of optimizer.freeze")
    return list(made.values())


def freeze_parameters(module: nn.Module, *, freeze: list[str]) -> None:
    """Exclude parameters from training for good.

    Raises:
        ConfigError: a pattern finds nothing, or nothing remains.
    """
    for number, pattern in enumerate(freeze):
        for parameter in matching(f"optimizer.freeze[{number}]", pattern, module):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError(f"optimizer.freeze={freeze} leaves nothing to train: take a pattern out")


def unfreezing_steps(module: nn.Module, *, unfreeze: list[UnfreezeRule], total_steps: int) -> dict[nn.Parameter, int]:
    """After how many optimizer steps each parameter that an unfreezing rule finds starts to learn.

    The first rule that finds a parameter counts.

    Raises:
        ConfigError: a pattern finds nothing or a frozen parameter, a step lies beyond the run, or nothing learns in
            the first step.
    """
    steps: dict[nn.Parameter, int] = {}
    for number, rule in enumerate(unfreeze):
        key = f"optimizer.unfreeze[{number}]"
        step = fraction_or_steps(f"{key}.at_step", rule["at_step"], total_steps)
        if step >= total_steps:
            raise ConfigError(
                f"{key}.at_step={rule['at_step']:g}: the run has {total_steps} optimizer steps, so these would never "
                "learn; use optimizer.freeze for that, or a smaller step"
            )
        found = matching(f"{key}.pattern", rule["pattern"], module)
        if not all(parameter.requires_grad for parameter in found):
            raise ConfigError(
                f"{key}.pattern={rule['pattern']!r} finds parameters that optimizer.freeze keeps frozen for the whole "
                "run (or model.freeze_embeddings, model.freeze_layers); take them out of one of the two"
            )
        for parameter in found:
            steps.setdefault(parameter, step)
    if not any(parameter.requires_grad and steps.get(parameter, 0) == 0 for parameter in module.parameters()):
        raise ConfigError("optimizer.unfreeze leaves nothing to train in the first step: give one part at_step: 0")
    return steps
