"""Runs in an object store: where they go, which files go there, and the process that takes them.

While a run goes on, each pass over its files is a process of its own, which runs this module. Training then shares
neither its interpreter lock nor its threads with the network: a hung connection costs it nothing, and forked loader
workers inherit no locks.
"""

import json
import os
import shlex
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datamodules.storage.folder_lock import locked
from datamodules.storage.folders import StorageError, UploadReport, join_url, upload_folder
from lightning_apps.run_files.directory import leads_out

LOWEST_PRIORITY = 19  # for os.nice


def run_url(to: str, experiment: str, name: str) -> str:
    """Where a run goes below `to`: the layout of run.output_root.

    Raises:
        StorageError: `to` is no s3:// URL.
    """
    return join_url(to, experiment, name)


def is_left_out(name: str) -> bool:
    """Whether a file of a run directory stays at home: hidden ones, and those that are being written aside."""
    return name.endswith(".part") or any(part.startswith(".") for part in name.split("/"))


def _stays_home(run: Path, name: str) -> bool:
    """Whether a file is no part of the run, or lies elsewhere: in a stranger's run a link leads to any file here."""
    return is_left_out(name) or leads_out(run / name, run)


def retry_command(run: Path, to: str) -> str:
    """The command that goes on with an upload."""
    return shlex.join(["python", "-m", "lightning_apps.upload", f"run={run}", f"to={to}"])


def upload_run(run: Path, url: str, **options: Any) -> UploadReport:
    """Upload a run directory that nobody writes to.

    Args:
        run: the directory.
        url: where its files go.
        options: further arguments of upload_folder.

    Raises:
        StorageError: as upload_folder does; or another process is uploading the run.
    """
    return _upload(run, run, url, leave_out=partial(_stays_home, run), **options)


def _upload(run: Path, folder: Path, url: str, **options: Any) -> UploadReport:
    try:
        with locked(run, wait=False):
            return upload_folder(folder, url, **options)
    except BlockingIOError as error:
        raise StorageError(f"another process is uploading {run}; wait until it is done") from error


def report_text(num_files: int, num_sent: int, sent_bytes: int) -> str:
    """`14 files, 3 of them sent now (1.23MB)`."""
    return f"{num_files} files, {num_sent} of them sent now ({tqdm.format_sizeof(sent_bytes, 'B')})"


def progress_bar() -> Any:
    """A bar where the output is a terminal, None elsewhere."""
    return partial(tqdm, leave=False) if sys.stderr.isatty() else None


def main(arguments: list[str]) -> None:
    """One pass, for the training process; says in lines of JSON which files are there, and how it ended.

    Args:
        arguments: run directory, folder to upload (the run, or a snapshot of what changed in it), URL, process id of
            the training, after whose death nothing more is sent: another start of the run may be at work by then.
    """
    run, folder, url, parent = Path(arguments[0]), Path(arguments[1]), arguments[2], int(arguments[3])
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    in_background = folder != run
    if in_background:
        os.nice(LOWEST_PRIORITY)
    try:
        report = _upload(
            run,
            folder,
            url,
            complete=not in_background,
            leave_out=None if in_background else partial(_stays_home, run),
            progress=None if in_background else progress_bar(),
            on_file=lambda name: _answer({"file": name}),
        )
    except StorageError as error:
        _answer({"error": str(error), "kind": f"{type(error).__name__} {error.code}"})
    except Exception as error:
        _answer({"error": f"{type(error).__name__}: {error}", "kind": type(error).__name__})
    else:
        _answer({"num_sent": len(report.sent), "sent_bytes": report.sent_bytes})


def _answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
