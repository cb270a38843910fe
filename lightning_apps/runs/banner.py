"""What a run says before it starts and after it ends."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.upload import run_url
from lightning_apps.training.plan import RunPlan


def start_banner(
    config: Mapping[str, Any],
    plan: RunPlan,
    module: L.LightningModule,
    trainer: L.Trainer,
    directory: RunDirectory,
    checkpoint: Path | None,
    data_lines: Mapping[str, str],
) -> str:
    """What will happen: size, length, evaluations, checkpoints and their size on disk, where the files go."""
    parameters = sum(parameter.numel() for parameter in module.parameters())
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    # weights and two moments of Adam, in float32
    checkpoint_bytes = 4 * parameters + 8 * trainable
    kept = len(plan.save_steps) if (keep := config["callbacks"]["checkpoints"]["keep"]) is None else keep
    device = trainer.strategy.root_device.type
    size = config["data"]["global_batch_size"]
    lines = {
        "experiment": f"{config['experiment']}, seed {config['seed']}, {config['precision']['name']} on "
        f"{trainer.world_size} x {device}",
        "model": f"{parameters:,} parameters, {trainable:,} trainable{_by_part(module)}",
        **data_lines,
        "length": f"{plan.total_steps:,} optimizer steps of {size} samples ({plan.budget}; "
        f"{plan.epoch(plan.total_steps):.3g} epochs of {plan.steps_per_epoch:,} steps), {plan.total_tokens:,} tokens",
        "warmup": f"{plan.warmup_steps:,} steps, then {config['scheduler']['_target_'].rpartition('.')[2]}, "
        f"peak learning rate {config['optimizer']['lr']:g}",
        "evaluations": f"{len(plan.evaluation_steps)}{_first_and_last(plan.evaluation_steps)}",
        "checkpoints": f"best, last and {min(kept, len(plan.save_steps))} periodic of {human_bytes(checkpoint_bytes)}, "
        f"up to {human_bytes(checkpoint_bytes * (2 + min(kept, len(plan.save_steps))))}",
        "directory": str(directory.path),
    }
    if config["run"]["upload"] is not None:
        lines["upload"] = run_url(config["run"]["upload"], config["experiment"], config["run"]["name"])
    if checkpoint is not None:
        lines["resuming"] = str(checkpoint)
    return "\n".join(f"{name:>12}  {text}" for name, text in lines.items())


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
    return f", after steps {min(steps):,} to {max(steps):,}" if steps else ""


def result_lines(summary: Mapping[str, Any]) -> list[str]:
    """The metrics table, where the files are, and the command to evaluate."""
    path = f"{summary['directory']}"
    best = summary["best"]
    at_best = best["metrics"] if best else {}
    names = sorted({*summary["metrics"], *at_best})
    width = max((len(name) for name in names), default=0)
    lines = [
        "",
        f"{summary['status']}: {summary['reason']}; {summary['optimizer_steps']:,} steps, "
        f"{summary['tokens_seen']:,} tokens in {summary['wall_s']:.0f} s",
        f"{'':{width}}  {'final':>12}  " + (f"{'best, step ' + str(best['step']):>16}" if best else ""),
    ]
    for name in names:
        final, chosen = summary["metrics"].get(name), at_best.get(name)
        lines.append(f"{name:{width}}  {_number(final):>12}  {_number(chosen) if best else '':>16}")
    lines += [
        "",
        f"files     {path}",
        f"picture   {path}/summary.png",
        f"model     {path}/model",
        f"evaluate  python -m lightning_apps.evaluate run={path} split=validation checkpoint=best",
    ]
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 100 else f"{value:,.1f}"


def human_bytes(size: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
