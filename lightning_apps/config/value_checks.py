"""One value against one type: what is wrong with it, in a line that names the key and what is allowed."""

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import get_type_hints, is_typeddict

from lightning_apps.errors import ConfigError, did_you_mean

BOUNDS = {
    "greater_than_equal": (Ge, "ge"),
    "greater_than": (Gt, "gt"),
    "less_than_equal": (Le, "le"),
    "less_than": (Lt, "lt"),
}
"""pydantic's name of a bound that was broken, its type, and its field."""


@dataclass(frozen=True)
class Allowed:
    """In `Annotated[str, Allowed(Literal["a", "b"])]`: the type of a key that OmegaConf has no word for.

    Attributes:
        kind: the type.
        words: what is allowed, where the type does not say it itself.
    """

    kind: Any
    words: str | None = None


def allowed_type(annotation: Any) -> Allowed:
    """What an annotation allows: the type of its `Allowed`, or the annotation itself."""
    found = [entry for entry in getattr(annotation, "__metadata__", ()) if isinstance(entry, Allowed)]
    return found[0] if found else Allowed(annotation)


def check_fields(
    key: str, values: Mapping[str, Any], schema: type, *, unknown: Callable[[str], str | None] = lambda key: None
) -> None:
    """Each value of a section is of the type and inside the ranges of its field, and there are no others.

    Args:
        key: of the section; empty for the root.
        values: of the section, plain; a run that is older than a field does not have it.
        schema: dataclass with the fields.
        unknown: message for a key that is no field's, or None for the usual one.

    Raises:
        ConfigError: one is not.
    """
    fields = get_type_hints(schema, include_extras=True)
    for name, value in values.items():
        place = f"{key}.{name}" if key else name
        if name not in fields and not key:  # a group of the user's own, +flavour=sour
            continue
        if name not in fields:  # added with +, which Hydra allows even here
            usual = f"{place} does not exist{did_you_mean(name, list(fields))}; {key} has: {', '.join(fields)}"
            raise ConfigError(unknown(place) or usual)
        if is_dataclass(fields[name]):
            check_fields(place, value, fields[name], unknown=unknown)
        elif fields[name] not in (Any, dict[str, Any]):  # what is below these is bound to a signature
            checked_value(place, value, fields[name])


def checked_value(key: str, value: Any, annotation: Any) -> Any:
    """The value, where it is of the type and inside the ranges that the annotation names.

    Args:
        key: of the setting, for the message; a place inside the value is named after its last part.
        value: plain Python, as the configuration has it; nothing is converted.
        annotation: a type, in which `Annotated[int, Ge(1)]` gives ranges, and `Allowed` stands for what it holds.

    Raises:
        ConfigError: it is not.
    """
    from pydantic import TypeAdapter, ValidationError

    entry = allowed_type(annotation)
    annotation, allowed = entry.kind, entry.words
    _check_names(key, value, annotation)
    try:
        result = TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        place = list(problem["loc"])
        while place and isinstance(value, Mapping):  # name the field itself, not the whole mapping
            field = str(place.pop(0))
            key, annotation = f"{key}.{field}", _fields(annotation).get(field, Any)
            if field not in value:
                raise ConfigError(f"{key} is missing") from error
            value = value[field]
        word = problem["input"] if place else value
        hint = did_you_mean(word, _choices(annotation)) if isinstance(word, str) else ""
        words = allowed or _words(key.rpartition(".")[2], annotation, problem, place)
        raise ConfigError(f"{key}={value!r}{hint}: {words}") from error
    if not _is_finite(value):
        raise ConfigError(f"{key}={value!r}: {allowed or 'must be a finite number'}")
    return result


def readable(annotation: Any) -> str:
    """A type as a user reads it: no modules, no metadata."""
    text = inspect.formatannotation(_without_metadata(annotation))
    modules = r"\b(?:typing|typing_extensions|collections\.abc|datamodules|lightning_apps|models)\.(?:\w+\.)*"
    return re.sub(modules, "", text)


