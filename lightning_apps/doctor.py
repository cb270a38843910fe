"""Look at the data before anything is trained on them.

python -m lightning_apps.doctor experiment=gsm8k
"""

import os
import sys
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_apps.config.checks import check_config
from lightning_apps.config.command_line import run_command
from lightning_apps.config.composition import CONF, plain

TRAINED = ("\x1b[1;32m", "\x1b[0m")
"""Bold green on terminals."""
MARKS = ("\u27e6", "\u27e7")
"""Around what is trained where there is no colour."""
NUM_EXAMPLES = 3


def doctor(cfg: DictConfig) -> bool:
    """Print examples and what holds of the data; exits with 1 where a claim fails.

    Raises:
        ConfigError: the configuration or the data is wrong.
    """
    if cfg.run.name is None:  # a run's name is made from the overrides; nothing runs here
        OmegaConf.update(cfg, "run.name", "doctor")
    config = plain(cfg)
    check_config(config)

    from datamodules.contract import ProvesData
    from lightning_apps.process.console import open_console, say
    from lightning_apps.runs.build import build_datamodule, quiet_libraries

    quiet_libraries()
    open_console()
    datamodule = build_datamodule(config)
    say("\n".join(f"{name:>12}  {text}" for name, text in datamodule.describe().items()))
    if not isinstance(datamodule, ProvesData):
        say(f"the data were prepared and opened; experiment {config['experiment']} proves nothing more of them")
        return True
    report = datamodule.prove(NUM_EXAMPLES)
    say("\n".join(report_lines(report, colour=wants_colour())))
    healthy = all(check.holds for check in report.checks)
    if not healthy:
        sys.exit(1)
    return healthy


def wants_colour() -> bool:
    """Colour on terminals, unless NO_COLOR is set; elsewhere where FORCE_COLOR is."""
    return "NO_COLOR" not in os.environ and (sys.stdout.isatty() or "FORCE_COLOR" in os.environ)


def report_lines(report: Any, *, colour: bool) -> list[str]:
    """A data module's report as text; what is trained is green, or stands in brackets."""
    start, stop = TRAINED if colour else MARKS
    lines = [f"\nwhat is trained stands in {'green' if colour else start + stop}:"]
    for example in report.examples:
        text = "".join(f"{start}{piece}{stop}" if trained else piece for piece, trained in example.stretches)
        lines += ["", f"--- {example.title}", text]
    lines += ["", *report.pictures, ""]
    width = max(len(check.claim) for check in report.checks)
    return lines + [
        f"{'ok' if check.holds else 'FAILED':6}  {check.claim:{width}}  {check.counted}" for check in report.checks
    ]


def main() -> Any:
    """Entry point."""
    return run_command(doctor, config_path=CONF, config_name="config")


if __name__ == "__main__":
    main()
