"""Gather a sweep, or a run, into one self-contained page.

  python -m lightning_apps.report sweep=outputs/sweeps/arxiv_scaling
  python -m lightning_apps.report run=outputs/location/default

Writes report.html; for a sweep also table.csv, results.json and the pictures. Nothing is trained.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lightning_apps.config.command_line import run_command
from lightning_apps.config.command_settings import settings_of
from lightning_apps.config.composition import CONF
from lightning_apps.errors import ConfigError


def report(cfg: DictConfig) -> list[Path]:
    """Write the report and say where it is.

    Raises:
        ConfigError: neither or both were named, or nothing is there.
    """
    options = settings_of("report", cfg)
    if (options["sweep"] is None) == (options["run"] is None):
        raise ConfigError("name one of sweep=outputs/sweeps/<name> and run=outputs/<experiment>/<name>")
    from lightning_apps.process.console import open_console, say

    if options["run"] is not None:
        from lightning_apps.reports.run_report import write_run_report

        written = write_run_report(options["run"], out=options["out"])
        said: list[str] = []
    else:
        from lightning_apps.sweeps.report import write_sweep_report
        from lightning_apps.sweeps.results import find_sweep

        written, said = write_sweep_report(find_sweep(options["sweep"]), out=options["out"])
    open_console()
    say("\n".join([*(f"- {sentence}" for sentence in said), "", *(f"wrote  {path}" for path in written)]))
    return written


def main() -> Any:
    """Entry point."""
    return run_command(report, config_path=CONF / "command", config_name="report")


if __name__ == "__main__":
    main()
