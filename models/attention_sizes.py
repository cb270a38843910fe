"""Sizes of attention that must fit each other, checked before a network is made."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def checked_by(check: Callable[[Mapping[str, Any]], None]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a constructor check its keyword arguments together first; what checks configurations finds it as `.check`.

    Args:
        check: raises ValueError, with the key `model.<argument>`, where they do not fit.
    """

    def decorate(build: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(build)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            check(kwargs)
            return build(*args, **kwargs)

        checked.check = check  # type: ignore[attr-defined]
        return checked

    return decorate


def check_heads(settings: Mapping[str, Any]) -> None:
    """Attention heads share the width, and query heads the key and value heads, evenly.

    Args:
        settings: `hidden_size`, `num_attention_heads` and, where there is such a thing, `num_key_value_heads`.

    Raises:
        ValueError: they do not.
    """
    width, heads = settings["hidden_size"], settings["num_attention_heads"]
    if width % heads:
        raise ValueError(f"model.hidden_size={width} is not a multiple of model.num_attention_heads={heads}")
    key_heads = settings.get("num_key_value_heads", heads)
    if heads % key_heads:
        raise ValueError(
            f"model.num_attention_heads={heads} is not a multiple of model.num_key_value_heads={key_heads}"
        )


def check_rotary_heads(settings: Mapping[str, Any]) -> None:
    """What check_heads asks, and heads of an even size.

    Raises:
        ValueError: sizes do not fit.
    """
    check_heads(settings)
    width, heads = settings["hidden_size"], settings["num_attention_heads"]
    if (width // heads) % 2:
        raise ValueError(
            f"model.hidden_size={width} / model.num_attention_heads={heads} = {width // heads}: "
            "rotary positions need an even head size"
        )
