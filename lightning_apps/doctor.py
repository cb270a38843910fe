"""Look at a run before it starts: settings, machine, data, model and generation, in seconds on a CPU.

python -m lightning_apps.doctor experiment=gsm8k
python -m lightning_apps.doctor experiment=location format=json

Takes what train takes, and trains nothing. Exit code 1 where something is red.
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from lightning_apps.config.checks import check_config
from lightning_apps.config.command_line import run_command
from lightning_apps.config.command_settings import check_format, take_format
from lightning_apps.config.composition import CONF, asks_for_sweep, plain
from lightning_apps.config.overrides import override_key, run_name
from lightning_apps.config.search_path import search_path_override
from lightning_apps.errors import ConfigError

if TYPE_CHECKING:
    from lightning_apps.runs.doctor.examination import Examination
    from lightning_apps.runs.doctor.finding import Finding

TRAINED = ("\x1b[1;32m", "\x1b[0m")
"""Bold green on terminals."""
MARKS = ("\u27e6", "\u27e7")
"""Around what is trained where there is no colour."""
COMMAND = "python -m lightning_apps."
COLOURS = {"green": "\x1b[32m", "yellow": "\x1b[33m", "red": "\x1b[1;31m"}


def doctor(cfg: DictConfig, output: str = "text") -> None:
    """Print examples of the data and every finding, the worst last; exits with 1 where one is red.

    Args:
        cfg: of a run.
        output: `text` or `json`.

    Raises:
        ConfigError: the configuration or the data is wrong.
    """
    from hydra.core.hydra_config import HydraConfig

    check_format(output)
    if asks_for_sweep():
        raise ConfigError("doctor looks at one run: experiment=..., without sweep=...")
    hydra_config = HydraConfig.get()
    OmegaConf.update(cfg, "sweep", None)
    words = list(hydra_config.overrides.task)
    if cfg.run.name is None:
        OmegaConf.update(cfg, "run.name", run_name(words))
    config = plain(cfg)
    check_config(config)
    defaults = default_config(hydra_config.runtime.choices["experiment"])

    from lightning_apps.process.console import open_console, say
    from lightning_apps.runs.doctor.examination import examine
    from lightning_apps.runs.doctor.finding import worst

    open_console()
    found = examine(config, defaults)
    found = replace(
        found, findings=[replace(finding, remedy=with_words(finding.remedy, words)) for finding in found.findings]
    )
    level, cpu_s = worst(found.findings), time.process_time()
    if output == "json":
        rows = [asdict(finding) for finding in found.findings]
        say(json.dumps({"experiment": config["experiment"], "level": level, "cpu_s": cpu_s, "findings": rows}))
    else:
        say("\n".join([*lines(found, colour=wants_colour()), f"{level}; {cpu_s:.0f} s of CPU"]))
    if level == "red":
        sys.exit(1)


def with_words(remedy: str, words: Sequence[str]) -> str:
    """A remedy that is a command, with the overrides that doctor was given ahead of its own; others as they are."""
    if not remedy.startswith(COMMAND):
        return remedy
    python, module, command, *own = shlex.split(remedy)
    keys = {override_key(word) for word in own}
    kept = [word for word in words if override_key(word) not in keys]
    return shlex.join([python, module, command, *kept, *own])


def default_config(experiment: str) -> dict[str, Any]:
    """The experiment's configuration without any override."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    words = [*search_path_override(sys.argv[1:]), f"experiment={experiment}"]
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("config", overrides=words)
    OmegaConf.update(cfg, "sweep", None)
    made: Any = OmegaConf.to_container(cfg, resolve=True)  # what is missing stays so
    return dict(made)


def wants_colour() -> bool:
    """Colour on terminals, unless NO_COLOR is set; elsewhere where FORCE_COLOR is."""
    return "NO_COLOR" not in os.environ and (sys.stdout.isatty() or "FORCE_COLOR" in os.environ)


def lines(found: "Examination", *, colour: bool) -> list[str]:
    """Examples and pictures of the data, then each finding, with its remedy below it."""
    start, stop = TRAINED if colour else MARKS
    shown = []
    if found.report.examples:
        shown.append(f"\nwhat is trained stands in {'green' if colour else start + stop}:")
    for example in found.report.examples:
        pieces = [(printable(piece), trained) for piece, trained in example.stretches]
        text = "".join(f"{start}{piece}{stop}" if trained else piece for piece, trained in pieces)
        shown += ["", f"--- {example.title}", text]
    shown += ["", *found.report.pictures, ""]
    shown += [f"{name:>12}  {text}" for name, text in found.data_lines.items()]
    for area in dict.fromkeys(finding.area for finding in found.findings):
        shown += ["", area]
        for finding in found.findings:
            if finding.area == area:
                shown += finding_lines(finding, colour=colour)
    return [*shown, ""]


def printable(text: str) -> str:
    """A text of the data without the signs that would steer a terminal: these are shown as Python writes them."""
    return "".join(sign if sign in "\n\t" or sign.isprintable() else repr(sign)[1:-1] for sign in text)


def finding_lines(finding: "Finding", *, colour: bool) -> list[str]:
    """One finding: its level, the claim and what was counted; below it the remedy."""
    level = f"{COLOURS[finding.level]}{finding.level:6}{TRAINED[1]}" if colour else f"{finding.level:6}"
    text = [f"  {level}  {finding.claim}: {finding.counted}"]
    return [*text, f"          remedy: {finding.remedy}"] if finding.remedy else text


def main() -> Any:
    """Entry point."""
    output = take_format()

    def look(cfg: DictConfig) -> None:
        doctor(cfg, output)

    return run_command(look, config_path=CONF, config_name="config")


if __name__ == "__main__":
    main()
