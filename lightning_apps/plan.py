"""Look ahead: how long a run takes, what it writes, how much memory it needs; nothing is kept.

python -m lightning_apps.plan experiment=location
python -m lightning_apps.plan experiment=imdb model=minilm data.dataset=synthetic hardware=fsdp format=json

Takes what train takes. Some real steps on one device of this machine give speed and peak memory.
"""

import json
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from lightning_apps.config.checks import check_config
from lightning_apps.config.command_line import run_command
from lightning_apps.config.command_settings import check_format, take_format
from lightning_apps.config.composition import CONF, plain

if TYPE_CHECKING:
    from lightning_apps.runs.forecast import Forecast

BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 80


def plan(cfg: DictConfig, output: str = "text") -> None:
    """Print the forecast of a run; of a sweep, that of one job with the settings that all share.

    Args:
        cfg: of a run.
        output: `text` or `json`.

    Raises:
        ConfigError: the configuration or the data is wrong.
    """
    check_format(output)
    if cfg.run.name is None:  # a run's name is made from the overrides; nothing runs here
        OmegaConf.update(cfg, "run.name", "plan")
    OmegaConf.update(cfg, "sweep", None)
    config = plain(cfg)
    from lightning_apps.process.allocator import keep_freed_memory

    keep_freed_memory()  # as train does: it decides on the peak of memory
    check_config(config)

    from lightning_apps.process.console import open_console, say
    from lightning_apps.runs.build import quiet_libraries
    from lightning_apps.runs.forecast import make_forecast

    quiet_libraries()
    open_console(main_process=False)  # what the callbacks of the probe say is nobody's result
    forecast = make_forecast(config)
    open_console()
    say(json.dumps(as_json(forecast)) if output == "json" else "\n".join(lines(forecast)))


def as_json(forecast: "Forecast") -> dict[str, Any]:
    """The forecast as plain values."""
    values = asdict(forecast)
    for name in ("evaluation_steps", "save_steps"):
        values["plan"][name] = sorted(values["plan"][name])
    return values


def lines(forecast: "Forecast") -> list[str]:
    """The forecast as text, COLUMNS wide."""
    from lightning_apps.process.console import human_time
    from lightning_apps.runs.banner import human_bytes

    run, probe, free = forecast.plan, forecast.probe, forecast.available
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in forecast.learning_rate.items())
    said = [
        (
            "length",
            f"{run.total_steps:,} optimizer steps, {run.total_tokens:,} tokens, the data {forecast.epochs:.3g} times",
        ),
        ("budget", run.budget),
        *zip(["precision", "", ""], textwrap.wrap(forecast.precision, COLUMNS - 14), strict=False),
        ("rate", sparkline(forecast.curve)),
        ("", rates),
        ("evaluations", f"{len(run.evaluation_steps):,}"),
        ("checkpoints", f"{human_bytes(forecast.checkpoint_bytes)} each, up to {human_bytes(forecast.disk_bytes)}"),
    ]
    if probe is None or forecast.flops_per_step is None or forecast.hours is None:
        said.append(("time", f"not measured: {forecast.no_probe}"))
    else:
        each = "" if probe.evaluation_s is None else f", {human_time(probe.evaluation_s)} an evaluation"
        said += [
            ("speed", f"{probe.tokens_per_s:,.0f} tokens/s on one device, by {probe.steps} steps{each}"),
            ("cost", f"{forecast.flops_per_step / 1e12:.3g} TFLOPs a step, {probe.mfu:.0%} of the measured peak"),
            ("time", f"{human_time(3600 * forecast.hours)} in all, without the test at the end"),
        ]
    said.append(("memory", f"{human_bytes(free.now)} of {human_bytes(free.total)} are free" if free else "unknown"))
    said.append(("fits", verdict(forecast)))
    return [*(f"{name:>12}  {text}" for name, text in said), "", *memory_table(forecast.memory)]


def memory_table(memory: dict[str, dict[str, int]]) -> list[str]:
    """A column for each setting of devices, a row for each part, and the sum."""
    from lightning_apps.runs.banner import human_bytes

    names = list(dict.fromkeys(name for parts in memory.values() for name in parts))
    rows = [
        [name, *(human_bytes(parts[name]) if parts.get(name) else "" for parts in memory.values())] for name in names
    ]
    rows.append(["a device", *(human_bytes(sum(parts.values())) for parts in memory.values())])
    return [
        f"{name:>12}{''.join(f'{cell:>12}' for cell in cells)}" for name, *cells in [["", *memory], *rows] if any(cells)
    ]


def verdict(forecast: "Forecast") -> str:
    """Whether the run fits, and what to add to the command where it does not."""
    first, asked = forecast.first_that_fits, forecast.setting
    if forecast.fits is None:
        return "unknown: nobody says what is free"
    if forecast.fits:
        return "as it is"
    if first is None:
        return "no: choose a smaller model, shorter samples, or larger devices"
    words = [f"data.device_batch_size={first.device_batch_size}"]
    if first.gradient_checkpointing and not asked.gradient_checkpointing:
        words.append("hardware.gradient_checkpointing=true")
    if first.devices > asked.devices:
        words.append(f"hardware=fsdp hardware.devices={first.devices}")
    return f"not as it is; with {' '.join(words)}"


def sparkline(values: list[float]) -> str:
    """One sign for each value, from 0 to the highest."""
    highest = max(values) or 1.0
    return "".join(BARS[min(int(value / highest * len(BARS)), len(BARS) - 1)] for value in values)


def main() -> Any:
    """Entry point."""
    output = take_format()

    def look_ahead(cfg: DictConfig) -> None:
        plan(cfg, output)

    return run_command(look_ahead, config_path=CONF, config_name="config")


if __name__ == "__main__":
    main()
