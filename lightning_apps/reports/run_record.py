"""What a run directory says, as data from a stranger: bounded, links followed nowhere, and what is damaged is told."""

import csv
import itertools
import json
import math
import reprlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_apps.config.composition import CONF, options
from lightning_apps.config.open_run import read_run
from lightning_apps.config.search_path import search_path_override
from lightning_apps.errors import ConfigError
from lightning_apps.process.file_lock import is_locked, owner_text
from lightning_apps.run_files.directory import RunDirectory, leads_out, read_summary
from lightning_apps.run_files.metrics import parse_metrics

MOST_BYTES = 32_000_000
"""Read of one file at most."""
MOST_SETTINGS = 2_000
LOG_LINES = 20

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 300
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict = 3, 12, 12


@dataclass(frozen=True)
class RunRecord:
    """A run as its directory describes it.

    Attributes:
        directory: its paths.
        name: `<experiment>/<name>`.
        settings: leaves of config.yaml by their dotted keys, as text.
        summary: summary.json; empty where there is none.
        status: `completed`, `stopped`, `failed`, `running`, or `unfinished`: nobody trains and nothing was summed up.
        reason: why, in words.
        rows: of metrics.csv.
        predictions: (line, row) of predictions.jsonl.
        baselines: of each split, by name, what simple models reach.
        data: what data.json tells of the samples.
        told: what was cut, damaged or missing.
    """

    directory: RunDirectory
    name: str
    settings: dict[str, str]
    summary: dict[str, Any]
    status: str
    reason: str
    rows: list[dict[str, Any]]
    predictions: list[tuple[int, dict[str, Any]]]
    baselines: dict[str, Any]
    data: dict[str, Any]
    told: list[str] = field(default_factory=list)

    @property
    def best(self) -> dict[str, Any]:
        """The evaluation that was chosen; empty where there is none."""
        return mapping(self.summary.get("best"))

    @property
    def steps(self) -> float | None:
        """Optimizer steps, or those logged so far."""
        if (steps := number(self.summary.get("optimizer_steps"))) is not None and self.status != "running":
            return steps
        return self.rows[-1]["step"] if self.rows else None

    def metrics(self, *, at_best: bool = False) -> dict[str, float | None]:
        """Last values of `val/` and `test/`, or those of the chosen evaluation; None where a value is not finite."""
        source = self.best.get("metrics") if at_best else self.summary.get("metrics")
        if not at_best and (source is None or self.status == "running"):
            source = {key: value for row in self.rows for key, value in row.items() if key[:4] in ("val/", "test")}
        return {str(key): number(value) for key, value in mapping(source).items()}


def read_record(place: str, *, is_over: bool = False, is_brief: bool = False) -> RunRecord:
    """Read a run.

    Args:
        place: directory or URL of the run.
        is_over: whether the run has ended, although its lock may be held: this process is the one that trained.
        is_brief: whether predictions, and metrics.csv of a run that has a summary, are left alone.

    Raises:
        ConfigError: no run is there.
    """
    directory, config = read_run(place)
    told: list[str] = []
    summary: dict[str, Any] = {}
    try:
        summary = read_summary(directory) or {}
    except ConfigError as error:
        told.append(str(error))
    lock = directory.lock
    if not is_over and lock.is_file() and not leads_out(lock, directory.path) and is_locked(lock):
        status, reason = "running", owner_text(lock)
    elif summary:
        status, reason = summary["status"], short(summary.get("reason", ""))
    else:
        status = "unfinished"
        reason = "no summary: it was killed before it wrote one, or trains on another machine"
    rows: list[dict[str, Any]] = []
    try:
        if not (is_brief and summary):
            rows = parse_metrics(_content(directory, "metrics.csv", told))
    except csv.Error as error:
        told.append(f"metrics.csv is damaged ({error})")
    run = mapping(config.get("run"))
    return RunRecord(
        directory=directory,
        name=f"{short(config['experiment'])}/{short(run.get('name') or directory.path.name)}",
        settings=flat_text(config),
        summary=summary,
        status=short(status),
        reason=reason,
        rows=rows,
        predictions=[] if is_brief else list(_predictions(_content(directory, "predictions.jsonl", told), told)),
        baselines=_json(directory, "baselines.json", told),
        data=_json(directory, "data.json", told),
        told=told,
    )


