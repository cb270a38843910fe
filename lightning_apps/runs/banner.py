"""What a run says before it starts and after it ends."""

import csv
import io
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from lightning_apps.experiments.experiment import Experiment
from lightning_apps.run_files.atomic_files import write_text_atomically
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics import headlines_first, is_headline, is_interval_end
from lightning_apps.run_files.upload import run_url
from lightning_apps.runs.memory_estimate import checkpoint_bytes
from lightning_apps.training.plan import RunPlan

PER_CLASS = "per_class.csv"
"""In a run's directory: the metrics of single classes."""
SCREEN_ROWS = 9
"""Metrics in the closing lines, which fit with all else on a terminal of 24 lines and 80 columns."""


def start_banner(
    config: Mapping[str, Any],
    plan: RunPlan,
    module: Experiment,
    trainer: L.Trainer,
    directory: RunDirectory,
    checkpoint: Path | None,
    data_lines: Mapping[str, str],
    *,
    precision: str | None = None,
) -> str:
    """What will happen: size, length, evaluations, checkpoints and their size on disk, where the files go.

    Args:
        config: of the run.
        plan: of the run.
        module: made for the run.
        trainer: made for the run.
        directory: of the run.
        checkpoint: from which it goes on, if it does.
        data_lines: what the data say of themselves, by name.
        precision: what `precision=auto` chose and why; None where it chose nothing.
    """
    parameters = sum(parameter.numel() for parameter in module.parameters())
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    one, all_kept = checkpoint_plan_bytes(config, plan, module)
    device = trainer.strategy.root_device.type
    size = config["data"]["global_batch_size"]
    lines = {
        "experiment": f"{config['experiment']}, seed {config['seed']}, {config['precision']['name']} on "
        f"{trainer.world_size} x {device}",
        **({} if precision is None else {"precision": precision}),
        "model": f"{parameters:,} parameters, {trainable:,} trainable{_by_part(module)}",
        **data_lines,
        "length": f"{plan.total_steps:,} optimizer steps of {size} samples ({plan.budget}; "
        f"{plan.epoch(plan.total_steps):.3g} epochs of {plan.steps_per_epoch:,} steps), {plan.total_tokens:,} tokens",
        "warmup": f"{plan.warmup_steps:,} steps, then {config['scheduler']['_target_'].rpartition('.')[2]}, "
        f"peak learning rate {config['optimizer']['lr']:g}",
        "evaluations": f"{len(plan.evaluation_steps)}{_first_and_last(plan.evaluation_steps)}",
        "checkpoints": f"best, last and {kept_periodic(config, plan)} periodic of {human_bytes(one)}, "
        f"up to {human_bytes(all_kept)}",
        "directory": str(directory.path),
    }
    if config["run"]["upload"] is not None:
        lines["upload"] = run_url(config["run"]["upload"], config["experiment"], config["run"]["name"])
    if checkpoint is not None:
        lines["resuming"] = str(checkpoint)
    return "\n".join(f"{name:>12}  {text}" for name, text in lines.items())


def kept_periodic(config: Mapping[str, Any], plan: RunPlan) -> int:
    """Periodic checkpoints that are there at once."""
    keep = config["callbacks"]["checkpoints"]["keep"]
    return len(plan.save_steps) if keep is None else min(keep, len(plan.save_steps))


def checkpoint_plan_bytes(config: Mapping[str, Any], plan: RunPlan, module: Experiment) -> tuple[int, int]:
    """Size of one checkpoint, and of all that are kept at once."""
    one = checkpoint_bytes(module, has_average=bool(config["callbacks"].get("weight_average")))
    return one, one * (2 + kept_periodic(config, plan))


def parameters_by_part(module: L.LightningModule) -> dict[str, dict[str, int]]:
    """Parameters of each part of a network that knows its parts, in all and trainable; else nothing."""
    net: Any = module.net
    if not hasattr(net, "parameter_counts"):
        return {}
    return {name: {"total": total, "trainable": trained} for name, (total, trained) in net.parameter_counts().items()}


def _by_part(module: L.LightningModule) -> str:
    parts = parameters_by_part(module)
    said = (f"{name} {part['total']:,}{'' if part['trainable'] else ' (frozen)'}" for name, part in parts.items())
    return f": {', '.join(said)}" if parts else ""


