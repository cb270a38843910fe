"""run.upload: the run's files go to an object store while it goes on, and all of them at its end."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import lightning as L
from lightning.pytorch.utilities.types import STEP_OUTPUT

from datamodules.storage.folders import StorageError, folder_files
from lightning_apps.callbacks.checkpoints import RunCheckpoints
from lightning_apps.config.composition import PACKAGE
from lightning_apps.process.console import say
from lightning_apps.process.side_products import side_product
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.upload import is_left_out, report_text, retry_command, run_url
from lightning_apps.training.plan import RunPlan

REST = 3.0
"""Passes rest so many times as long as they took: however many evaluations there are, they use a quarter of one core
at most, at the lowest priority."""
NUM_NAMES = 5


class Signature(NamedTuple):
    """What tells that a file has changed.

    Attributes:
        size: bytes.
        mtime_ns: time of the last modification, nanoseconds since 1970.
        inode: number of the file; a file that was replaced has another one.
    """

    size: int
    mtime_ns: int
    inode: int


class RunUpload(L.Callback):
    """Uploads what has changed after each evaluation and periodic checkpoint, and everything at the end.

    The training process only makes a snapshot between two steps (checkpoints, which are replaced and never rewritten,
    as hard links, all else as copies) and starts a process for it (run_upload.py). One pass is under way at a time;
    what comes meanwhile waits for the next. Whatever goes wrong is said once, and never stops the run.

    Args:
        directory: the run's directory.
        to: s3://bucket/prefix; the run goes to <to>/<experiment>/<name>.
        experiment: name of the experiment.
        name: name of the run.
    """

    def __init__(self, *, directory: RunDirectory, to: str, experiment: str, name: str) -> None:
        self.directory = directory
        self.to = to
        self.url = run_url(to, experiment, name)
        self.plan: RunPlan | None = None
        self._begun = False
        self._due = False
        self._not_before = 0.0
        self._pass: _Pass | None = None
        self._confirmed: dict[str, Signature] = {}
        self._trouble = ""

    def begin(self, plan: RunPlan | None) -> None:
        """From here on there is a run to upload; with a plan, the first pass starts, which tells wrong keys early."""
        self._begun = True
        self.plan = plan
        if plan is not None:
            with side_product("run.upload"):
                self._start_pass()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The checkpoint of this evaluation is written after this hook; the next step's start is the time."""
        self._due = self._due or trainer.state.fn == "fit"

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """A step that writes a periodic checkpoint makes an upload due, at the start of the next one."""
        self._due = self._due or (self.plan is not None and trainer.global_step in self.plan.save_steps)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """See how the pass under way has ended, and start one that is due."""
        with side_product("run.upload"):
            if self._pass is not None and self._pass.process.poll() is not None:
                self._end_pass()
            is_time = self._begun and self._due and self._pass is None and time.monotonic() >= self._not_before
            if is_time and not any(isinstance(e, RunCheckpoints) and e.is_writing for e in trainer.callbacks):  # type: ignore[attr-defined]
                self._start_pass()

    def _start_pass(self) -> None:
        self._due = False
        snapshot = self.directory.upload_snapshot
        try:
            shutil.rmtree(snapshot, ignore_errors=True)  # of a run that was killed
            changed = take_snapshot(self.directory, self._confirmed)
            if changed:
                self._pass = _Pass(self.directory.path, snapshot, self.url, changed)
        except (OSError, StorageError) as error:  # a full disk, for one
            shutil.rmtree(snapshot, ignore_errors=True)
            self._say_trouble(str(error), type(error).__name__)

    def _end_pass(self, *, stopped: bool = False) -> None:
        assert self._pass is not None
        ended, self._pass = self._pass, None
        shutil.rmtree(self.directory.upload_snapshot, ignore_errors=True)
        answer = ended.answer()
        self._not_before = time.monotonic() + REST * (time.monotonic() - ended.begin)
        self._confirmed |= {name: ended.files[name] for name in answer.files}
        if stopped:
            return
        if answer.error:
            self._due = True
            self._say_trouble(answer.error, answer.kind)
        elif self._trouble:
            self._trouble = ""
            say(f"run.upload: {self.url} takes files again")

    def _say_trouble(self, error: str, kind: str) -> None:
        if kind != self._trouble:
            say(f"run.upload: {error}\n  training goes on; what is missing is sent after a later evaluation, or last")
        self._trouble = kind

    def finish(self) -> None:
        """Upload everything; called when the last file of the run is written. Nothing that goes wrong is raised."""
        if not self._begun:
            return
        try:
            if self._pass is not None:
                self._end_pass(stopped=self._pass.stop())
            shutil.rmtree(self.directory.upload_snapshot, ignore_errors=True)
            self._upload_all()
        except Exception as error:
            say(f"run.upload: {type(error).__name__}: {error}; upload later with\n  {self._retry()}")

    def _upload_all(self) -> None:
        files = signatures(self.directory)
        size = sum(signature.size for signature in files.values())
        say(f"uploading {len(files)} files ({size / 1e6:,.1f} MB) to {self.url}; Ctrl-C leaves them here")
        last = _Pass(self.directory.path, self.directory.path, self.url, files)
        error = ""
        try:
            last.process.wait()
        except KeyboardInterrupt:
            last.stop()
            error = "stopped by Ctrl-C"
        answer = last.answer()
        error = error or answer.error
        if not error:
            say(f"uploaded  {self.url}: {report_text(len(answer.files), answer.num_sent, answer.sent_bytes)}")
            return
        there = set(answer.files) | {name for name in files if self._confirmed.get(name) == files[name]}
        missing = [name for name in files if name not in there]
        names = ", ".join(missing[:NUM_NAMES]) + (
            f" and {len(missing) - NUM_NAMES} more" if missing[NUM_NAMES:] else ""
        )
        say(
            f"NOT UPLOADED: {error}\n"
            f"  the run is whole in {self.directory.path}; known to be at {self.url}:\n"
            f"  {len(there)} of {len(files)} files{f', not {names}' if missing else ''}\n"
            f"  go on with\n  {self._retry()}"
        )

    def _retry(self) -> str:
        return retry_command(self.directory.path, self.to)


