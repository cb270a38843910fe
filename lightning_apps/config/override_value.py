"""Values in the grammar of Hydra's overrides."""

import re
from collections.abc import Mapping
from typing import Any


def override_value(value: Any) -> str:
    """A value in the grammar of Hydra's overrides: parsing it gives the value back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", value)
        if plain and value.lower() not in ("null", "true", "false", "nan", "inf"):
            return value
        # a backslash stands for itself unless it comes before a quote
        escaped = re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), value)
        return f"'{escaped}'"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{override_value(entry)}" for key, entry in value.items()) + "}"
    return "[" + ",".join(map(override_value, value)) + "]"
