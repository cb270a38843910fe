"""The run directory: where a run's files are, who may start in it, and what overwriting may delete."""

import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from datamodules.storage.folders import StorageError, download_folder, fetch_marker, join_url
from lightning_apps.errors import ConfigError, first_line
from lightning_apps.process.rank import global_rank

WRITTEN_BY_A_RUN = (
    "config.yaml",
    "data.json",
    "summary.json",
    "metrics.csv",
    "summary.png",
    "predictions.jsonl",
    "baselines.json",
    "training_history.json",
    "train.log",
    "report.html",
    "checkpoints",
    "model",
    "evaluations",
    "explanations",
    "sample_log.bin",
    "crash_dumps",
    "in_context",
    "profile",
    "tensorboard",
    "wandb",
    ".mlflow_run_id",
    ".upload",
    ".stop",
)
"""Everything that overwriting may delete; a user's own files in the folder stay."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """Resolved configuration; enough to run again."""
        return self.path / "config.yaml"

    @property
    def data(self) -> Path:
        """What tells the data that the run was started with from others."""
        return self.path / "data.json"

    @property
    def summary(self) -> Path:
        """Outcome of the run."""
        return self.path / "summary.json"

    @property
    def metrics(self) -> Path:
        """One row per logged step."""
        return self.path / "metrics.csv"

    @property
    def picture(self) -> Path:
        """The picture of the run."""
        return self.path / "summary.png"

    @property
    def predictions(self) -> Path:
        """What the model said in the last evaluation."""
        return self.path / "predictions.jsonl"

    @property
    def baselines(self) -> Path:
        """What simple models reach on the same splits."""
        return self.path / "baselines.json"

    @property
    def history(self) -> Path:
        """Every evaluation, for programs that read JSON."""
        return self.path / "training_history.json"

    @property
    def log(self) -> Path:
        """What was said to the user, and tracebacks."""
        return self.path / "train.log"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The best weights in Hugging Face layout, with the tokenizer."""
        return self.path / "model"

    @property
    def evaluations(self) -> Path:
        """Results of the evaluate command."""
        return self.path / "evaluations"

    @property
    def explanations(self) -> Path:
        """Results of the explain command."""
        return self.path / "explanations"

    @property
    def sample_log(self) -> Path:
        """Which samples fed each step."""
        return self.path / "sample_log.bin"

    @property
    def crash_dumps(self) -> Path:
        """What the guards left behind."""
        return self.path / "crash_dumps"

    @property
    def profile(self) -> Path:
        """Reports of Lightning's profilers."""
        return self.path / "profile"

    @property
    def in_context(self) -> Path:
        """Loss by position and by category."""
        return self.path / "in_context"

    @property
    def upload_snapshot(self) -> Path:
        """What a background upload reads; there while it is under way."""
        return self.path / ".upload"

    @property
    def stop_request(self) -> Path:
        """Asks the run that trains here to stop, saved; a search makes it, and the next start takes it away."""
        return self.path / ".stop"

    @property
    def lock(self) -> Path:
        """Held by the process that trains here; it stays when the run is overwritten."""
        return self.path / ".lock"

    def holds_a_run(self) -> bool:
        """Whether a run has started here."""
        return self.config.exists() or self.checkpoints.exists()

    def checkpoint(self, name: str) -> Path:
        """A checkpoint by `best`, `last`, its step (`120`), file name, or path.

        Raises:
            ConfigError: there is no such file, nor folder of shards.
        """
        if name.isdecimal():
            name = f"step={int(name):08d}"
        for candidate in (self.checkpoints / f"{name}.ckpt", self.checkpoints / name, Path(name)):
            if candidate.is_file() or (candidate.suffix == ".ckpt" and candidate.is_dir()):
                return candidate
        there = sorted(path.name for path in self.checkpoints.glob("*.ckpt"))
        raise ConfigError(f"checkpoint={name}: not in {self.checkpoints}; there are: {', '.join(there) or 'none'}")


