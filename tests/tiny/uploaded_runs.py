"""What tests of uploaded runs share: a directory that looks like that of a run, and what arrived."""

from pathlib import Path

import yaml

from lightning_apps.run_files.directory import RunDirectory
from tests.fakes.s3_server import BUCKET

TO = f"s3://{BUCKET}/runs"


def small_run(path):
    """A directory that looks like that of a run."""
    directory = RunDirectory(path)
    directory.checkpoints.mkdir(parents=True)
    data = {"cache_root": "/nowhere/cache"}
    config = {
        "experiment": "location",
        "run": {"name": "a", "upload": TO, "cache_root": "/nowhere/cache"},
        "data": data,
    }
    directory.config.write_text(yaml.safe_dump(config))
    directory.metrics.write_text("step\n1\n")
    (directory.checkpoints / "last.ckpt").write_bytes(b"weights of step 1")
    return directory


def uploaded(s3, prefix="runs/location/a"):
    """Content of a run's objects."""
    keys = [key.removeprefix(f"{prefix}/") for key in s3.objects(f"{prefix}/")]
    return {key: s3.path(f"{prefix}/{key}").read_bytes() for key in keys if key != "COMPLETE"}


def local(path):
    """Content of a run's files, but for the hidden ones, which stay at home."""
    files = (entry for entry in Path(path).rglob("*") if entry.is_file() and not entry.name.startswith("."))
    return {entry.relative_to(path).as_posix(): entry.read_bytes() for entry in files}
