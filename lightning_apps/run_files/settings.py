"""Which settings make a run what it is, and which may differ between two starts of the same run."""

from collections.abc import Mapping
from typing import Any

FREE = (
    "run", "sweep", "logger", "hardware", "callbacks.guards", "callbacks.checkpoints.write",
    "callbacks.checkpoints.layout", "trainer.max_time", "data.num_workers", "data.worker_start_method",
    "data.pin_memory", "data.cache_root",
)  # fmt: skip
"""Where a run happens, what it says and what watches it; none of these changes what is learned."""


def different_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key: value then, value now` of every setting that makes another experiment of a run, sorted by key.

    Where `precision=auto` asks, whatever it chose then goes on, on any machine.
    """
    then, later = flat_settings(before), flat_settings(now)
    for key in ("precision.name", "precision.lightning"):
        if later.get(key) == "auto":
            then[key] = "auto"
    return [
        f"{key}: {then.get(key)!r} then, {later.get(key)!r} now"
        for key in sorted(then.keys() | later.keys())
        if then.get(key) != later.get(key) and not is_free(key)
    ]


def is_free(key: str) -> bool:
    """Whether a setting may differ between two starts of one run."""
    return any(key == name or key.startswith(f"{name}.") for name in FREE)


def flat_settings(node: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of a configuration by their dotted keys."""
    if not isinstance(node, Mapping):
        return {prefix: node}
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        leaves |= flat_settings(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves
