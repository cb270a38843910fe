"""`python -m lightning_apps.report sweep=outputs/sweeps/arxiv_scaling`: a sweep, or a run, on one page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig

from lightning_apps.config.command_line import run_command
from lightning_apps.config.composition import CONF, plain
from lightning_apps.errors import ConfigError


@dataclass
class ReportConfig:
    """Types of the command's settings; the values are in conf/command/report.yaml."""

    sweep: str | None = MISSING
    run: str | None = MISSING
    out: str | None = MISSING


ConfigStore.instance().store(name="report_schema", node=ReportConfig)


def report(cfg: DictConfig) -> list[Path]:
    """Write the report and say where it is.

    Raises:
        ConfigError: neither or both were named, or nothing is there.
    """
    options = plain(cfg)
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