def _check_names(key: str, value: Any, annotation: Any) -> None:
    """Refuse keys that a TypedDict anywhere in a type does not have; pydantic would drop them."""
    if isinstance(value, list):
        for number, entry in enumerate(value):
            for part in _elements(annotation):
                _check_names(f"{key}[{number}]", entry, part)
    fields = _fields(annotation)
    if isinstance(value, Mapping) and fields:
        for name, entry in value.items():
            if name not in fields:
                raise ConfigError(
                    f"{key}.{name} does not exist{did_you_mean(str(name), list(fields))}; allowed: {', '.join(fields)}"
                )
            _check_names(f"{key}.{name}", entry, fields[name])


def _elements(annotation: Any) -> list[Any]:
    """Types of the elements of a list, or of the one in a union."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return [element for part in get_args(annotation) for element in _elements(part)]
    return list(get_args(annotation)) if get_origin(annotation) is list else []


def _fields(annotation: Any) -> dict[str, Any]:
    """Names and types of a TypedDict, or of the one in a union; none for other types."""
    if is_typeddict(annotation):
        return {name: _required(part) for name, part in get_type_hints(annotation, include_extras=True).items()}
    if get_origin(annotation) in (Union, UnionType):
        return next((fields for part in get_args(annotation) if (fields := _fields(part))), {})
    return {}


def _required(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) in (Required, NotRequired) else annotation


def _words(name: str, annotation: Any, problem: Mapping[str, Any], loc: list[Any]) -> str:
    # where in a list; the place inside a union is a type's name, which helps nobody
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    place = f" (at {name}{place})" if place.startswith("[") else ""
    if problem["type"] in BOUNDS:
        bound, field = BOUNDS[problem["type"]]
        broken = problem["ctx"][field]
        for bounds in _ranges(annotation):
            if any(isinstance(entry, bound) and getattr(entry, field) == broken for entry in bounds):
                return f"{range_in_words(bounds)}{', or null' if NoneType in get_args(annotation) else ''}{place}"
    choices = _choices(annotation)
    if problem["type"] == "literal_error" and not any(isinstance(part, str) for part in loc):
        null = ", or null" if NoneType in get_args(annotation) else ""
        hint = '; in a YAML file off must be quoted, "off"' if problem["input"] == "False" and "off" in choices else ""
        return f"allowed are {', '.join(choices)}{null}{place}{hint}"
    return f"{problem['msg'].lower()}{place}; expected {readable(annotation)}"


def range_in_words(bounds: list[Any]) -> str:
    """`must be at least 1` and the like, of Ge, Gt, Le and Lt."""
    low: Any = next((entry for entry in bounds if isinstance(entry, Ge | Gt)), None)
    high: Any = next((entry for entry in bounds if isinstance(entry, Le | Lt)), None)
    if isinstance(low, Gt) and isinstance(high, Lt):
        return f"must lie between {low.gt} and {high.lt}, both excluded"
    if isinstance(low, Ge) and isinstance(high, Le):
        return f"must lie between {low.ge} and {high.le}"
    if high is None and isinstance(low, Ge) and low.ge == 0:
        return "must be a number that is not negative"
    if high is None and isinstance(low, Gt) and low.gt == 0:
        return "must be positive"
    words = []
    if low is not None:
        words.append(f"at least {low.ge}" if isinstance(low, Ge) else f"above {low.gt}")
    if high is not None:
        words.append(f"at most {high.le}" if isinstance(high, Le) else f"below {high.lt}")
    return f"must be {' and '.join(words)}"


def _ranges(annotation: Any) -> Iterator[list[Any]]:
    """The bounds of every part of a type that has some."""
    if get_origin(annotation) is Annotated:
        bounds = [entry for entry in annotation.__metadata__ if isinstance(entry, Ge | Gt | Le | Lt)]
        if bounds:
            yield bounds
    for part in (*_fields(annotation).values(), *get_args(annotation)):
        yield from _ranges(part)


def _choices(annotation: Any) -> list[str]:
    """The words that a Literal anywhere in a type allows."""
    if get_origin(annotation) is Literal:
        return [entry for entry in get_args(annotation) if isinstance(entry, str)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def _without_metadata(annotation: Any) -> Any:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _without_metadata(parts[0])
    if origin in (Union, UnionType):
        return Union[tuple(map(_without_metadata, parts))]  # noqa: UP007 (made of parts that are known now)
    if isinstance(origin, type) and origin in (list, tuple, dict, set):
        return origin[tuple(map(_without_metadata, parts))]
    return annotation


def _is_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
