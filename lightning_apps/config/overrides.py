"""The language of overrides: quoting for Hydra, and the names of runs that are made from them."""

import functools
import hashlib
import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

PATH = re.compile(r"(?:/|~|\.{1,2}/|\w+://)")
"""How paths begin, and nothing else that is swept over."""
FUNCTION = re.compile(r"(?:choice|range|interval|glob|sort|shuffle|tag|int|float|str|bool|json_str|extend_list)\(")
"""Functions of Hydra's grammar."""


def quote_value(argument: str, *, multirun: bool = False) -> str:
    r"""`run=outputs/location/seed=1` -> `run="outputs/location/seed=1"`: what Hydra's grammar cannot read gets quotes.

    That is any letter outside ASCII and signs such as `# & ; ( '`. What Hydra reads stays as it is, its own quotes,
    escapes (`\=`), lists and functions among it. A path with a comma is one path, where nothing is swept.

    Args:
        argument: of the command line.
        multirun: whether a comma separates values to sweep over.
    """
    key, equals, value = argument.partition("=")
    if argument.startswith("-") or not equals:
        return argument
    override = _parsed(argument)
    if override is not None:
        is_list = override.is_sweep_override() and not FUNCTION.match(value)
        return f"{key}={quoted(value)}" if is_list and not multirun and PATH.match(value) else argument
    if re.fullmatch(r"\[[^\[\]{}()\"']*\]", value):
        return f"{key}=[{_each(key, value[1:-1])}]"
    if value.startswith(("[", "{", '"', "'")) or FUNCTION.match(value) or _parsed(f"{key}=x") is None:
        return argument  # meant for the grammar, and wrong: Hydra says where
    return f"{key}={_each(key, value) if multirun else quoted(value)}"


def quoted(text: str) -> str:
    """The text in double quotes of Hydra's grammar, which give it back."""
    return '"' + re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), text) + '"'


def _each(key: str, values: str) -> str:
    """Comma-separated values, those in quotes that need them."""
    words = [word.strip() for word in values.split(",")]
    return ",".join(word if _parsed(f"{key}={word}") is not None else quoted(word) for word in words)


def _parsed(argument: str) -> Any:
    try:
        return _parser().parse_override(argument)
    except HydraException:
        return None


@functools.cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def override_key(override: str) -> str:
    """`+optimizer.lr=1e-3` -> `optimizer.lr`."""
    return override.split("=")[0].lstrip("+~")


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
