"""Real data and tokenizers, where the machine has them."""

from pathlib import Path

import pytest

from lightning_apps.config.composition import CONF


def shared(*parts: str) -> Path:
    """A file of the shared data folder beside the project; skips the test where there is none."""
    for parent in CONF.parents:
        if (path := parent.joinpath("shared", *parts)).exists():
            return path
    pytest.skip(f"shared/{'/'.join(parts)} is not here")