def _first_and_last(steps: frozenset[int]) -> str:
    if len(steps) == 1:
        return f", after step {min(steps):,}"
    return f", after steps {min(steps):,} to {max(steps):,}" if steps else ""


def result_lines(summary: Mapping[str, Any]) -> list[str]:
    """The metrics that a screen has room for, headlines first; where files are; how to evaluate.

    What is not there is not named; summary.json and the report have all metrics, a file those of single classes.
    """
    path = Path(summary["directory"])
    best = summary["best"]
    metrics = summary["metrics"]
    tested = {name: value for name, value in metrics.items() if name.startswith("test/")}  # with the best weights
    at_best = {**best["metrics"], **tested} if best else {}
    final = {name: value for name, value in metrics.items() if name not in tested} if best else metrics
    monitor = best["metric"] if best else None
    names = headlines_first({*metrics, *at_best}, monitor=monitor)
    names = [name for name in names if name.count("/") < 2 and not is_interval_end(name, names)]
    room = SCREEN_ROWS if len(names) > SCREEN_ROWS + 1 else len(names)  # a line that says "1 more" is no shorter
    shown = sorted(names, key=lambda name: not is_headline(name, monitor=monitor))[:room]  # of each split
    rows = [
        (name, _with_interval(final, name, short=bool(best)), _with_interval(at_best, name))
        for name in names
        if name in shown
    ]
    wide, middle = (max((len(row[column]) for row in rows), default=0) for column in (0, 1))
    lines = [
        "",
        f"{summary['status']}: {summary['reason']}; {summary['optimizer_steps']:,} steps, "
        f"{summary['tokens_seen']:,} tokens in {summary['wall_s']:.0f} s",
        f"{'':{wide}}  {'final':{middle}}" + (f"  best by *, step {best['step']:,}" if best else ""),
    ]
    for name, at_end, chosen in rows:
        mark = "  *" if name == monitor else ""
        lines.append(f"{name:{wide}}  {at_end:{middle}}  {chosen}{mark}".rstrip())
    if len(names) > len(rows):
        lines.append(f"... and {len(names) - len(rows)} more in summary.json")
    lines += ["", f"files     {path}"]
    if (path / "summary.png").is_file():
        lines.append(f"picture   {path / 'summary.png'}")
    if (path / "report.html").is_file():
        lines.append(f"report    {path / 'report.html'}")
    if (path / PER_CLASS).is_file():
        lines.append(f"classes   {path / PER_CLASS}")
    if (path / "model" / "config.json").is_file():
        lines.append(f"model     {path / 'model'}")
    if (path / "checkpoints" / "best.ckpt").exists():
        command = ["python", "-m", "lightning_apps.evaluate", f"run={path}", "split=validation", "checkpoint=best"]
        lines.append(f"evaluate  {shlex.join(command)}")
    return lines


def _with_interval(metrics: Mapping[str, float | None], name: str, *, short: bool = False) -> str:
    """The value; its interval where it has one and there is room for it."""
    value, low, high = (metrics.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is not None and math.isnan(value):
        # its interval counts the answers that it leaves out
        return "no valid answer" if metrics.get(f"{name.partition('/')[0]}/valid_ratio") == 0 else "nan"
    return _number(value) + ("" if short or low is None or high is None else f" ({_number(low)} to {_number(high)})")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 100 else f"{value:,.1f}"


def write_per_class(directory: Path, summary: Mapping[str, Any]) -> None:
    """Write the metrics of single classes, `<split>/<metric>/<class>`, as a table; nothing where there are none.

    A row for each class of each split; a column for each metric, at the end and at the best checkpoint.
    """
    tables = {"": summary["metrics"], "best_": summary["best"]["metrics"] if summary["best"] else {}}
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for prefix, metrics in tables.items():
        for name, value in metrics.items():
            if name.count("/") >= 2:
                split, metric, label = name.split("/", 2)
                cells.setdefault((split, label), {})[prefix + metric] = value
    if not cells:
        return
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "class", *columns])
    writer.writerows([*key, *(row.get(column, "") for column in columns)] for key, row in cells.items())
    write_text_atomically(directory / PER_CLASS, text.getvalue())


def human_bytes(size: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
