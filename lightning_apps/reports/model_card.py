"""README.md beside exported weights: what was measured of a model, how it was made and is loaded, where it may fail."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from markupsafe import Markup, escape

from lightning_apps.config.package_folder import PREFIX
from lightning_apps.reports.page import ENVIRONMENT, render, showable
from lightning_apps.reports.run_record import RunRecord, default_settings, mapping, number, read_record, short
from lightning_apps.reports.run_report import (
    class_tables,
    cost,
    differences_table,
    metrics_table,
    outcome,
    provenance,
    short_words,
)
from lightning_apps.run_files.atomic_files import write_text_atomically
from lightning_apps.run_files.metrics import is_interval_end
from lightning_apps.run_files.weights import CARD

NAME_ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
LOADING = {
    "CausalLM": ("AutoModelForCausalLM", "text-generation"),
    "SequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "Classifier": ("AutoModelForSequenceClassification", "text-classification"),
}
"""Auto class and task by how an architecture's name ends."""
MOST_BYTES = 1_000_000
"""Read of a configuration or of a base's card at most."""


def write_model_card(place: str, folder: Path, *, is_over: bool = False, adapters_of: str | None = None) -> Path:
    """Write the card of a run's model; returns the file.

    Args:
        place: directory or URL of the run.
        folder: of the exported weights; the card is written into it.
        is_over: see read_record.
        adapters_of: where only adapters lie in the folder, the model that they belong to.

    Raises:
        ConfigError: no run is there.
    """
    write_text_atomically(folder / CARD, model_card(read_record(place, is_over=is_over), adapters_of=adapters_of))
    return folder / CARD


def model_card(record: RunRecord, *, adapters_of: str | None = None) -> str:
    """The card as Markdown; what a run's files say is escaped."""
    experiment = record.name.partition("/")[0]
    auto_class, task = _loading(record.directory.model)
    base = record.settings.get("model.pretrained", "None")
    base = "" if base == "None" else base
    defaults = default_settings(experiment)
    facts = [entry for entry in provenance(record) if entry[0] in ("commit", "versions", "seed")]
    return str(
        render(
            "model_card.md",
            front_matter=Markup(_front_matter(record, task, base)),  # noqa: S704 (YAML, quoted by its own writer)
            name=record.name, outcome=outcome(record),
            loading=Markup(_loading_code(auto_class, task, adapters_of, record)),  # noqa: S704 (names of ours, repr)
            metrics=metrics_table(record), class_tables=class_tables(record),
            data=_data(record), command=short_words(record.summary.get("command")), facts=[*facts, *cost(record)],
            settings=None if defaults is None else differences_table(record, defaults),
            limits=_limits(record), licence=_licence(base),
        )
    )  # fmt: skip


def markdown(text: object) -> Markup:
    """Plain text for Markdown: no mark-up, no HTML, one line."""
    line = " ".join(showable(text).split())
    return Markup(re.sub(r"([\\`*_\[\]|~])", r"\\\1", str(escape(line))))  # noqa: S704 (escaped)


ENVIRONMENT.filters["markdown"] = markdown


def auto_class_of(folder: Path) -> str:
    """Name of the class of transformers that loads exported weights, by their config.json."""
    return _loading(folder)[0]


def _loading(folder: Path) -> tuple[str, str | None]:
    """Auto class, and the hub's word for what the weights do."""
    named = _json(folder / "config.json").get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    for ending, found in LOADING.items():
        if architecture.endswith(ending):
            return found
    return "AutoModel", None


def _json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return mapping(json.loads(file.read(MOST_BYTES)))
    except (OSError, ValueError):
        return {}


