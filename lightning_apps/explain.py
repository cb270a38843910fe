"""Which chunks, sentences and words carried a verdict, and how far that is true.

  python -m lightning_apps.explain run=outputs/rating/default split=test
  python -m lightning_apps.explain run=outputs/rating/default input=story.txt

Writes explanations.html, explanations.jsonl, faithfulness.json and faithfulness.png to the run's folder
explanations/<split>, or explanations/<name of the file>.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lightning_apps.config.binding import target
from lightning_apps.config.command_line import run_command
from lightning_apps.config.command_settings import settings_of
from lightning_apps.config.composition import CONF
from lightning_apps.config.open_run import open_run
from lightning_apps.errors import ConfigError, did_you_mean
from lightning_apps.run_files.directory import RunDirectory, check_writable, refuse_links

CHUNKING_KEYS = ("chunk_size", "stride", "max_chunks", "choose", "ordered")
TARGETS = ("predicted", "higher")


def explain(cfg: DictConfig) -> list[Path]:
    """Explain documents of a run, measure the explanations, and write them into the run's folder.

    Raises:
        ConfigError: the run is no finished rating run, or a setting or the input is wrong.
    """
    options = settings_of("explain", cfg)
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
    """What the types of the settings cannot say, and can be wrong without looking at the run.

    Raises:
        ConfigError: naming the key.
    """
    if not options["methods"] or len(set(options["methods"])) < len(options["methods"]):
        raise ConfigError(f"methods={options['methods']}: name each at most once, and one at least")
    fractions = options["faithfulness"]["fractions"]
    if sorted(set(fractions)) != fractions:
        raise ConfigError(f"faithfulness.fractions={fractions}: must rise")
    if isinstance(options["ids"], str | int):
        options["ids"] = [options["ids"]]
    if options["ids"] is not None:
        if not options["ids"]:
            raise ConfigError("ids=[]: name at least one document, or null")
        options["ids"] = [str(name) for name in options["ids"]]


def check_target(value: str, label_names: Sequence[str], *, ordered: bool) -> None:
    """Whether scores can be towards this.

    Raises:
        ConfigError: it is no class of the run, or its classes have no order.
    """
    if value == "higher" and not ordered:
        raise ConfigError("target=higher: the run's classes have no order (data.ordered=false); choose a class")
    allowed = [*(TARGETS if ordered else TARGETS[:1]), *label_names]
    if value not in allowed:
        raise ConfigError(f"target={value!r}{did_you_mean(value, allowed)}: allowed are {', '.join(allowed)}")


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
