"""Look ahead: how long a run takes, what it writes, how much memory it needs; nothing is trained or kept.

python -m lightning_apps.plan experiment=location
python -m lightning_apps.plan experiment=imdb model=minilm data.dataset=synthetic format=json

Takes what train takes. A few real steps on this machine, in a folder that is removed, give speed and peak memory.
"""

import json
import sys
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_apps.config.checks import check_config
from lightning_apps.config.command_line import run_command
from lightning_apps.config.composition import CONF, plain
from lightning_apps.errors import ConfigError

FORMATS = ("text", "json")
BARS = "▁▂▃▄▅▆▇█"
_format = ["text"]  # `format=` is a word of this command and no setting of a run


def plan(cfg: DictConfig) -> None:
    """Print the forecast of a run.

    Raises:
        ConfigError: the configuration or the data is wrong.
    """
    if _format[-1] not in FORMATS:
        raise ConfigError(f"format={_format[-1]}: allowed are {', '.join(FORMATS)}")
    if cfg.run.name is None:  # a run's name is made from the overrides; nothing runs here
        OmegaConf.update(cfg, "run.name", "plan")
    OmegaConf.update(cfg, "sweep", None)
    config = plain(cfg)
    from lightning_apps.process.allocator import keep_freed_memory

    keep_freed_memory()
    check_config(config)

    from lightning_apps.process.console import open_console, say
    from lightning_apps.runs.build import quiet_libraries
    from lightning_apps.runs.forecast import make_forecast

    quiet_libraries()
    forecast = make_forecast(config)
    open_console()
    say(json.dumps(as_json(forecast)) if _format[-1] == "json" else "\n".join(lines(forecast)))


def as_json(forecast: Any) -> dict[str, Any]:
    """The forecast as plain values."""
    from dataclasses import asdict

    values = asdict(forecast)
    for name in ("evaluation_steps", "save_steps"):
        values["plan"][name] = sorted(values["plan"][name])
    return values


def lines(forecast: Any) -> list[str]:
    """The forecast as text."""
    from lightning_apps.process.console import human_time
    from lightning_apps.runs.banner import human_bytes

    run, probe, free = forecast.plan, forecast.probe, forecast.available
    rates = ", ".join(f"{rate:.3g} ({name})" for name, rate in forecast.learning_rate.items())
    said = {
        "length": f"{run.total_steps:,} optimizer steps ({run.budget}), {run.total_tokens:,} tokens, the data "
        f"{forecast.epochs:.3g} times",
        "rate": f"{sparkline(forecast.curve)}  {rates}",
        "evaluations": f"{len(run.evaluation_steps)}",
        "checkpoints": f"{human_bytes(forecast.checkpoint_bytes)} each, up to {human_bytes(forecast.disk_bytes)} at once",
    }
    if probe is not None:
        evaluation = "" if probe.evaluation_s is None else f"; an evaluation {human_time(probe.evaluation_s)}"
        said |= {
            "cost": f"{forecast.flops_per_step / 1e12:.3g} TFLOPs a step, {probe.mfu:.0%} of the measured peak",
            "speed": f"{probe.tokens_per_s:,.0f} tokens/s on one device (measured, {probe.steps} steps){evaluation}",
            "time": f"{human_time(3600 * forecast.hours)} in all, without the test at the end",
        }
    said["memory"] = f"{human_bytes(free.now)} of {human_bytes(free.total)} are free" if free else "unknown"
    table = [f"{name:>12}  {text}" for name, text in said.items()]
    width = max(map(len, forecast.memory))
    for title, parts in forecast.memory.items():
        shown = ", ".join(f"{name} {human_bytes(size)}" for name, size in parts.items())
        table.append(f"{'':>12}  {title:{width}}  {human_bytes(sum(parts.values())):>8} a device: {shown}")
    return [*table, f"{'fits':>12}  {verdict(forecast)}"]


def verdict(forecast: Any) -> str:
    """Whether the run fits, and what to add to the command where it does not."""
    first, asked = forecast.first_that_fits, forecast.setting
    if forecast.fits:
        return "as it is" if forecast.available else "unknown: this machine does not say what is free"
    if first is None:
        return "no: choose a smaller model, shorter samples (data.max_length), or larger devices"
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
    words = [word for word in sys.argv[1:] if word.startswith("format=")]
    _format[:] = [word.partition("=")[2] for word in words] or ["text"]
    sys.argv[1:] = [word for word in sys.argv[1:] if word not in words]
    return run_command(plan, config_path=CONF, config_name="config")


if __name__ == "__main__":
    main()
