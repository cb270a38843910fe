"""`python -m lightning_apps.evaluate run=outputs/location/default`: a checkpoint's metrics, as training saw them."""

import os
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig

from lightning_apps.command_line import run_command
from lightning_apps.config import CONF, plain
from lightning_apps.errors import ConfigError
from lightning_apps.run_directory import RunDirectory, open_run

SPLITS = ("validation", "test", "train")


@dataclass
class EvaluateConfig:
    """Types of the command's settings; the values are in conf/command/evaluate.yaml."""

    run: str = MISSING
    split: str = MISSING
    checkpoint: str = MISSING
    accelerator: str | None = MISSING


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
        build_extra_callbacks,
        build_module,
        build_plan,
        build_trainer,
        quiet_libraries,
    )
    from lightning_apps.console import open_console, say

    quiet_libraries()
    open_console(main_process="LOCAL_RANK" not in os.environ)  # a run of several processes is evaluated by as many
    if options["accelerator"] is not None:
        config["hardware"]["accelerator"] = options["accelerator"]
    datamodule = build_datamodule(config)
    if split == "test" and not datamodule.has_test_split:
        raise ConfigError(f"split=test: {directory.path} holds out no test split (data.num_test=0)")
    plan = build_plan(config, datamodule)
    module = build_module(config, datamodule, plan)
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])

    results = RunDirectory(directory.evaluations / f"{split}-{path.stem}")
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
    if trainer.is_global_zero:
        found = {"run": str(directory.path), "split": split, "checkpoint": path.name, "step": checkpoint["global_step"]}
        write_json_atomically(results.path / "metrics.json", {**found, "metrics": metrics})
    width = max(map(len, metrics))
    say("\n".join(["", *(f"{key:{width}}  {value!r}" for key, value in metrics.items()), "", f"files  {results.path}"]))
    return metrics


def main() -> Any:
    """Entry point."""
    return run_command(evaluate, config_path=CONF / "command", config_name="evaluate")


if __name__ == "__main__":
    main()
