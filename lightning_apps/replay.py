"""Do one optimizer step of a run again and compare it with what was logged, or look into a crash dump.

  python -m lightning_apps.replay run=outputs/location/default step=57
  python -m lightning_apps.replay crash_dump=outputs/location/default/crash_dumps/step=00000057

Nothing in the run directory is changed. Exit code 1: the step came out differently.
"""

from typing import Any

from omegaconf import DictConfig

from lightning_apps.config.command_line import run_command
from lightning_apps.config.command_settings import settings_of
from lightning_apps.config.composition import CONF
from lightning_apps.config.open_run import open_run
from lightning_apps.errors import ConfigError


def replay(cfg: DictConfig) -> None:
    """Do a step of a run again, or look into a crash dump, and say what came out.

    Raises:
        ConfigError: neither a run with a step nor a crash dump is named, or there is none.
        ReplayMismatchError: the step's samples or loss are not those that were recorded.
    """
    options = settings_of("replay", cfg)
    run, step, crash_dump = options["run"], options["step"], options["crash_dump"]
    if (crash_dump is None) == (run is None) or (run is None) != (step is None):
        raise ConfigError("give run=<directory> and step=<number>, or crash_dump=<directory>")
    if run is not None:
        directory, config = open_run(run, trust=options.get("trust"))

    from lightning_apps.process.allocator import keep_freed_memory

    keep_freed_memory()
    from lightning_apps.diagnostics.crash_dump import read_crash_dump
    from lightning_apps.process.console import open_console
    from lightning_apps.process.rank import is_first_process
    from lightning_apps.runs.build import quiet_libraries
    from lightning_apps.runs.replayed_step import replay_crash_dump, replay_recorded_step

    quiet_libraries()
    if crash_dump is not None:
        found, config, batch = read_crash_dump(crash_dump, trust=options.get("trust"))
    # a run of several processes is replayed by as many
    open_console(main_process=is_first_process(config["hardware"]))
    if options["accelerator"] is not None:
        config["hardware"]["accelerator"] = options["accelerator"]
    if crash_dump is not None:
        replay_crash_dump(config, found, batch, num_texts=options["num_texts"])
    else:
        replay_recorded_step(config, directory, step, num_texts=options["num_texts"])


def main() -> Any:
    """Entry point."""
    return run_command(replay, config_path=CONF / "command", config_name="replay")


if __name__ == "__main__":
    main()