def locate_run(run: dict[str, Any], experiment: str) -> RunDirectory:
    """The directory that the settings name; nothing is made.

    Raises:
        ConfigError: it would lie outside the output root.
    """
    root = Path(run["output_root"])
    directory = RunDirectory(root / experiment / run["name"])
    if not directory.path.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"run.name={run['name']!r} leads out of run.output_root={run['output_root']} (a symlink?)")
    return directory


def check_start(directory: RunDirectory, run: dict[str, Any]) -> None:
    """Whether a run may start here; nothing is changed.

    Raises:
        ConfigError: another run is here and neither run.resume nor run.overwrite was given, or overwriting is unsafe.
    """
    if run["resume"] is not None and run["overwrite"]:
        raise ConfigError("run.resume and run.overwrite=true exclude each other: continue the run, or delete it")
    if directory.path.exists() and not directory.path.is_dir():
        raise ConfigError(f"{directory.path} is a file; choose another run.name")
    if run["resume"] is not None:
        refuse_links(directory, WRITTEN_BY_A_RUN)
    check_writable(directory.path, "choose another run.output_root")
    if run["overwrite"]:
        check_overwrite(directory, Path(run["output_root"]))
    elif run["resume"] is None and directory.holds_a_run():
        raise ConfigError(
            f"{directory.path} holds another run: continue it with run.resume=auto, replace it with "
            "run.overwrite=true, or choose another run.name"
        )


def check_overwrite(directory: RunDirectory, output_root: Path) -> None:
    """Whether this folder may be cleared: inside the output root, not a symlink, and a run's.

    Raises:
        ConfigError: otherwise, saying which rule it breaks.
    """
    root, path = output_root.resolve(), directory.path.resolve()
    if root == Path(root.anchor) or root == Path.home().resolve():
        raise ConfigError(f"run.overwrite=true refuses run.output_root={output_root}: it is the root or home folder")
    if directory.path.is_symlink() or directory.path.parent.is_symlink():
        raise ConfigError(f"run.overwrite=true refuses {directory.path}: a symlink is in the way")
    if path == root or not path.is_relative_to(root):
        raise ConfigError(
            f"run.overwrite=true refuses {directory.path}: it is not inside run.output_root={output_root}"
        )
    if not directory.path.exists() or all(entry == directory.lock for entry in directory.path.iterdir()):
        return  # the lock is that of the run which is to begin
    try:
        is_run = {"experiment", "run", "trainer"} <= read_config(directory).keys()
    except ConfigError:
        is_run = False
    if not is_run:
        raise ConfigError(
            f"run.overwrite=true refuses {directory.path}: it has no config.yaml of a run; "
            "delete it by hand if it is yours to delete"
        )


def clear(directory: RunDirectory, output_root: Path) -> None:
    """Delete what an earlier run wrote here; anything else stays.

    Raises:
        ConfigError: check_overwrite forbids it.
    """
    check_overwrite(directory, output_root)
    # config.yaml goes last: until then a killed clean-up can be repeated
    for name in sorted(WRITTEN_BY_A_RUN, key=lambda entry: entry == "config.yaml"):
        entry = directory.path / name
        if entry.is_symlink() or entry.is_file():
            entry.unlink()
        elif entry.is_dir():
            shutil.rmtree(entry)