def _loading_code(auto_class: str, task: str | None, adapters_of: str | None, record: RunRecord) -> str:
    """Python that loads what lies beside the card, which is run from that folder."""
    lines = [f"from transformers import {auto_class}, AutoTokenizer", ""]
    if adapters_of is not None:
        lines.insert(0, "from peft import PeftModel")
        base = ascii(adapters_of)
        if adapters_of.startswith(PREFIX):
            lines.insert(0, "from importlib.resources import files")
            package, _, inside = adapters_of.removeprefix(PREFIX).partition("/")
            base = f"str(files({package!a}) / {inside!a})"
        if task == "text-classification":  # its head has as many rows as there are classes here
            id2label = mapping(_json(record.directory.model / "config.json").get("id2label"))
            names = {int(number): name for number, name in id2label.items()}
            base += f", id2label={names!a}"
            if record.settings.get("model.replace_head") == "True":
                base += ", ignore_mismatched_sizes=True"
        lines += [f"base = {auto_class}.from_pretrained({base})", 'model = PeftModel.from_pretrained(base, ".")']
    else:
        if "hierarchical" in record.settings.get("model._target_", ""):
            lines.insert(0, "import models.encoders.hierarchical  # of lightning-apps: registers the architecture")
        lines.append(f'model = {auto_class}.from_pretrained(".")')
    lines.append('tokenizer = AutoTokenizer.from_pretrained(".")')
    if task == "text-classification":
        lines.append("# all that reads texts as training did, cut and in chunks: lightning-apps-predict run=...")
    return "\n".join(lines)


def _front_matter(record: RunRecord, task: str | None, base: str) -> str:
    """What the hub reads: task, base, metrics of the test, or of the validation that chose the weights."""
    experiment = record.name.partition("/")[0]
    on_test = _is_tested(record)
    split, metrics = ("test", record.metrics()) if on_test else ("validation", record.metrics(at_best=True))
    prefix = "test/" if on_test else "val/"
    dataset = record.settings.get("data.path", "None")
    dataset = experiment if dataset == "None" else Path(dataset).name or experiment
    results = [
        EvalResult(
            task_type=task or "other", dataset_type=experiment, dataset_name=dataset, dataset_split=split,
            metric_type=name.removeprefix(prefix), metric_name=name, metric_value=value,
        )
        for name, value in metrics.items()
        if name.startswith(prefix) and name.count("/") == 1 and value is not None
        if not is_interval_end(name, metrics)
    ]  # fmt: skip
    card = ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        base_model=base if NAME_ON_THE_HUB.fullmatch(base) else None,
        tags=["lightning-apps", experiment],
        model_name=record.name,
        eval_results=results or None,
    )
    return showable(card.to_yaml()) + "\n"


def _is_tested(record: RunRecord) -> bool:
    return any(name.startswith("test/") and value is not None for name, value in record.metrics().items())


def _data(record: RunRecord) -> list[tuple[str, str]]:
    """What the model was trained and measured on."""
    facts = [entry for entry in provenance(record) if entry[0] in ("data", "fingerprint")]
    source = "data.dataset" if record.settings.get("data.path", "None") == "None" else "data.path"
    wanted = (source, "data.revision", "data.num_categories", "data.max_train_samples")
    facts += [(key, record.settings[key]) for key in wanted if record.settings.get(key, "None") != "None"]
    if isinstance(names := record.data.get("label_names"), list):
        facts.append(("classes", ", ".join(map(short, names[:100]))))
    return facts


def _limits(record: RunRecord) -> list[str]:
    """Where the numbers above do not hold."""
    found = [
        "The validation metrics chose these weights among several, so they flatter"
        + ("; those of the test did not." if _is_tested(record) else "."),
        "Intervals say how much the samples that were measured could have misled; they know nothing of another seed, "
        "of which this is one, or of other data.",
    ]
    if not _is_tested(record):
        found.append("There was no test: no sample was measured that did not choose the weights.")
    length = record.settings.get("data.max_length", "None")
    if length != "None":
        found.append(f"Texts were read up to data.max_length={length} tokens; what is longer was cut or split.")
    if record.status != "completed":
        found.append(f"The run is {record.status}: these are the best weights until then.")
    steps, planned = record.steps, number(record.summary.get("planned_steps"))
    if steps is not None and planned is not None and steps < planned:
        found.append(f"It trained for {steps:,.0f} of {planned:,.0f} planned steps.")
    return [*found, *record.told]


def _licence(base: str) -> str:
    """The licence of the base, as far as its own card beside it says."""
    if not base:
        return "Trained from scratch: the licence of the data applies."
    stated = None
    try:
        with (Path(base) / CARD).open("rb") as file:
            _, _, rest = file.read(MOST_BYTES).decode("utf-8", "replace").partition("---\n")
        stated = mapping(yaml.safe_load(rest.partition("\n---")[0])).get("license")
    except (OSError, ValueError, yaml.YAMLError):
        pass
    of_base = f"that of the base, {base}"
    return f"{short(stated)}, {of_base}." if stated else f"{of_base[0].upper()}{of_base[1:]}: its own page states it."
