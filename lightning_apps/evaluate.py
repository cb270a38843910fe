"""Evaluate a checkpoint of a run, with the metrics that training used.

python -m lightning_apps.evaluate run=outputs/location/default split=validation checkpoint=best
python -m lightning_apps.evaluate run=outputs/arxiv/default split=test metrics=in_context
"""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lightning_apps.config.command_line import run_command
from lightning_apps.config.command_settings import settings_of
from lightning_apps.config.composition import CONF
from lightning_apps.config.open_run import open_run
from lightning_apps.errors import ConfigError, did_you_mean, first_line
from lightning_apps.process.parent_death import stop_with_parent
from lightning_apps.run_files.directory import RunDirectory, results_folder

BASE = "base"
"""The weights that training started from, in `compare=base`."""
PRETRAINED = "models.language.causal_lm.pretrained_causal_lm"


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Evaluate one checkpoint on one split, print the metrics and write them under the run's `evaluations/`.

    Raises:
        ConfigError: no such run, checkpoint or split.
    """
    options = settings_of("evaluate", cfg)
    split, name = options["split"], options["checkpoint"]
    directory, config = open_run(options["run"], trust=options.get("trust"))
    pretrained = options["model"]["pretrained"]
    path = directory.checkpoint(name) if pretrained is None else None
    other = None if options["compare"] in (None, BASE) else directory.checkpoint(options["compare"])
    choose_metrics(config, options["metrics"])

    def place(name: str) -> Path:
        return results_folder(directory, directory.evaluations / name, options["out"])

    place(split)  # before anything is measured

    from lightning_apps.process.allocator import keep_freed_memory

    keep_freed_memory()
    from lightning_apps.process.console import open_console, say
    from lightning_apps.process.rank import is_first_process
    from lightning_apps.run_files.atomic_files import write_json_atomically
    from lightning_apps.run_files.metrics import headlines_first
    from lightning_apps.run_files.weights import load_checkpoint
    from lightning_apps.runs.build import (
        build_module,
        build_plan,
        quiet_libraries,
    )
    from lightning_apps.runs.same_data import build_data_of_run
    from lightning_apps.statistics.paired_comparison import compare_predictions, comparison_lines, read_predictions

    quiet_libraries()
    is_first = is_first_process(config["hardware"])  # a run of several processes is evaluated by as many
    open_console(main_process=is_first)
    if options["accelerator"] is not None:
        config["hardware"]["accelerator"] = options["accelerator"]
    datamodule = build_data_of_run(config, directory, completed=split == "train")
    if split == "test" and not datamodule.has_test_split:
        remedy = "data.num_test=0" if "num_test" in config["data"] else "a test file in data.path would be one"
        raise ConfigError(f"split=test: {directory.path} holds out no test split ({remedy}); take split=validation")
    plan = build_plan(config, datamodule, trains=False)
    before = None
    if options["compare"] is not None:  # first, so that the last lines are about the checkpoint that was asked for
        module = build_module(config, datamodule, plan)
        if other is not None:
            load_checkpoint(module, other)
        before = RunDirectory(place(f"{split}-{BASE if other is None else other.stem}"))
        found = {"run": str(directory.path), "split": split, "checkpoint": options["compare"]}
        measure(config, plan, module, datamodule, split, before, found)
    if path is None:
        config["model"] = {"_target_": PRETRAINED, "pretrained": pretrained}
        config["optimizer"] |= {"freeze": [], "unfreeze": []}  # patterns of the run's own model
        check_same_tokenizer(pretrained, datamodule.tokenizer)
        module = build_module(config, datamodule, plan)
        found = {"run": str(directory.path), "split": split, "pretrained": pretrained}
    else:
        module = build_module(config, datamodule, plan)
        step = load_checkpoint(module, path)
        found = {"run": str(directory.path), "split": split, "checkpoint": path.name, "step": step}

    source = path.stem if path is not None else re.sub(r"[^A-Za-z0-9._-]+", "_", pretrained).strip("_.")
    results = RunDirectory(place(f"{split}-{source}"))
    metrics = measure(config, plan, module, datamodule, split, results, found)
    # those of single classes would bury the others: they are in the files
    printed = [key for key in headlines_first(metrics, monitor=None) if key.count("/") < 2]
    width = max(map(len, printed))
    say("\n".join(["", *(f"{key:{width}}  {metrics[key]!r}" for key in printed), "", f"files  {results.path}"]))
    if before is not None and is_first:
        comparisons = compare_predictions(read_predictions(before.predictions), read_predictions(results.predictions))
        write_json_atomically(results.path / "comparison.json", [asdict(entry) for entry in comparisons])
        names = (before.path.name.removeprefix(f"{split}-"), source)
        say("\n".join(["", *(text for entry in comparisons for text in comparison_lines(entry, names))]))
    return metrics


def measure(
    config: dict[str, Any],
    plan: Any,
    module: Any,
    datamodule: Any,
    split: str,
    results: RunDirectory,
    found: dict[str, Any],
) -> dict[str, float]:
    """Evaluate a module's weights on a split; metrics.json gets the metrics behind what was `found` before."""
    from lightning_apps.run_files.atomic_files import write_json_atomically
    from lightning_apps.runs.banner import write_per_class
    from lightning_apps.runs.build import build_extra_callbacks, build_trainer

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
        write_json_atomically(results.path / "metrics.json", {**found, "metrics": metrics})
        write_per_class(results.path, {"metrics": metrics, "best": None})
    return metrics


def choose_metrics(config: dict[str, Any], wanted: str | list[str] | None) -> None:
    """Keep only these of the run's callbacks.extra; None keeps all.

    Raises:
        ConfigError: the run has no such callback.
    """
    if wanted is None:
        return
    extra = config["callbacks"]["extra"]
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        if not extra.get(name):  # null and false switch one off
            there = [key for key, node in extra.items() if node]
            raise ConfigError(
                f"metrics={name}: the run measures no such thing{did_you_mean(name, there)}; "
                f"there are {', '.join(there) or 'none'}"
            )
    config["callbacks"]["extra"] = {name: extra[name] for name in names}


def check_same_tokenizer(pretrained: str, tokenizer: Any) -> None:
    """Whether a pretrained model reads token ids as the run's data mean them.

    Raises:
        ConfigError: it comes with another vocabulary, or with none that could be compared.
    """
    from transformers import AutoTokenizer

    from datamodules.text.hub_access import hub_is_reachable

    try:
        is_local = Path(pretrained).is_dir()
        theirs = AutoTokenizer.from_pretrained(pretrained, local_files_only=is_local or not hub_is_reachable())
    except Exception as error:
        raise ConfigError(
            f"model.pretrained={pretrained}: its tokenizer cannot be loaded ({first_line(error)}); give a Hugging Face "
            "name, with a network, or a folder with model and tokenizer"
        ) from error
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"model.pretrained={pretrained} has another vocabulary ({len(theirs):,} tokens) than the run's data "
            f"({len(tokenizer):,}): its losses would be of other text; prepare the data with its tokenizer "
            f"(data.tokenizer={pretrained})"
        )


def main() -> Any:
    """Entry point."""
    stop_with_parent()
    return run_command(evaluate, config_path=CONF / "command", config_name="evaluate")


if __name__ == "__main__":
    main()
