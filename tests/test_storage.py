"""Folders in an object store, against a real S3 server that is killed in the middle of things."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.file_digest import file_digest
from datamodules.object_store import PATIENCE_VARIABLE, ObjectStore, bad_name
from datamodules.storage import (
    StorageError,
    StorageUnavailableError,
    TransferOptions,
    download_folder,
    is_remote,
    join_url,
    list_files,
    open_file,
    remote_state,
    split_url,
    upload_folder,
)
from datamodules.storage_marker import MarkedFile, marker_text, read_marker
from datamodules.storage_upload import folder_files
from tests.s3_server import BUCKET, KEY, SECRET

URL = f"s3://{BUCKET}/some/prefix"
MIB = 1 << 20
PART = 200_000  # rclone takes parts of any size; AWS would want 5 MiB
LARGE = 2 * PART + 17
QUICK = TransferOptions(patience_s=16.0, attempts=2, first_delay_s=0.01, part_bytes=PART, threads=1)
PATIENT = TransferOptions(patience_s=16.0, attempts=3, first_delay_s=0.01, part_bytes=PART, threads=4)


class Hook:
    """Stands in for tqdm: calls `act` at the n-th move of the bar with this description."""

    def __init__(self, description, moves, act):
        self.description, self.moves, self.act = description, moves, act
        self.current, self.seen = "", []

    def __call__(self, *, total, desc, **_):
        self.current = desc
        return self

    def update(self, num_bytes):
        if self.current == self.description:
            self.seen.append(num_bytes)
            if len(self.seen) == self.moves:
                self.act()

    def close(self):
        pass


@pytest.fixture
def folder(tmp_path):
    """Small files, an empty one, odd names, and one of three parts."""
    root = tmp_path / "local"
    (root / "checkpoints").mkdir(parents=True)
    (root / "config.yaml").write_text("a: 1\n")
    (root / "empty").write_bytes(b"")
    (root / "metrics,lr=1e-3 [é]+.csv").write_text("step\n1\n")
    (root / "checkpoints" / "step=00000002.ckpt").write_bytes(os.urandom(3_000))
    (root / "tokens.bin").write_bytes(os.urandom(LARGE))
    return root


def contents(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != "COMPLETE"
    }


def marker_of(s3, prefix="some/prefix"):
    return s3.path(f"{prefix}/COMPLETE")


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


@pytest.mark.parametrize("moves", [1, 6])  # after the first file; after two of the three parts of the large one
def test_a_server_killed_in_the_middle_of_an_upload(moves, s3, folder, tmp_path):
    hook = Hook("uploading", moves, s3.stop)
    with pytest.raises(StorageUnavailableError, match=r"127\.0\.0\.1:\d+ cannot be reached .*AWS_ENDPOINT_URL"):
        upload_folder(folder, URL, progress=hook, options=QUICK)
    s3.start()
    assert not marker_of(s3).exists()
    assert remote_state(URL) == "incomplete"
    with pytest.raises(StorageError, match=r"is incomplete: it has no COMPLETE.*upload it again"):
        download_folder(URL, tmp_path / "copy", options=QUICK)
    assert not (tmp_path / "copy").exists()
    arrived = [key for key in s3.objects() if key != "some/prefix/INCOMPLETE"]
    assert len(arrived) == min(moves, 4)
    inodes = {key: s3.path(key).stat().st_ino for key in arrived}
    report = upload_folder(folder, URL, options=QUICK)
    assert sorted(report.kept) == sorted(key.removeprefix("some/prefix/") for key in arrived)
    assert {key: s3.path(key).stat().st_ino for key in arrived} == inodes
    assert remote_state(URL) == "complete"
    assert contents(download_folder(URL, tmp_path / "copy", options=QUICK)) == contents(folder)


def test_a_short_break_is_ridden_out(s3, folder, tmp_path):
    def restart():
        s3.stop()
        s3.start()

    said = []
    patient = TransferOptions(patience_s=20.0, attempts=8, first_delay_s=0.05, part_bytes=PART, threads=1)
    hook = Hook("uploading", 5, restart)  # the server forgets the first part of the large file
    report = upload_folder(folder, URL, progress=hook, report=said.append, options=patient)
    assert sorted(report.sent) == sorted(contents(folder))
    hook = Hook("downloading", 3, restart)
    assert contents(download_folder(URL, tmp_path / "copy", progress=hook, options=patient)) == contents(folder)


KILLED_UPLOAD = """
import os, sys
from pathlib import Path
from datamodules.storage import TransferOptions, upload_folder
from tests.test_storage import Hook, QUICK
upload_folder(Path(sys.argv[1]), sys.argv[2], progress=Hook("uploading", 6, lambda: os._exit(9)), options=QUICK)
"""


def test_a_killed_client_resumes_in_the_middle_of_a_large_file(s3, folder):
    done = subprocess.run([sys.executable, "-c", KILLED_UPLOAD, str(folder), URL], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    report = upload_folder(folder, URL, options=QUICK)
    assert report.sent == ["tokens.bin"]
    assert report.sent_bytes == 17  # two parts of three were there
    assert s3.path("some/prefix/tokens.bin").read_bytes() == (folder / "tokens.bin").read_bytes()


def test_parts_of_another_content_are_not_used(s3, folder):
    done = subprocess.run([sys.executable, "-c", KILLED_UPLOAD, str(folder), URL], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    (folder / "tokens.bin").write_bytes(os.urandom(LARGE))
    assert upload_folder(folder, URL, options=QUICK).sent_bytes == LARGE
    assert s3.path("some/prefix/tokens.bin").read_bytes() == (folder / "tokens.bin").read_bytes()


@pytest.mark.parametrize("moves", [1, 5])
def test_a_server_killed_in_the_middle_of_a_download(moves, s3, folder, tmp_path):
    upload_folder(folder, URL, options=QUICK)
    hook = Hook("downloading", moves, s3.stop)
    with pytest.raises(StorageUnavailableError, match="cannot be reached"):
        download_folder(URL, tmp_path / "copy", progress=hook, options=QUICK)
    assert not (tmp_path / "copy").exists()
    (part,) = tmp_path.glob(".copy.*.part")
    assert not (part / "COMPLETE").exists()
    s3.start()
    hook = Hook("downloading", 0, None)
    download_folder(URL, tmp_path / "copy", progress=hook, options=QUICK)
    assert contents(tmp_path / "copy") == contents(folder)
    assert not part.exists()
    assert sum(hook.seen) < sum(map(len, contents(folder).values()))


def test_a_killed_download_goes_on_inside_a_large_file(s3, folder, tmp_path):
    upload_folder(folder, URL, options=QUICK)
    code = KILLED_UPLOAD.replace("upload_folder", "download_folder").replace(
        '(Path(sys.argv[1]), sys.argv[2], progress=Hook("uploading", 6',
        '(sys.argv[2], Path(sys.argv[1]), progress=Hook("downloading", 5',
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "copy"), URL], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    assert not (tmp_path / "copy").exists()
    hook = Hook("downloading", 0, None)
    download_folder(URL, tmp_path / "copy", progress=hook, options=QUICK)
    assert contents(tmp_path / "copy") == contents(folder)
    assert sum(hook.seen) <= PART + 17 + 16384  # one of three parts was there, but for a buffer or so


def test_a_re_upload_is_not_readable_while_it_is_under_way(s3, folder, tmp_path):
    upload_folder(folder, URL, options=QUICK)
    (folder / "config.yaml").write_text("a: 2\n")
    (folder / "empty").write_text("no more")
    states = []

    def look():
        states.append((remote_state(URL), marker_of(s3).exists()))
        with pytest.raises(StorageError, match="incomplete"):
            download_folder(URL, tmp_path / "copy", options=QUICK)

    upload_folder(folder, URL, progress=Hook("uploading", 1, look), options=QUICK)
    assert states == [("incomplete", False)]
    assert remote_state(URL) == "complete"


def test_a_re_upload_that_fails_leaves_no_marker(s3, folder, tmp_path):
    upload_folder(folder, URL, options=QUICK)
    (folder / "config.yaml").write_text("a: 2\n")
    with pytest.raises(StorageUnavailableError):
        upload_folder(folder, URL, progress=Hook("uploading", 1, s3.stop), options=QUICK)
    s3.start()
    assert remote_state(URL) == "incomplete"


def test_what_changes_while_it_is_downloaded_is_refused(s3, folder, tmp_path):
    upload_folder(folder, URL, options=QUICK)

    def replace():
        (folder / "tokens.bin").write_bytes(os.urandom(LARGE))
        upload_folder(folder, URL, options=QUICK)

    with pytest.raises(StorageError, match=r"tokens\.bin (is damaged|changed)"):
        download_folder(URL, tmp_path / "copy", progress=Hook("downloading", 1, replace), options=QUICK)
    assert not (tmp_path / "copy").exists()
    assert contents(download_folder(URL, tmp_path / "copy", options=QUICK)) == contents(folder)
    assert not list(tmp_path.glob(".copy.*.part"))  # that of the earlier state is gone


def test_a_file_that_changes_while_it_is_uploaded_is_refused(s3, folder):
    def rewrite():
        (folder / "tokens.bin").write_bytes(b"y" * LARGE)

    with pytest.raises(StorageError, match=r"tokens\.bin changed while it was uploaded"):
        upload_folder(folder, URL, progress=Hook("uploading", 1, rewrite), options=QUICK)
    assert remote_state(URL) == "incomplete"


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        ("truncate", "tokens.bin"),
        ("flip", "tokens.bin"),
        ("flip", "checkpoints/step=00000002.ckpt"),
        ("delete", "checkpoints/step=00000002.ckpt"),
    ],
)
def test_a_damaged_object_is_refused_by_name_and_healed_by_uploading_again(harm, name, s3, folder, tmp_path):
    upload_folder(folder, URL, options=QUICK)
    path = s3.path(f"some/prefix/{name}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "delete":
        path.unlink()
    else:
        path.write_bytes(content if harm == "flip" else content[:-1])
    expected = {"flip": "is damaged", "truncate": "bytes instead of", "delete": "is missing"}[harm]
    with pytest.raises(StorageError, match=rf"{URL}/{name} .*{expected}|{URL}/{name} {expected}"):
        download_folder(URL, tmp_path / "copy", options=QUICK)
    assert not (tmp_path / "copy").exists()
    assert upload_folder(folder, URL, options=QUICK).sent == [name]
    assert contents(download_folder(URL, tmp_path / "copy", options=QUICK)) == contents(folder)


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
        "import sys; from pathlib import Path; from datamodules.storage import download_folder\n"
        "download_folder(sys.argv[1], Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, URL, str(tmp_path / "copy")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate(timeout=60)[1] for process in processes] == [b"", b"", b""]
    assert contents(tmp_path / "copy") == contents(folder)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, r"refuses the credentials \(SignatureDoesNotMatch\).*AWS_SECRET"),
        ({"AWS_ACCESS_KEY_ID": "AKIANOBODY"}, r"refuses the credentials \(InvalidAccessKeyId\): check AWS_ACCESS"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "no credentials .*: set AWS_ACCESS_KEY_ID"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "no credentials .*: set AWS_ACCESS_KEY_ID"),
        ({"AWS_PROFILE": "nobody"}, "no credentials .*AWS_PROFILE"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, r"http://127\.0\.0\.1:1 cannot be reached .*AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "http://me:pa55@127.0.0.1:1"}, r"http://127\.0\.0\.1:1 cannot be reached"),
        ({"AWS_ENDPOINT_URL": "nonsense"}, "AWS_ENDPOINT_URL is no URL"),
    ],
)
def test_wrong_settings_are_one_clear_line_without_secrets(changes, expected, s3, folder, monkeypatch):
    for name, value in changes.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=expected) as failed:
        upload_folder(folder, URL, options=QUICK)
    message = str(failed.value)
    assert "\n" not in message
    for secret in (SECRET, KEY, "wrong-secret", "AKIANOBODY", "pa55"):
        assert secret not in message
    assert s3.objects() == []


def test_every_function_says_so(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODY")
    for call in (
        lambda: download_folder(URL, tmp_path / "copy", options=QUICK),
        lambda: remote_state(URL, options=QUICK),
        lambda: open_file(f"{URL}/train.jsonl", options=QUICK),
        lambda: list_files(URL, options=QUICK),
    ):
        with pytest.raises(StorageError, match="refuses the credentials"):
            call()


def test_a_missing_bucket(s3, folder, tmp_path):
    for call in (
        lambda: upload_folder(folder, "s3://buckte/a", options=QUICK),
        lambda: download_folder("s3://buckte/a", tmp_path / "copy", options=QUICK),
        lambda: remote_state("s3://buckte/a", options=QUICK),
    ):
        with pytest.raises(
            StorageError, match=r"there is no bucket 'buckte' at http://127.*make it, or correct the URL"
        ):
            call()


def test_a_server_that_accepts_and_says_nothing_is_noticed(s3, folder, monkeypatch):
    """Backed by a socket that nobody reads: the connection stands, and the body of a request gets stuck in it."""
    with socket.socket() as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        options = TransferOptions(patience_s=1.6, attempts=1)
        begin = time.monotonic()
        with pytest.raises(StorageUnavailableError, match=r"broke off|was silent"):
            remote_state(URL, options=options)
        with (
            ObjectStore(BUCKET, options) as store,
            pytest.raises(StorageUnavailableError, match=r"was silent for 0\.8 s"),
        ):
            store.put("large", bytes(16 * MIB))
        assert time.monotonic() - begin < 15  # 40 s of patience: a fraction of a minute


def test_patience_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv(PATIENCE_VARIABLE, "12.5")
    assert TransferOptions.from_environment() == TransferOptions(patience_s=12.5)
    for wrong in ("soon", "-1", "0", "inf", "nan"):
        monkeypatch.setenv(PATIENCE_VARIABLE, wrong)
        with pytest.raises(StorageError, match=f"{PATIENCE_VARIABLE}='{wrong}'"):
            TransferOptions.from_environment()


@pytest.mark.parametrize(
    ("marker", "expected"),
    [
        (b"", "not a list of files"),
        (b"[]", "not a list of files"),
        (b'{"format": 2, "files": {}}', "not a list of files"),
        (b'{"format": 1, "files": {"a": 3}}', "not a list of files"),
        (b"\xff\xfe", "not a list of files"),
        ({"../../.bashrc": (1, "0" * 64)}, "'../../.bashrc', whose name has a part"),
        ({"/etc/passwd": (1, "0" * 64)}, "'/etc/passwd', whose name has a part"),
        ({"a/./b": (1, "0" * 64)}, "has a part"),
        ({"a\\..\\b": (1, "0" * 64)}, "backslash"),
        ({"a\n": (1, "0" * 64)}, "control character"),
        ({"COMPLETE": (1, "0" * 64)}, "reserved"),
        ({"a": (1, "0" * 64), "a/b": (1, "0" * 64)}, "'a/b', whose name is that of a file in a file"),
        ({"a": (-1, "0" * 64)}, "no size"),
        ({"a": (True, "0" * 64)}, "no size"),
        ({"a": ("1", "0" * 64)}, "no size"),
        ({"a": (1, "0" * 63)}, "no SHA-256"),
        ({"a": (1, 5)}, "no SHA-256"),
    ],
)
def test_a_marker_is_not_trusted(marker, expected):
    if isinstance(marker, dict):
        entries = {name: {"size": size, "sha256": sha256} for name, (size, sha256) in marker.items()}
        marker = json.dumps({"format": 1, "files": entries}).encode()
    with pytest.raises(StorageError) as refused:
        read_marker(marker, URL)
    assert expected in str(refused.value)


def test_a_marker_that_leads_out_of_the_folder_writes_nothing(s3, tmp_path):
    content = b"of somebody else"
    s3.path("some/prefix").mkdir(parents=True)
    s3.path("some/evil").write_bytes(content)
    marker = marker_text({"../evil": MarkedFile(len(content), hashlib.sha256(content).hexdigest())})
    marker_of(s3).write_text(marker)
    with pytest.raises(StorageError, match=r"lists '\.\./evil', whose name has a part"):
        download_folder(URL, tmp_path / "inner" / "copy", options=QUICK)
    assert not (tmp_path / "inner").exists()


def test_uploading_over_a_broken_marker_heals_it(s3, folder):
    marker_of(s3).parent.mkdir(parents=True)
    marker_of(s3).write_bytes(b"{broken")
    s3.path("some/prefix/notes.txt").write_text("somebody else's")
    upload_folder(folder, URL, options=QUICK)
    assert "tokens.bin" in read_marker(marker_of(s3).read_bytes(), URL)
    assert s3.path("some/prefix/notes.txt").exists()


@given(st.text(max_size=30))
def test_names_that_pass_stay_below_their_folder(name):
    if bad_name(name) is None:
        assert os.path.normpath(f"/root/of/all/{name}") == f"/root/of/all/{name}"


@given(st.dictionaries(st.sampled_from(["a", "b/c", "b/d é", "e[1]=2"]), st.integers(0, 10**15)))
def test_markers_round_trip(sizes):
    files = {name: MarkedFile(size, hashlib.sha256(name.encode()).hexdigest()) for name, size in sizes.items()}
    assert read_marker(marker_text(files).encode(), URL) == files


def test_urls():
    assert split_url("s3://bucket/a/b=1,[x]/") == ("bucket", "a/b=1,[x]")
    assert split_url("s3://bucket") == ("bucket", "")
    assert join_url("s3://bucket/a/", "location", "lr=1") == "s3://bucket/a/location/lr=1"
    assert join_url("s3://bucket", "x") == "s3://bucket/x"
    assert is_remote("s3://bucket/a")
    assert not is_remote("outputs/location/default")
    for wrong in ("http://host/a", "outputs/a", "s3://", "s3:///a", "s3://b", "s3://bucket/../a", "s3://bucket/a//b"):
        with pytest.raises(StorageError, match=r"s3://bucket/prefix|the prefix has a part"):
            split_url(wrong)
    for secret in ("s3://me:secret@bucket/a", "s3://bucket/a?X-Amz-Signature=secret", "s3://bucket/a#secret"):
        with pytest.raises(StorageError) as refused:
            split_url(secret)
        assert "secret" not in str(refused.value).replace("AWS_SECRET", "")
    with pytest.raises(StorageError, match="has a part"):
        join_url("s3://bucket", "..")


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
    (s3.path("corpus") / "deeper").mkdir()
    (s3.path("corpus") / "deeper" / "x").write_text("x")
    for place in (str(source), f"s3://{BUCKET}/corpus"):
        assert list_files(place) == ["test.parquet", "train.jsonl"]
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


@pytest.mark.parametrize(("was_joined", "code"), [(True, "NoSuchUpload"), (False, "InvalidPart")])
def test_a_server_that_loses_the_answer_or_the_parts(was_joined, code, s3, folder, monkeypatch):
    finish, answers = ObjectStore.finish_parts, []

    def lose(self, *arguments):
        answers.append(arguments)
        if was_joined or len(answers) > 1:
            finish(self, *arguments)
        if len(answers) == 1:
            raise StorageError("the server knows no such parts", code)
        return "of another kind"

    monkeypatch.setattr(ObjectStore, "finish_parts", lose)
    hasty = TransferOptions(patience_s=8.0, attempts=2, first_delay_s=0.01, part_bytes=PART, threads=2)
    report = upload_folder(folder, URL, options=hasty)
    assert len(answers) == (1 if was_joined else 2)
    assert report.sent_bytes == sum(map(len, contents(folder).values()))
    assert s3.path("some/prefix/tokens.bin").read_bytes() == (folder / "tokens.bin").read_bytes()


def test_a_server_that_always_loses_parts_is_given_up(s3, folder, monkeypatch):
    def lose(self, *arguments):
        raise StorageError("the server knows no such parts", "InvalidPart")

    monkeypatch.setattr(ObjectStore, "finish_parts", lose)
    with pytest.raises(StorageUnavailableError, match=r"tokens\.bin: the server loses parts"):
        upload_folder(folder, URL, options=TransferOptions(patience_s=4.0, first_delay_s=0.1, part_bytes=PART))
    assert remote_state(URL) == "incomplete"


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_bytes(b"a: 3"), None])
def test_what_did_not_stay_on_the_server_is_noticed_before_the_marker(harm, s3, folder):
    def spoil():
        path = s3.path("some/prefix/config.yaml")
        harm(path) if harm else path.write_bytes(b"a: 3\n")  # of the same size

    with pytest.raises(StorageError, match=rf"{URL}/config\.yaml (is missing|has 4 bytes|holds something else)"):
        upload_folder(folder, URL, progress=Hook("uploading", 6, spoil), options=QUICK)
    assert remote_state(URL) == "incomplete"
    assert upload_folder(folder, URL, options=QUICK).sent == ["config.yaml"]


@pytest.mark.slow
def test_round_trip_at_the_sizes_of_the_defaults(s3, tmp_path):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "tokens.bin").write_bytes(os.urandom(100_000_001))  # six parts
    (tmp_path / "local" / "index").write_bytes(os.urandom(16 * MIB))  # one part, to the byte
    report = upload_folder(tmp_path / "local", URL)
    assert report.sent_bytes == 100_000_001 + 16 * MIB
    assert upload_folder(tmp_path / "local", URL).sent == []
    assert contents(download_folder(URL, tmp_path / "copy")) == contents(tmp_path / "local")
