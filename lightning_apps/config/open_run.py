"""An existing run, opened: its directory and its configuration, which may be a stranger's."""

from pathlib import Path
from typing import Any

from datamodules.storage.folders import is_remote
from lightning_apps.config.trusted_targets import check_targets
from lightning_apps.errors import ConfigError
from lightning_apps.run_files.directory import (
    RunDirectory,
    fetched_run,
    read_config,
    refuse_links,
    use_cache_here,
)


def open_run(path: str, cache_root: str = ".cache", *, trust: Any = ()) -> tuple[RunDirectory, dict[str, Any]]:
    """An existing run and its resolved configuration, for what builds what that names.

    Args:
        path: see read_run.
        cache_root: see read_run.
        trust: what the run's configuration may name beside this program's own code, see check_targets.

    Raises:
        ConfigError: there is no run at this path, it cannot be fetched, or it names code that nobody vouches for.
    """
    directory, config = read_run(path, cache_root)
    check_targets(config, directory.config, trust)
    return directory, config


def read_run(path: str, cache_root: str = ".cache") -> tuple[RunDirectory, dict[str, Any]]:
    """An existing run and its resolved configuration, for what only reads and copies files.

    Args:
        path: its directory, or the s3:// URL that it was uploaded to.
        cache_root: below it, in `runs`, goes the copy of a run from an object store. It is fetched once, and looked
            at again at each opening: what is there now decides. Results are written to the copy.

    Raises:
        ConfigError: there is no run at this path, or it cannot be fetched.
    """
    directory = RunDirectory(fetched_run(path, Path(cache_root)) if is_remote(path) else Path(path))
    if not directory.config.is_file():
        near = sorted(str(found.parent) for found in Path("outputs").glob("*/*/config.yaml"))
        raise ConfigError(f"run={path}: no run is there (no config.yaml); runs here: {', '.join(near) or 'none'}")
    refuse_links(directory, ("config.yaml", "summary.json"))
    config = read_config(directory)
    if is_remote(path):
        use_cache_here(config, cache_root)
    return directory, config