class _Answer(NamedTuple):
    files: list[str]
    error: str
    kind: str
    num_sent: int
    sent_bytes: int


class _Pass:
    """A process that uploads a folder."""

    def __init__(self, run: Path, folder: Path, url: str, files: Mapping[str, Signature]) -> None:
        self.begin = time.monotonic()
        self.files = files
        # a file and not a pipe, which would fill up: nobody reads before the end
        self._output: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        in_background = run != folder
        arguments = [str(run.resolve()), str(folder.resolve()), url, str(os.getpid())]
        self.process = subprocess.Popen(  # noqa: S603 (this program)
            [sys.executable, "-m", "lightning_apps.run_files.upload", *arguments],
            cwd=PACKAGE.parent,  # where this package is, whatever folder the run was started in
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.DEVNULL if in_background else None,
            start_new_session=True,  # Ctrl-C and the end of the terminal are for the training
        )

    def stop(self) -> bool:
        """End it now, if it has not ended; what it has not finished is sent by the next."""
        if self.process.poll() is not None:
            return False
        self.process.terminate()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return True

    def answer(self) -> _Answer:
        """What it said, once it has ended."""
        self._output.seek(0)
        lines: list[dict[str, Any]] = []
        for line in self._output:
            with contextlib.suppress(ValueError):  # cut off in the middle of a line
                lines.append(json.loads(line))
        self._output.close()
        files = [line["file"] for line in lines if "file" in line]
        last = lines[-1] if lines else {}
        if "num_sent" in last:
            return _Answer(files, "", "", last["num_sent"], last["sent_bytes"])
        error = last.get("error", f"the upload process ended with exit code {self.process.returncode}")
        return _Answer(files, error, last.get("kind", "process"), 0, 0)


def signatures(directory: RunDirectory) -> dict[str, Signature]:
    """The files of a run that are uploaded, and what changes when they do."""
    found = {}
    for name, path in folder_files(directory.path, is_left_out).items():
        with contextlib.suppress(FileNotFoundError):  # a logger's, replaced this moment
            stat = path.stat()
            found[name] = Signature(stat.st_size, stat.st_mtime_ns, stat.st_ino)
    return found


def take_snapshot(directory: RunDirectory, known: Mapping[str, Signature]) -> dict[str, Signature]:
    """Copy the files that differ from `known` to the snapshot folder; returns their signatures.

    Checkpoints are replaced as whole files, so that a hard link keeps the one that is here now. Other files grow or
    are rewritten in place.
    """
    changed = {name: signature for name, signature in signatures(directory).items() if known.get(name) != signature}
    for name in changed:
        source, target = directory.path / name, directory.upload_snapshot / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if ".ckpt" in (source.suffix, source.parent.suffix) and not source.is_symlink():
            with contextlib.suppress(OSError):  # a file system without hard links
                target.hardlink_to(source)
                continue
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(source, target)
    return changed
