"""The language of overrides: quoting for Hydra, and the names of runs that are made from them."""

import hashlib
import re


def quote_value(argument: str) -> str:
    """`run=outputs/location/seed=1` -> `run="outputs/location/seed=1"`: paths of runs and checkpoints hold `=`.

    Hydra's grammar has no use for an equals sign in a value that is not quoted, so nothing else is meant by it.
    """
    key, _, value = argument.partition("=")
    if argument.startswith("-") or "=" not in value or any(sign in value for sign in "\"'[]{}()$"):
        return argument
    return f'{key}="{value}"'


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
