"""All of doctor's checks in order; what breaks inside one is a finding too."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from datamodules.contract import DataReport, ExperimentData
from lightning_apps.config.kind_checks import check_needs
from lightning_apps.errors import ConfigError
from lightning_apps.experiments.experiment import Experiment
from lightning_apps.process.safe_stop import SafeStop
from lightning_apps.run_files.directory import RunDirectory, locate_run
from lightning_apps.runs.build import (
    available_accelerator,
    build_callbacks,
    build_datamodule,
    build_module,
    build_plan,
    quiet_libraries,
)
from lightning_apps.runs.doctor.data import check_data
from lightning_apps.runs.doctor.finding import MORE, Area, Finding, Level, said
from lightning_apps.runs.doctor.machine import check_machine, disk, memory
from lightning_apps.runs.doctor.network import check_generation, check_network
from lightning_apps.runs.doctor.settings import check_settings
from lightning_apps.runs.precision import settle_precision
from lightning_apps.runs.preflight import (
    check_callbacks,
    check_head_size,
    check_monitor,
    check_positions,
    check_score_weights,
    usable_positions,
)
from lightning_apps.training.plan import RunPlan

Config = Mapping[str, Any]
NUM_EXAMPLES = 3


@dataclass(frozen=True)
class Examination:
    """What doctor found.

    Attributes:
        findings: in the order of the areas.
        report: examples and pictures of the data.
        data_lines: what the data say of themselves, as the banner of a run shows it.
    """

    findings: list[Finding]
    report: DataReport
    data_lines: dict[str, str]


def examine(config: Config, defaults: Config) -> Examination:
    """Look at everything; nothing is left behind but prepared data in the cache.

    Args:
        config: checked configuration of the run.
        defaults: that of the experiment without any override.

    Raises:
        ConfigError: configuration or data are wrong, and train says so before it starts.
    """
    quiet_libraries()
    available_accelerator(config["hardware"]["accelerator"])
    check_needs(config)
    asked = config
    config, chosen = settle_precision(config)
    config["hardware"] = {**config["hardware"], "compile": False}  # takes a minute, and changes no claim
    directory = locate_run(config["run"], config["experiment"])
    datamodule = build_datamodule(config)
    plan = build_plan(config, datamodule)
    module = build_module(config, datamodule, plan)
    report = DataReport([], [], [])

    def look_at_data() -> list[Finding]:
        nonlocal report
        found, report = check_data(
            config, datamodule, num_examples=NUM_EXAMPLES, positions=usable_positions(module.net)
        )
        return found

    findings = [
        *guarded("settings", lambda: check_settings(asked, defaults, plan, module.net, datamodule)),
        *guarded("machine", lambda: check_machine(config, directory, chosen)),
        *guarded("machine", lambda: [disk(config, plan, module, directory), memory(config, module, datamodule)]),
        *guarded("data", look_at_data),
        *parts_fit(config, plan, module, datamodule, directory),
        *guarded("model", lambda: check_network(config, module, datamodule)),
        *guarded("generation", lambda: check_generation(module, datamodule)),
    ]
    return Examination(findings, report, datamodule.describe())


def guarded(area: Area, look: Callable[[], list[Finding]]) -> list[Finding]:
    """The findings of a part; where it breaks, the model's is red, since a run would break too."""
    try:
        return look()
    except Exception as error:
        text = (str(error).strip() or "no reason given").splitlines()[0]
        level: Level = "red" if area == "model" else "yellow"
        return [Finding(level, area, f"the {area} can be looked at", f"{type(error).__name__}: {text}", MORE)]


def parts_fit(
    config: Config, plan: RunPlan, module: Experiment, datamodule: ExperimentData, directory: RunDirectory
) -> list[Finding]:
    """What train refuses just before the first step, each with its own message."""

    def monitor() -> None:
        built = build_callbacks(config, directory, plan, SafeStop(None, directory.stop_request))
        check_callbacks(built, datamodule)
        check_monitor(config, plan, module, built, datamodule)

    positions = f"{datamodule.length_key}={usable_positions(module.net)}"
    checks: dict[str, tuple[Callable[[], None], str]] = {
        "no sequence is longer than the model has positions": (
            lambda: check_positions(module.net, datamodule),
            positions,
        ),
        "the head is as large as there are classes": (
            lambda: check_head_size(module.net, datamodule),
            "model.replace_head=true",
        ),
        "the score weighs every class": (
            lambda: check_score_weights(config, datamodule),
            "callbacks.extra.evaluation.score_weights=null",
        ),
        "an evaluation measures what chooses the best": (
            monitor,
            "callbacks.checkpoints.monitor=val/loss callbacks.checkpoints.mode=min",
        ),
    }
    found = []
    for claim, (check, remedy) in checks.items():
        try:
            check()
        except ConfigError as error:
            found.append(said("red", "model", claim, str(error), remedy=remedy))
    return found or [Finding("green", "model", "data, model and callbacks go together", f"{len(checks)} checks")]
