"""Gather a run, several side by side, a sweep, or all that lies under outputs/ into one self-contained page.

  python -m lightning_apps.report
  python -m lightning_apps.report run=outputs/location/default
  python -m lightning_apps.report run=outputs/location/default run=outputs/location/seed=1
  python -m lightning_apps.report sweep=outputs/sweeps/arxiv_scaling

Works while a run trains and after it failed. A sweep also gets table.csv, results.json and pictures.
"""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lightning_apps.config.command_line import run_command
from lightning_apps.config.command_settings import settings_of
from lightning_apps.config.composition import CONF
from lightning_apps.config.overrides import quoted
from lightning_apps.errors import ConfigError


def report(cfg: DictConfig) -> list[Path]:
    """Write the report and say where it is.

    Raises:
        ConfigError: a run and a sweep were named, or nothing is there.
    """
    options = settings_of("report", cfg)
    run, sweep, out = options["run"], options["sweep"], options["out"]
    if sweep is not None and run is not None:
        raise ConfigError("name one of sweep=outputs/sweeps/<name> and run=outputs/<experiment>/<name>")
    runs = run if isinstance(run, list) else [run]
    if run is not None and not all(isinstance(place, str) for place in runs):
        raise ConfigError("run: must be the directory of a run, or a list of them: run=[A,B]")
    from lightning_apps.process.console import open_console, say

    said: list[str] = []
    if isinstance(run, list):
        from lightning_apps.reports.comparison import write_comparison

        written = write_comparison(runs, out=out)
    elif run is not None:
        from lightning_apps.reports.run_report import write_run_report

        written = write_run_report(run, out=out)
    elif sweep is not None:
        from lightning_apps.sweeps.report import write_sweep_report
        from lightning_apps.sweeps.results import find_sweep

        written, sentences = write_sweep_report(find_sweep(sweep), out=out)
        said = [f"- {sentence}" for sentence in sentences]
    else:
        from lightning_apps.reports.index import write_index

        written, said = write_index(Path(options["output_root"]), out=out)
    open_console()
    say("\n".join([*said, "", *(f"wrote  {path}" for path in written)]))
    return written


def with_one_run(words: list[str]) -> list[str]:
    """Several `run=A run=B` of a command line as the list that Hydra takes: `run=["A","B"]`."""
    runs = [word.removeprefix("run=") for word in words if word.startswith("run=")]
    if len(runs) < 2:
        return words
    others = [word for word in words if not word.startswith("run=")]
    return [*others, f"run=[{','.join(map(quoted, runs))}]"]


def main() -> Any:
    """Entry point."""
    sys.argv[1:] = with_one_run(sys.argv[1:])
    return run_command(report, config_path=CONF / "command", config_name="report")


if __name__ == "__main__":
    main()
