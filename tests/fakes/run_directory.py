"""Run directories that no run has made."""

import json
import re

import yaml

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
CONFIG = {
    "experiment": "imdb",
    "seed": 7,
    "run": {"name": "a"},
    "optimizer": {"lr": 0.25},
    "callbacks": {"checkpoints": {"monitor": "val/f1_macro"}},
}
SUMMARY = {
    "status": "completed", "reason": "reached trainer.max_steps=4", "seed": 7, "git_commit": "abc", "wall_s": 100.0,
    "versions": {"torch": "2.13.0"}, "command": "python -m lightning_apps.train experiment=imdb run.resume=auto",
    "optimizer_steps": 4, "planned_steps": 4, "tokens_seen": 1200, "train_s": 60.0, "tokens_per_s": 20.0, "mfu": 0.125,
    "peak_memory_bytes": 1.5e9, "parameters": {"total": 2000, "trainable": 1000},
    "best": {
        "metric": "val/f1_macro", "step": 2,
        "metrics": {"val/f1_macro": 0.75, "val/f1_macro_low": 0.5, "val/f1_macro_high": 0.875, "val/loss": 0.5},
    },
    "metrics": {"val/f1_macro": 0.5, "val/loss": 0.625, "test/loss": None, "val/very_low": 1.0,
                "val/f1/good": 0.25, "val/f1/bad": 0.75},
}  # fmt: skip
METRICS = "step,train/loss,val/loss\n1,1.5,\n2,1.25,0.5\n3,nan,\n4,1.0,0.625\n"
PREDICTIONS = [
    {"input": "fine", "target": "good", "output": "good", "score": 0.875, "confidence": 0.875},
    {"input": "poor", "target": "bad", "output": "good", "score": 0.125, "confidence": 0.875},
    {"input": "void", "target": "bad", "output": "", "score": None, "confidence": None},
]


def write(folder, *, config=CONFIG, **files):
    """A run directory; the names of its files stand without their endings."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    endings = {"metrics": "csv", "predictions": "jsonl", "train": "log", "summary": "json", "baselines": "json"}
    for name, content in files.items():
        path = folder / f"{name}.{endings.get(name, 'json')}"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def complete(folder, **files):
    whole = {"summary": SUMMARY, "metrics": METRICS, "predictions": lines(PREDICTIONS)}
    return write(folder, **(whole | files))


def curves_of(document):
    found = re.search(r'<script type="application/json" id="chart-data">(.*?)</script>', document, re.S)
    return json.loads(found[1])
