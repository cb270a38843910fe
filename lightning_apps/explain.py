"""`python -m lightning_apps.explain run=outputs/rating/default split=test`: what the verdicts of a run rest on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig

from lightning_apps.config.binding import target
from lightning_apps.config.command_line import run_command
from lightning_apps.config.composition import CONF, plain
from lightning_apps.config.open_run import open_run
from lightning_apps.errors import ConfigError, did_you_mean
from lightning_apps.run_files.directory import RunDirectory, check_writable, refuse_links

SPLITS = ("test", "validation", "train")
CHUNKING_KEYS = ("chunk_size", "stride", "max_chunks", "choose", "ordered")
METHODS = ("chunk_attention", "integrated_gradients", "occlusion")
UNITS = ("sentence", "word")
TARGETS = ("predicted", "higher")


@dataclass
class FaithfulnessConfig:
    """Deletion and insertion curves."""

    max_documents: int | None = MISSING
    unit: str = MISSING
    fractions: list[float] = MISSING


@dataclass
class PageConfig:
    """What bounds the page."""

    words: int = MISSING
    megabytes: float = MISSING


@dataclass
class ExplainConfig:
    """Types of the command's settings; the values are in conf/command/explain.yaml."""

    run: str = MISSING
    split: str = MISSING
    input: str | None = MISSING
    ids: Any = MISSING
    max_documents: int | None = MISSING
    target: str = MISSING
    methods: list[str] = MISSING
    steps: int = MISSING
    tolerance: float = MISSING
    max_steps: int = MISSING
    max_sentences: int = MISSING
    faithfulness: FaithfulnessConfig = field(default_factory=FaithfulnessConfig)
    page: PageConfig = field(default_factory=PageConfig)
    micro_chunks: int = MISSING
    seed: int = MISSING
    accelerator: str = MISSING
    trust: Any = MISSING


ConfigStore.instance().store(name="explain_schema", node=ExplainConfig)


def explain(cfg: DictConfig) -> list[Path]:
    """Explain documents of a run, measure the explanations, and write them into the run's folder.

    Raises:
        ConfigError: the run is no finished rating run, or a setting or the input is wrong.
    """
    options = plain(cfg)
    check_options(options)
    directory, config = open_run(options["run"], trust=options.get("trust"))
    check_run(directory, config)
    from lightning_apps.process.allocator import keep_freed_memory

    keep_freed_memory()
    from lightning_apps.explanations.files import write_explanations
    from lightning_apps.explanations.run import RatingModel, documents_of_file, documents_of_split, explain_documents
    from lightning_apps.process.console import open_console, say

    open_console()
    model = RatingModel(directory, config, options["accelerator"])
    check_target(options["target"], model.label_names, ordered=config["data"]["ordered"])
    if options["input"] is None:
        name = options["split"]
        chosen, number = documents_of_split(config, options)
    else:
        name = Path(options["input"]).name
        chosen, number = documents_of_file(config["data"], options, model.label_names)
    say(f"explaining {len(chosen):,} of {number:,} documents on {model.device.type}")
    refuse_links(directory, ("explanations", f"explanations/{name}"))  # before the work
    check_writable(directory.explanations / name, "copy the run to where you may write")
    explanations = explain_documents(model, chosen, options)
    folder = directory.explanations / name
    said, written = write_explanations(folder, explanations, directory=directory, source=name, options=options)
    say("\n".join([*said, "", *(f"wrote  {path}" for path in written)]))
    return written


def check_options(options: dict[str, Any]) -> None:
    """Everything that can be wrong without looking at the run.

    Raises:
        ConfigError: naming the key.
    """
    _check_choice("split", options["split"], SPLITS)
    _check_choice("faithfulness.unit", options["faithfulness"]["unit"], UNITS)
    for method in options["methods"]:
        _check_choice("methods", method, METHODS)
    if not options["methods"] or len(set(options["methods"])) < len(options["methods"]):
        raise ConfigError(
            f"methods={options['methods']}: name each of {', '.join(METHODS)} at most once, and one at least"
        )
    if options["steps"] < 3 or options["steps"] % 2 == 0:
        raise ConfigError(f"steps={options['steps']}: must be an odd number from 3 (ends and middles of stretches)")
    for key in ("max_sentences", "micro_chunks"):
        if options[key] < 1:
            raise ConfigError(f"{key}={options[key]}: must be at least 1")
    if options["tolerance"] < 0:
        raise ConfigError(f"tolerance={options['tolerance']}: must be at least 0")
    if options["max_documents"] is not None and options["max_documents"] < 1:
        raise ConfigError(f"max_documents={options['max_documents']}: must be at least 1, or null for all")
    if (options["faithfulness"]["max_documents"] or 0) < 0:
        raise ConfigError("faithfulness.max_documents: must be at least 0, or null for all")
    fractions = options["faithfulness"]["fractions"]
    if any(not 0 < value < 1 for value in fractions) or sorted(set(fractions)) != list(fractions):
        raise ConfigError(f"faithfulness.fractions={fractions}: must rise, each above 0 and below 1")
    if options["page"]["words"] < 1 or options["page"]["megabytes"] < 0:
        raise ConfigError("page.words must be at least 1 and page.megabytes at least 0")
    if isinstance(options["ids"], str | int):
        options["ids"] = [options["ids"]]
    if options["ids"] is not None:
        if not options["ids"]:
            raise ConfigError("ids=[]: name at least one document, or null")
        options["ids"] = [str(name) for name in options["ids"]]


def _check_choice(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key}={value!r}{did_you_mean(value, list(allowed))}: allowed are {', '.join(allowed)}")


def check_target(value: str, label_names: Sequence[str], *, ordered: bool) -> None:
    """Whether scores can be towards this.

    Raises:
        ConfigError: it is no class of the run, or its classes have no order.
    """
    if value == "higher" and not ordered:
        raise ConfigError("target=higher: the run's classes have no order (data.ordered=false); choose a class")
    _check_choice("target", value, [*(TARGETS if ordered else TARGETS[:1]), *label_names])


def check_run(directory: RunDirectory, config: dict[str, Any]) -> None:
    """Whether the run rates documents, and is finished.

    Raises:
        ConfigError: otherwise.
    """
    if not set(CHUNKING_KEYS) <= set(config["data"]):
        raise ConfigError(
            f"run={directory.path}: experiment {config['experiment']} does not rate documents in chunks; explain needs "
            "a run of experiment=rating"
        )
    if not (directory.model / "config.json").is_file():
        raise ConfigError(
            f"run={directory.path} has no model/ yet: it was not finished; continue it with run.resume=auto"
        )
    target("model", config["model"])  # registers architectures of our own with transformers


def main() -> Any:
    """Entry point."""
    return run_command(explain, config_path=CONF / "command", config_name="explain")


if __name__ == "__main__":
    main()