def fetched_run(url: str, cache_root: Path) -> Path:
    """The local copy of a run in an object store, whole and as it is there now.

    Raises:
        ConfigError: it cannot be fetched, in words.
    """
    is_main = global_rank() == 0  # the processes of a run wait for the first that fetches

    def report(text: str) -> None:
        if is_main:
            print(text, file=sys.stderr)

    try:
        url = join_url(url)
        # another upload to the same URL is another copy: results that were written to this one stay beside it
        state = hashlib.sha256(url.encode() + b"\0" + fetch_marker(url)).hexdigest()
        copy = cache_root / "runs" / f"{re.sub('[^A-Za-z0-9._=,+-]+', '_', url.rpartition('/')[2])}-{state[:16]}"
        progress = partial(tqdm, leave=False) if is_main and sys.stderr.isatty() else None
        download_folder(url, copy, progress=progress, report=report)
    except StorageError as error:
        raise ConfigError(f"run: {error}") from error
    report(f"run={url}: its copy in {copy} is used; what is written stays there")
    return copy


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a path below a folder leads somewhere else, over a symbolic link."""
    return not path.resolve().is_relative_to(folder.resolve())


def refuse_links(directory: RunDirectory, names: Iterable[str]) -> None:
    """Refuse a run directory in which some of these entries are links to somewhere else.

    A run directory may be a stranger's: what is written into it must not arrive elsewhere, and what is read from it
    and shown must not be another file of this machine.

    Raises:
        ConfigError: one is.
    """
    for name in names:
        if leads_out(directory.path / name, directory.path):
            raise ConfigError(
                f"{directory.path / name} is a link out of the run, to {(directory.path / name).resolve()}; put what "
                "belongs to the run in its place"
            )


def results_folder(directory: RunDirectory, folder: Path, out: str | None) -> Path:
    """Where a command writes what it found about a run: `folder` of the run, or one below `out` of the same name.

    Raises:
        ConfigError: it cannot be written, or a link leads out of the run.
    """
    if out is not None:
        folder = Path(out) / folder.name
    elif leads_out(folder, directory.path):
        raise ConfigError(
            f"{folder} leads out of the run, to {folder.resolve()} (a link); write elsewhere with out=..."
        )
    check_writable(folder, "out=... writes elsewhere")
    return folder


def check_writable(folder: Path, remedy: str) -> None:
    """Whether files can be made in a folder, or in the nearest one above it that is there; nothing stays.

    Raises:
        ConfigError: they cannot: no right, a read-only file system, a full disk, or a file in the way.
    """
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ConfigError(f"{folder} cannot be made: {there} is a file; {remedy}")
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        raise ConfigError(f"{there} cannot be written: {error.strerror or error}; {remedy}") from error


def use_cache_here(config: dict[str, Any], cache_root: str) -> None:
    """Prepared data of a run that was made elsewhere go below `cache_root` where its own folder is not here."""
    made_with = config["run"]["cache_root"]
    if not Path(made_with).is_dir():
        config["run"]["cache_root"] = cache_root
        if config["data"].get("cache_root") == made_with:
            config["data"]["cache_root"] = cache_root


def read_config(directory: RunDirectory) -> dict[str, Any]:
    """The resolved configuration in config.yaml.

    Raises:
        ConfigError: the file is damaged, or is not that of a run.
    """
    path = directory.config
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({first_line(error)}); {_RESTORE}") from error
    if not isinstance(config, dict) or not isinstance(config.get("experiment"), str):
        raise ConfigError(f"{path} is not the configuration of a run (it names no experiment); {_RESTORE}")
    return config


_RESTORE = (
    "restore it from a copy; without it only run.resume=auto with the run's own command goes on (delete the file)"
)


def read_summary(directory: RunDirectory) -> dict[str, Any] | None:
    """What summary.json holds, or None where there is none.

    Raises:
        ConfigError: the file is damaged.
    """
    path = directory.summary
    if not path.is_file():
        return None
    remedy = "the run's command with run.resume=auto writes it again"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({first_line(error)}); {remedy}") from error
    if not isinstance(summary, dict) or not isinstance(summary.get("status"), str):
        raise ConfigError(f"{path} is not the summary of a run (it has no status); {remedy}")
    return summary


def whole_summary(directory: RunDirectory) -> dict[str, Any] | None:
    """What summary.json holds, or None where there is none or it is damaged: the run is then not known to be over."""
    try:
        return read_summary(directory)
    except ConfigError:
        return None
