"""What `--help` says: the command's own header, every key with the comment of its YAML file, Hydra's flags last."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_apps.config.search_path import group_options, option_folders, overrides_of

LINE = re.compile(r"(?P<indent> *)(?P<key>[\w@/-]+):(?: .*?)?(?:  # (?P<comment>.*))?")
"""A line of YAML with a key; comments stand two spaces behind the value."""
HIDDEN = ("hydra", "verify", "verify_files", "verify_same")
"""Keys that nobody overrides: Hydra's own, and the tiny runs of `verify`."""
FLAGS = """Flags (foo.bar=value and group=option need none):
  --cfg job            show the configuration that these words make, and do nothing
  --multirun, -m       run every combination of values listed with commas: seed=1,2,3
  --config-dir FOLDER  find further options of the groups in this folder
  --info [all]         where the configuration comes from
  --hydra-help         all flags of Hydra"""


def help_page(config_path: Path, config_name: str, words: Sequence[str], docstring: str) -> str:
    """The help of a command.

    Args:
        config_path: folder of its configuration.
        config_name: of the file in it.
        words: of the command line; the configuration that they make is shown.
        docstring: of the command's module; the page begins with it.
    """
    with initialize_config_dir(version_base="1.3", config_dir=str(config_path)):
        cfg = compose(config_name, overrides=overrides_of(words), return_hydra_config=True)
    choices = {group: option for group, option in cfg.hydra.runtime.choices.items() if "hydra" not in group and option}
    notes = comments(config_path / f"{config_name}.yaml", ())
    for group, option in choices.items():
        for folder in option_folders(config_path, words):
            notes |= comments(Path(str(folder)) / group / f"{option}.yaml", (group,))
    keys = with_comments(shown(cfg), notes)
    groups = "".join(
        f"  {folder.name}: {', '.join(group_options(config_path, folder.name, words))}\n"
        for folder in sorted(config_path.iterdir())
        if folder.is_dir() and folder.name != "command"
    )
    chosen = f"Groups, choose with group=option:\n{groups}\n" if groups else ""
    return f"{docstring.strip()}\n\n{chosen}Keys, with foo.bar=value:\n{keys}\n\n{FLAGS}"


def shown(cfg: DictConfig) -> DictConfig:
    """The configuration without what nobody overrides."""
    with open_dict(cfg):
        return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in HIDDEN])


def comments(path: Path, prefix: tuple[str, ...]) -> dict[tuple[str, ...], str]:
    """The comments of a YAML file, and of the files of its folder that it builds on, by the keys they stand beside.

    Args:
        path: of the file; one that is not there has no comments.
        prefix: keys that it is put below, unless it says `@package _global_`.
    """
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    found: dict[tuple[str, ...], str] = {}
    content: Any = OmegaConf.create(text)
    for base in bases(path, content) if OmegaConf.is_dict(content) and prefix else []:
        found |= comments(base, prefix)
    below = () if text.startswith("# @package _global_") else prefix
    for place, match in keyed_lines(text):
        if match["comment"]:
            found[(*below, *place)] = match["comment"]
    return found


def bases(path: Path, content: Mapping[str, Any]) -> list[Path]:
    """Files that an option's file builds on: of its own folder, or `/loading@_here_` of the one above."""
    names = [base.partition("@")[0] for base in content.get("defaults", []) if isinstance(base, str)]
    folders = (path.parent, path.parents[1])
    places = [folders[name.startswith("/")] / f"{name.removeprefix('/')}.yaml" for name in names]
    return [place for place in places if place.is_file()]


def with_comments(cfg: DictConfig, notes: dict[tuple[str, ...], str]) -> str:
    """The configuration as YAML, each key with its comment."""
    text = OmegaConf.to_yaml(cfg)
    lines = []
    places = iter(keyed_lines(text))
    upcoming = next(places, None)
    for line in text.splitlines():
        if upcoming is not None and upcoming[1].string == line:
            note = notes.get(upcoming[0])
            upcoming = next(places, None)
            line += f"  # {note}" if note else ""
        lines.append(f"  {line}")
    return "\n".join(lines)


def keyed_lines(text: str) -> list[tuple[tuple[str, ...], re.Match[str]]]:
    """The lines that begin with a key, and where the key stands."""
    found = []
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        if match := LINE.fullmatch(line):
            indent = len(match["indent"])
            above = [entry for entry in above if entry[0] < indent]
            above.append((indent, match["key"]))
            found.append((tuple(key for _, key in above), match))
    return found
