"""Where options are looked for beside conf/: `--config-dir` and `hydra.searchpath`, as a command line gives them."""

import argparse
import importlib.resources
import os
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from lightning_apps.config.override_value import override_value

SEARCH_PATH = "hydra.searchpath"


def search_path(words: Sequence[str]) -> list[str]:
    """The folders and packages that a command line adds to conf/, as Hydra searches them: in order, with a scheme.

    Args:
        words: of the command line, without the program's name; what cannot be read is Hydra's to complain about.
    """
    config_dir, others = _config_dir(words)
    found = [] if config_dir is None else [config_dir]
    for word in others:
        if word.partition("=")[0] == SEARCH_PATH:
            try:
                value = OverridesParser.create().parse_override(word).value()
            except HydraException:
                continue
            found += value if isinstance(value, list) else []
    return [_with_scheme(str(place)) for place in found]


def config_dir_of_completion(words: Sequence[str]) -> list[str]:
    """`--config-dir` of the line that a shell wants completed: Hydra looks for options only where its own words say."""
    if not {"-sc", "--shell-completion"}.intersection(words):
        return []
    folder, _ = _config_dir(os.environ.get("COMP_LINE", "").split())
    return ["--config-dir", folder] if folder is not None and Path(folder).is_dir() else []


def _config_dir(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of `--config-dir`, and the words that belong to none of these flags."""
    # argparse takes a flag that is cut short; with all that begin alike `-c job` does not pass for `-cd`
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    for flags in (("--config-dir", "-cd"), ("--cfg", "-c"), ("--config-name", "-cn"), ("--config-path", "-cp")):
        parser.add_argument(*flags)
    try:
        given, others = parser.parse_known_args(list(words))
    except argparse.ArgumentError:
        return None, []
    return given.config_dir, others


def _with_scheme(place: str) -> str:
    scheme, separator, rest = place.partition("://")
    if separator and scheme != "file":
        return place
    # absolute: the processes that get it may run in another folder
    return f"file://{Path(rest if separator else place).absolute()}"


def search_path_override(words: Sequence[str]) -> list[str]:
    """What makes another composition or process look where this command line does: one override, or none."""
    places = search_path(words)
    return [f"{SEARCH_PATH}={override_value(places)}"] if places else []


def overrides_of(words: Sequence[str]) -> list[str]:
    """The overrides of a command line as another composition takes them: without flags, the search path as one."""
    others = [word for word in _config_dir(words)[1] if not word.startswith("-")]
    return [*(word for word in others if word.partition("=")[0] != SEARCH_PATH), *search_path_override(words)]


def group_options(config_path: Path, group: str, words: Sequence[str]) -> list[str]:
    """Options of a config group, in conf/ and where a command line adds to it.

    Args:
        config_path: of the command, conf/ or conf/command.
        group: path of the group's folder below it.
        words: of the command line.
    """
    names = [
        entry.name
        for folder in option_folders(config_path, words)
        if folder.joinpath(group).is_dir()
        for entry in folder.joinpath(group).iterdir()
    ]
    return sorted({name.removesuffix(".yaml") for name in names if name.endswith(".yaml")})


def is_group(config_path: Path, name: str, words: Sequence[str]) -> bool:
    """Whether a name is a config group's; the arguments are those of group_options."""
    return any(folder.joinpath(name).is_dir() for folder in option_folders(config_path, words))


def option_folders(config_path: Path, words: Sequence[str]) -> list[Traversable]:
    """The folders that hold the config groups, conf/ first; the arguments are those of group_options."""
    folders: list[Traversable] = [config_path]
    for place in search_path(words):
        scheme, _, rest = place.partition("://")
        if scheme == "file":
            folders.append(Path(rest))
        elif scheme == "pkg":
            package, *inside = rest.replace("/", ".").rstrip(".").split(".")
            try:
                folders.append(importlib.resources.files(package).joinpath(*inside))
            except (ImportError, TypeError):  # no such package, or a module that is none
                continue
    return folders