def log_end(record: RunRecord) -> str:
    """The last lines of train.log."""
    if not _is_readable(record.directory, "train.log"):
        return ""
    with record.directory.log.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 64_000))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return "\n".join(line[:500] for line in lines[-LOG_LINES:])


def pictures(record: RunRecord) -> list[Path]:
    """summary.png first; links and what is too large for a page are left out."""
    found: list[Path] = []
    for pattern in ("summary.png", "in_context/*.png"):
        for path in sorted(record.directory.path.glob(pattern))[:12]:
            if not _is_readable(record.directory, str(path.relative_to(record.directory.path))):
                continue
            if path.stat().st_size > MOST_BYTES / 4:
                record.told.append(f"{path.name} is too large for a page")
            elif path.read_bytes()[:8] != b"\x89PNG\r\n\x1a\n":
                record.told.append(f"{path.name} is no PNG")
            else:
                found.append(path)
    return found


def default_settings(experiment: str) -> dict[str, str] | None:
    """What conf/ gives this experiment where nothing is overridden; None where it is not found there."""
    if experiment not in options("experiment"):
        return None
    hydra = GlobalHydra.instance().hydra  # of the command that runs
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            cfg = compose("config", overrides=[*search_path_override(sys.argv[1:]), f"experiment={experiment}"])
        return flat_text(OmegaConf.to_container(cfg, resolve=True))
    except (HydraException, OmegaConfBaseException):
        return None
    finally:
        GlobalHydra.instance().hydra = hydra


def mapping(value: Any) -> dict[str, Any]:
    """The value, if it is a mapping; else an empty one."""
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """The value as a finite number; else None."""
    try:
        found = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # an integer of a thousand digits
        return None
    return found if math.isfinite(found) else None


def short(value: Any) -> str:
    """A value as text, cut where it is long or deep."""
    text = value if isinstance(value, str) else _SHORT.repr(value)
    return text if len(text) <= 300 else f"{text[:300]}…"


def flat_text(node: Any) -> dict[str, str]:
    """Leaves of a configuration by their dotted keys, as text; `run` and `sweep` are left out."""
    kept = {key: value for key, value in mapping(node).items() if key not in ("run", "sweep", "verify")}
    return dict(itertools.islice(_leaves(kept, ()), MOST_SETTINGS))


def _leaves(node: dict[Any, Any], above: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        place = (*above, short(key))
        if isinstance(value, dict) and value and len(place) < 9:
            yield from _leaves(value, place)
        else:
            yield ".".join(place), short(value)


def _is_readable(directory: RunDirectory, name: str) -> bool:
    path = directory.path / name
    return path.is_file() and not leads_out(path, directory.path)


def _content(directory: RunDirectory, name: str, told: list[str]) -> bytes:
    """A file's beginning; empty where there is none, or a link leads out of the run."""
    if not _is_readable(directory, name):
        return b""
    with (directory.path / name).open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) <= MOST_BYTES:
        return content
    told.append(f"{name} is read up to its first {MOST_BYTES / 1e6:.0f} MB")
    return content[: content.rfind(b"\n", 0, MOST_BYTES) + 1]


def _json(directory: RunDirectory, name: str, told: list[str]) -> dict[str, Any]:
    content = _content(directory, name, told)
    try:
        return mapping(json.loads(content)) if content else {}
    except (ValueError, RecursionError):
        told.append(f"{name} is damaged")
        return {}


def _predictions(content: bytes, told: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows that are objects, with the number of their line, from 1."""
    damaged = 0
    for place, line in enumerate(content.split(b"\n"), start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            row = ()
        if isinstance(row, Mapping):
            yield place, dict(row)
        elif row is not None:
            damaged += 1
    if damaged:
        told.append(f"predictions.jsonl: {damaged:,} lines are damaged")
