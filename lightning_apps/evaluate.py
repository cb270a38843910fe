"""`python -m lightning_apps.evaluate run=outputs/location/default`: a checkpoint's metrics, as training saw them."""

import os
from dataclasses import asdict, dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig

from lightning_apps.command_line import run_command
from lightning_apps.config import CONF, plain
from lightning_apps.errors import ConfigError
from lightning_apps.run_directory import RunDirectory, open_run

SPLITS = ("validation", "test", "train")
BASE = "base"
"""The weights that training started from, in `compare=base`."""


@dataclass
class EvaluateConfig:
    """Types of the command's settings; the values are in conf/command/evaluate.yaml."""

    run: str = MISSING
    split: str = MISSING
    checkpoint: str = MISSING
    accelerator: str | None = MISSING
    compare: str | None = MISSING


ConfigStore.instance().store(name="evaluate_schema", node=EvaluateConfig)


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Evaluate one checkpoint on one split, print the metrics and write them under the run's `evaluations/`.

    Raises:
        ConfigError: no such run, checkpoint or split.
    """
    options = plain(cfg)
    split, name = options["split"], options["checkpoint"]
    if split not in SPLITS:
        raise ConfigError(f"split={split!r}: allowed are {', '.join(SPLITS)}")
    directory, config = open_run(options["run"])
    path = directory.checkpoint(name)

    from lightning_apps.allocator import keep_freed_memory

    keep_freed_memory()
    import torch

    from lightning_apps.atomic_files import write_json_atomically
    from lightning_apps.build import (
        build_datamodule,
        build_module,
        build_plan,
        quiet_libraries,
    )
    from lightning_apps.console import open_console, say
    from lightning_apps.paired_comparison import compare_predictions, comparison_lines, read_predictions

    quiet_libraries()
    open_console(main_process="LOCAL_RANK" not in os.environ)  # a run of several processes is evaluated by as many
    if options["accelerator"] is not None:
        config["hardware"]["accelerator"] = options["accelerator"]
    datamodule = build_datamodule(config)
    if split == "test" and not datamodule.has_test_split:
        raise ConfigError(f"split=test: {directory.path} holds out no test split (data.num_test=0)")
    plan = build_plan(config, datamodule)
    module = build_module(config, datamodule, plan)
    other = None if options["compare"] in (None, BASE) else directory.checkpoint(options["compare"])
    if options["compare"] is not None:  # first, so that the last lines are about the checkpoint that was asked for
        compared = RunDirectory(directory.evaluations / f"{split}-{BASE if other is None else other.stem}")
        if other is not None:
            module.load_state_dict(torch.load(other, map_location="cpu", weights_only=True)["state_dict"])
        before, is_main = measure(config, plan, module, datamodule, split, compared)
        if is_main:
            found = {"run": str(directory.path), "split": split, "checkpoint": options["compare"], "metrics": before}
            write_json_atomically(compared.path / "metrics.json", found)
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])
    results = RunDirectory(directory.evaluations / f"{split}-{path.stem}")
    metrics, is_main = measure(config, plan, module, datamodule, split, results)
    if is_main:
        found = {"run": str(directory.path), "split": split, "checkpoint": path.name, "step": checkpoint["global_step"]}
        write_json_atomically(results.path / "metrics.json", {**found, "metrics": metrics})
    width = max(map(len, metrics))
    say("\n".join(["", *(f"{key:{width}}  {value!r}" for key, value in metrics.items()), "", f"files  {results.path}"]))
    if options["compare"] is not None and is_main:
        found_comparisons = compare_predictions(*(read_predictions(run.predictions) for run in (compared, results)))
        write_json_atomically(results.path / "comparison.json", [asdict(entry) for entry in found_comparisons])
        names = (compared.path.name.removeprefix(f"{split}-"), path.stem)
        say("\n".join(["", *(text for entry in found_comparisons for text in comparison_lines(entry, names))]))
    return metrics


def measure(
    config: dict[str, Any], plan: Any, module: Any, datamodule: Any, split: str, results: RunDirectory
) -> tuple[dict[str, float], bool]:
    """Evaluate a module's weights on a split; returns the metrics, and whether this process is the one that writes."""
    from lightning_apps.build import build_extra_callbacks, build_trainer

    trainer = build_trainer(
        config, plan, callbacks=build_extra_callbacks(config, results, plan), loggers=[], evaluation_only=True
    )
    if split == "test":
        (measured,) = trainer.test(module, datamodule, verbose=False)
    else:
        datamodule.evaluation_split = split
        (measured,) = trainer.validate(module, datamodule, verbose=False)
    prefix = "train/" if split == "train" else ""
    metrics = {prefix + key.removeprefix("val/") if prefix else key: float(measured[key]) for key in sorted(measured)}
    return metrics, trainer.is_global_zero


def main() -> Any:
    """Entry point."""
    return run_command(evaluate, config_path=CONF / "command", config_name="evaluate")


if __name__ == "__main__":
    main()
