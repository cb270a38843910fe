"""The report of one run: `<run>/report.html`, at its end, while it runs, or after it failed."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_apps.process.console import human_time
from lightning_apps.reports.curves import FIRST_CHARTS, charts
from lightning_apps.reports.page import Table, render, write_page
from lightning_apps.reports.run_record import (
    RunRecord,
    default_settings,
    log_end,
    mapping,
    number,
    pictures,
    read_record,
    short,
)
from lightning_apps.run_files.directory import check_writable
from lightning_apps.run_files.metrics import headlines_first, is_interval_end

MOST_EXAMPLES = 200


def write_run_report(place: str, *, out: str | None = None, is_over: bool = False) -> list[Path]:
    """Write the page of a run; returns the file.

    Args:
        place: directory or URL of the run.
        out: folder for the page; None is that of the run.
        is_over: see read_record.

    Raises:
        ConfigError: no run is there, or the folder cannot be written.
    """
    record = read_record(place, is_over=is_over)
    folder = record.directory.path if out is None else Path(out)
    check_writable(folder, "out=... writes elsewhere")
    found = pictures(record)
    defaults = default_settings(record.name.partition("/")[0])
    drawn = charts([(record.name, record.rows)], monitor=monitor(record))
    write_page(
        folder / "report.html", "run.html", f"Run {record.name}",
        style=render("report.css"), script=render("report.js"),
        status=record.status, outcome=outcome(record), told=record.told,
        log=log_end(record) if record.status in ("failed", "unfinished") else "",
        pictures=found, charts=drawn, first_charts=FIRST_CHARTS,
        metrics=metrics_table(record), classes=class_tables(record), examples=examples_table(record),
        differing=None if defaults is None else differences_table(record, defaults),
        settings=Table("All settings", ["key", "value"], list(record.settings.items()), text=(0, 1), long=(1,)),
        provenance=provenance(record), cost=cost(record), commands=commands(record),
    )  # fmt: skip
    return [folder / "report.html"]


def monitor(record: RunRecord) -> str | None:
    """The metric that chooses the best."""
    name = record.best.get("metric") or record.settings.get("callbacks.checkpoints.monitor")
    return name if isinstance(name, str) and name != "None" else None


def outcome(record: RunRecord) -> str:
    """What came of the run, in one line."""
    parts = [f"{record.status}: {record.reason}" if record.reason else record.status]
    planned = number(record.summary.get("planned_steps"))
    if record.steps is not None:
        parts.append(f"{record.steps:,.0f}{'' if planned is None else f' of {planned:,.0f}'} optimizer steps")
    if (wall_s := number(record.summary.get("wall_s"))) is not None:
        parts[-1] += f" in {human_time(wall_s)}"
    name = monitor(record)
    if name is not None and record.best:
        step = number(record.best.get("step"))
        parts.append(f"best {name} {with_interval(record.metrics(at_best=True), name)} at step {show(step)}")
    elif name is not None and name in record.metrics():
        parts.append(f"{name} {with_interval(record.metrics(), name)} in the last evaluation")
    return "; ".join(parts)


def metrics_table(record: RunRecord) -> Table:
    """A row for each metric, headlines first: last and best value on validation, the test, the baselines."""
    final, best = record.metrics(), record.metrics(at_best=True)
    names = headlines_first({*final, *best}, monitor=monitor(record))
    kept = [name for name in names if name.count("/") < 2 and not is_interval_end(name, names)]
    columns: list[tuple[str, str, Mapping[str, float | None]]] = [("validation, last", "val/", final)]
    if best:
        columns.append((f"validation, best (step {show(number(record.best.get('step')))})", "val/", best))
    if any(name.startswith("test/") for name in names):
        columns.append(("test", "test/", final))
    for split, prefix in (("validation", "val/"), ("test", "test/")):
        for baseline, values in list(mapping(record.baselines.get(split)).items())[:6]:
            reached = {f"{prefix}{key}": number(value) for key, value in mapping(values).items()}
            columns.append((f"{short(baseline)}, {split}", prefix, reached))
    rows = [
        [short(metric), *(with_interval(values, prefix + metric) for _, prefix, values in columns)]
        for metric in dict.fromkeys(name.partition("/")[2] for name in kept)
    ]
    caption = "What chose the best first; 95 % intervals in brackets."
    return Table(caption, ["metric", *(head for head, _, _ in columns)], rows, text=(0,))


def class_tables(record: RunRecord) -> list[Table]:
    """For each split a row for each class, with its metrics at the end."""
    cells: dict[str, dict[str, dict[str, float | None]]] = {}
    for name, value in record.metrics().items():
        if name.count("/") >= 2:
            split, metric, label = name.split("/", 2)
            cells.setdefault(split, {}).setdefault(label, {})[metric] = value
    tables = []
    for split, classes in cells.items():
        metrics = list(dict.fromkeys(metric for values in classes.values() for metric in values))
        rows = [[short(label), *(show(values.get(name)) for name in metrics)] for label, values in classes.items()]
        caption = f"{len(rows):,} classes, {'validation' if split == 'val' else split}, last evaluation"
        tables.append(Table(caption, ["class", *metrics], rows[:1000], text=(0,)))
    return tables


def examples_table(record: RunRecord) -> Table:
    """The worst answers first: by distance, or by how much is missing to a score of 1; what has none is worst."""
    ranked = sorted(((error_of(row), line, row) for line, row in record.predictions), key=lambda entry: -entry[0])
    kept = ranked[:MOST_EXAMPLES]
    hidden = ("index", "input", "target", "output", "score", "probabilities", "distance_km")
    others = list(dict.fromkeys(key for _, _, row in kept for key in row if key not in hidden))[:6]
    rows = [
        [
            str(line),
            "none" if math.isinf(error) else f"{error:,.5g}",
            *(short(row.get(key, "")) for key in ("input", "target", "output")),
            *(cell(row.get(key)) for key in others),
        ]
        for error, line, row in kept
    ]
    caption = f"{len(rows):,} of {len(ranked):,} answers of the last evaluation, the worst first; each head sorts."
    head = ["line", "error", "input", "target", "output", *map(short, others)]
    lengths = {key: max(len(str(row.get(key, ""))) for *_, row in kept) for key in others}
    named = {key for *_, row in kept for key, value in row.items() if isinstance(value, str)}
    words = [place for place, key in enumerate(others, start=5) if key in named]
    long = [place for place in words if lengths[others[place - 5]] > 40]
    return Table(caption, head, rows, text=(2, 3, 4, *words), long=(2, 3, 4, *long), sortable=True)


def error_of(row: Mapping[str, Any]) -> float:
    """How wrong an answer is; infinite where it is none: no number, no place."""
    if "distance_km" in row:
        distance = number(row["distance_km"])
        return math.inf if distance is None else distance
    score = number(row.get("score"))
    return math.inf if score is None else 1 - score


def cell(value: Any) -> str:
    """A value of a prediction; numbers cut to five digits."""
    return show(value) if isinstance(value, float) else "–" if value is None else short(value)


def differences_table(record: RunRecord, defaults: Mapping[str, str]) -> Table:
    """Settings that are not what the experiment has by default."""
    rows = [
        [key, record.settings.get(key, "not set"), defaults.get(key, "not set")]
        for key in sorted({*record.settings, *defaults})
        if record.settings.get(key) != defaults.get(key)
    ]
    return Table(
        f"{len(rows)} settings differ from the defaults of this version", ["key", "here", "default"], rows,
        text=(0, 1, 2), long=(1, 2),
    )  # fmt: skip


def provenance(record: RunRecord) -> list[tuple[str, str]]:
    """Where the numbers come from."""
    samples = ", ".join(f"{show(count)} {short(split)}" for split, count in mapping(record.data.get("samples")).items())
    digests = ", ".join(
        f"{short(split)} {short(digest)}" for split, digest in mapping(record.data.get("digests")).items()
    )
    versions = ", ".join(f"{short(key)} {short(text)}" for key, text in mapping(record.summary.get("versions")).items())
    facts = {
        "command": short_words(record.summary.get("command")),
        "commit": short(record.summary.get("git_commit") or ""),
        "versions": versions,
        "seed": record.settings.get("seed", ""),
        "data": samples,
        "fingerprint": digests,
    }
    return [(name, text) for name, text in facts.items() if text]


def short_words(command: Any) -> str:
    """A command, whole unless it is absurd."""
    return command[:4000] if isinstance(command, str) else ""


def cost(record: RunRecord) -> list[tuple[str, str]]:
    """What the run took."""
    summary, parameters = record.summary, mapping(record.summary.get("parameters"))
    total, trainable = number(parameters.get("total")), number(parameters.get("trainable"))
    found = {key: number(summary.get(key)) for key in ("wall_s", "train_s", "tokens_seen", "tokens_per_s", "mfu")}
    peak = number(summary.get("peak_memory_bytes"))
    facts = {
        "time": found["wall_s"] is not None
        and human_time(found["wall_s"])
        + (f", {human_time(found['train_s'])} of it training" if found["train_s"] is not None else ""),
        "tokens": found["tokens_seen"] is not None and f"{found['tokens_seen']:,.0f}",
        "speed": found["tokens_per_s"] is not None and f"{found['tokens_per_s']:,.0f} tokens/s",
        "MFU": found["mfu"] is not None and f"{100 * found['mfu']:.3g} % of the measured peak",
        "peak memory": peak is not None and f"{peak / 1e9:.3g} GB",
        "parameters": total is not None and f"{total:,.0f}" + (f", {trainable:,.0f} trainable" if trainable else ""),
    }
    return [(name, text) for name, text in facts.items() if text]


def commands(record: RunRecord) -> list[tuple[str, str]]:
    """How to go on: what each command is for, and the command."""
    path = f"run={record.directory.path}"
    goes_on: list[tuple[str, Sequence[str]]] = []
    if record.status not in ("completed", "running") and (words := training_words(record.summary.get("command"))):
        goes_on.append(("go on training", ["train", *words, "run.resume=auto"]))
    if (record.directory.checkpoints / "best.ckpt").exists():
        goes_on.append(("measure the best weights", ["evaluate", path, "split=test", "checkpoint=best"]))
    if (record.directory.model / "config.json").is_file() and isinstance(record.data.get("label_names"), list):
        goes_on.append(("classify other texts", ["predict", path, "input=texts.jsonl", "output=answers.jsonl"]))
        if record.name.startswith("rating/"):
            goes_on.append(("see what verdicts rest on", ["explain", path, "split=test"]))
    elif (record.directory.model / "config.json").is_file():
        goes_on.append(("ask the model", ["generate", path, "prompt=..."]))
    if (record.directory.model / "config.json").is_file():
        goes_on.append(("share the model", ["export", path, "to=hf://OWNER/NAME"]))
    if record.directory.sample_log.is_file() and record.steps:
        goes_on.append(("do a step again", ["replay", path, f"step={record.steps:.0f}"]))
    goes_on.append(("write this page again", ["report", path]))
    goes_on.append(("lay it beside another run", ["report", path, "run=OTHER"]))
    return [(what, shlex.join(["python", "-m", f"lightning_apps.{name}", *words])) for what, (name, *words) in goes_on]


def training_words(command: Any) -> list[str] | None:
    """The overrides of a recorded train command; None if it is another command: the file may be a stranger's."""
    try:
        words = shlex.split(command) if isinstance(command, str) else []
    except ValueError:
        return None
    if words[1:3] != ["-m", "lightning_apps.train"] or len(command) > 4000 or not command.isprintable():
        return None
    return [word for word in words[3:] if not word.startswith(("run.resume=", "run.overwrite="))]


def with_interval(metrics: Mapping[str, float | None], name: str) -> str:
    """A metric and, where both ends are known, its interval."""
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    interval = "" if low is None or high is None else f" ({show(low)} to {show(high)})"
    return show(metrics.get(name)) + interval


def show(value: Any) -> str:
    """Five digits; a dash for what is not there or not finite."""
    found = number(value)
    return "–" if found is None else f"{found:,.0f}" if abs(found) >= 1e5 or found == int(found) else f"{found:,.5g}"
