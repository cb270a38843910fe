"""Folders in an object store, on a real S3 server."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.storage.file_digest import file_digest
from datamodules.storage.folders import (
    StorageError,
    StorageUnavailableError,
    download_folder,
    open_file,
    remote_state,
    upload_folder,
)
from datamodules.storage.upload import folder_files
from tests.asserts.patience import PATIENCE_S
from tests.fakes.s3_server import BUCKET
from tests.tiny.storage_parts import MIB, PATIENT, QUICK, URL, Hook, contents, marker_of


def test_round_trip(s3, folder, tmp_path):
    assert remote_state(URL) == "absent"
    with pytest.raises(StorageError, match=rf"{URL}: nothing is there"):
        download_folder(URL, tmp_path / "copy")
    seen = []
    report = upload_folder(folder, URL, options=PATIENT, on_file=seen.append)
    assert sorted(report.sent) == sorted(contents(folder)) == sorted(seen)
    assert report.sent_bytes == sum(map(len, contents(folder).values()))
    assert s3.objects() == sorted(["some/prefix/COMPLETE", *(f"some/prefix/{name}" for name in contents(folder))])
    listed = json.loads(marker_of(s3).read_text())["files"]
    tokens = (folder / "tokens.bin").read_bytes()
    assert listed["tokens.bin"] == {"size": len(tokens), "sha256": hashlib.sha256(tokens).hexdigest()}
    assert remote_state(URL) == "complete"
    assert download_folder(URL, tmp_path / "deep" / "copy", options=PATIENT) == tmp_path / "deep" / "copy"
    assert contents(tmp_path / "deep" / "copy") == contents(folder)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["copy"]


def test_a_second_upload_sends_nothing_and_leaves_the_marker_alone(s3, folder):
    upload_folder(folder, URL, options=QUICK)
    before = {key: s3.path(key).stat().st_ino for key in s3.objects()}
    report = upload_folder(folder, URL, options=QUICK)
    assert (report.sent, report.deleted, report.sent_bytes) == ([], [], 0)
    assert {key: s3.path(key).stat().st_ino for key in s3.objects()} == before


def test_only_what_changed_is_sent_and_only_own_objects_are_deleted(s3, folder, tmp_path):
    upload_folder(folder, URL, options=QUICK)
    s3.path("some/prefix/notes.txt").write_text("somebody else's")
    s3.path("some/other").write_text("a neighbour")
    (folder / "checkpoints" / "step=00000002.ckpt").unlink()
    (folder / "checkpoints" / "step=00000004.ckpt").write_bytes(b"x" * 10)
    report = upload_folder(folder, URL, options=QUICK)
    assert report.sent == ["checkpoints/step=00000004.ckpt"]
    assert report.deleted == ["checkpoints/step=00000002.ckpt"]
    assert s3.path("some/prefix/notes.txt").exists()
    assert s3.path("some/other").exists()
    assert contents(download_folder(URL, tmp_path / "copy", options=QUICK)) == contents(folder)


def test_adding_files_takes_the_marker_away_until_a_complete_upload(s3, folder, tmp_path):
    upload_folder(folder, URL, options=QUICK)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "summary.png").write_bytes(b"png")
    upload_folder(tmp_path / "more", URL, complete=False, options=QUICK)
    assert remote_state(URL) == "incomplete"
    assert "some/prefix/tokens.bin" in s3.objects()
    (folder / "other.png").write_bytes(b"png")
    report = upload_folder(folder, URL, options=QUICK)
    assert report.deleted == ["summary.png"]  # what was added without a marker is known to be its own, too
    assert remote_state(URL) == "complete"
    assert "some/prefix/INCOMPLETE" not in s3.objects()


def test_adding_nothing_new_leaves_the_marker(s3, folder, tmp_path):
    upload_folder(folder, URL, options=QUICK)
    (tmp_path / "more").mkdir()
    shutil.copy(folder / "config.yaml", tmp_path / "more")
    assert upload_folder(tmp_path / "more", URL, complete=False, options=QUICK).kept == ["config.yaml"]
    assert remote_state(URL) == "complete"


def test_a_copy_is_fetched_once_and_told_from_something_else(s3, folder, tmp_path):
    upload_folder(folder, URL, options=QUICK)
    copy = download_folder(URL, tmp_path / "copy", options=QUICK)
    (copy / "evaluations").mkdir()  # a user's own files may lie beside
    hook = Hook("downloading", 0, None)
    download_folder(URL, copy, progress=hook, options=QUICK)
    assert hook.seen == []
    (copy / "config.yaml").write_text("a: 12\n")
    with pytest.raises(StorageError, match=r"config\.yaml is not as it was downloaded; delete"):
        download_folder(URL, copy, options=QUICK)
    (tmp_path / "other").mkdir()
    download_folder(URL, tmp_path / "other", options=QUICK)  # an empty folder is taken
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(StorageError, match="is there already"):
        download_folder(URL, tmp_path / "mine", options=QUICK)
    assert (tmp_path / "mine" / "thesis.tex").exists()


@pytest.mark.slow
def test_processes_that_fetch_the_same_folder_wait_for_each_other(s3, folder, tmp_path):
    upload_folder(folder, URL, options=QUICK)
    code = (
        "import sys; from pathlib import Path; from datamodules.storage.folders import download_folder\n"
        "download_folder(sys.argv[1], Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, URL, str(tmp_path / "copy")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate(timeout=PATIENCE_S)[1] for process in processes] == [b"", b"", b""]
    assert contents(tmp_path / "copy") == contents(folder)


def test_files_of_a_folder(tmp_path):
    root = tmp_path / "root"
    (root / "wandb" / "run-1").mkdir(parents=True)
    (root / "wandb" / "run-1" / "log").write_text("x")
    (root / "wandb" / "latest-run").symlink_to("run-1")
    (root / ".hidden").write_text("x")
    (root / "COMPLETE").write_text("of an earlier download")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "tokens.bin").write_text("12")
    (root / "tokens.bin").symlink_to(tmp_path / "elsewhere" / "tokens.bin")
    assert list(folder_files(root)) == [".hidden", "tokens.bin", "wandb/run-1/log"]
    assert list(folder_files(root, lambda name: name.startswith("."))) == ["tokens.bin", "wandb/run-1/log"]
    (root / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="more is a symlink to a folder elsewhere"):
        folder_files(root)
    assert "more/tokens.bin" not in folder_files(root, lambda name: name == "more")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "a\\b").write_text("x")
    with pytest.raises(StorageError, match="backslash"):
        folder_files(tmp_path / "odd")


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 250, 300])
def test_digests_of_parts(size, tmp_path):
    content = os.urandom(size)
    (tmp_path / "a").write_bytes(content)
    digest = file_digest(tmp_path / "a", 100)
    parts = [content[start : start + 100] for start in range(0, max(size, 1), 100)]
    assert digest.part_md5s == tuple(hashlib.md5(part).digest() for part in parts)
    assert (digest.size, digest.sha256) == (size, hashlib.sha256(content).hexdigest())
    assert digest.is_etag(hashlib.md5(content).hexdigest())
    joined = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in parts)).hexdigest()
    assert digest.is_etag(f"{joined}-{len(parts)}")
    assert not digest.is_etag(joined)


def test_reading_a_source(s3, tmp_path):
    rows = [{"text": f"line {number} é", "label": number % 3} for number in range(20_000)]
    source = tmp_path / "source"
    source.mkdir()
    (source / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), source / "test.parquet")
    shutil.copytree(source, s3.path("corpus"))
    for place in (str(source), f"s3://{BUCKET}/corpus"):
        with open_file(f"{place}/train.jsonl") as file:
            assert [json.loads(line) for line in file] == rows
        with open_file(f"{place}/test.parquet") as file:
            assert pq.ParquetFile(file).read().to_pylist() == rows
    with pytest.raises(StorageError, match=r"corpus/validation\.jsonl: there is no such object"):
        open_file(f"s3://{BUCKET}/corpus/validation.jsonl")
    s3.path("corpus/large").write_bytes(bytes(8 * MIB + 1))
    with open_file(f"s3://{BUCKET}/corpus/large", options=QUICK) as file:
        file.read(8 * MIB)
        s3.stop()
        with pytest.raises(StorageUnavailableError):
            file.read(1)


@pytest.mark.slow
def test_round_trip_at_the_sizes_of_the_defaults(s3, tmp_path):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "tokens.bin").write_bytes(os.urandom(100_000_001))  # six parts
    (tmp_path / "local" / "index").write_bytes(os.urandom(16 * MIB))  # one part, to the byte
    report = upload_folder(tmp_path / "local", URL)
    assert report.sent_bytes == 100_000_001 + 16 * MIB
    assert upload_folder(tmp_path / "local", URL).sent == []
    assert contents(download_folder(URL, tmp_path / "copy")) == contents(tmp_path / "local")
