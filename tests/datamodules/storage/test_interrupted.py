"""Transfers that something ends in the middle: a real S3 server that is killed, a client that is, files that change."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from datamodules.storage.folders import (
    StorageError,
    StorageUnavailableError,
    TransferOptions,
    download_folder,
    remote_state,
    upload_folder,
)
from datamodules.storage.object_store import ObjectStore
from tests.fakes.s3_server import BUCKET, StallingProxy
from tests.tiny.storage_parts import LARGE, MIB, PART, QUICK, URL, Hook, contents, marker_of


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
    patient = TransferOptions(
        patience_s=20.0, attempts=8, first_delay_s=0.05, part_bytes=PART, threads=1, joining_s=0.1
    )
    hook = Hook("uploading", 5, restart)  # the server forgets the first part of the large file
    report = upload_folder(folder, URL, progress=hook, report=said.append, options=patient)
    assert sorted(report.sent) == sorted(contents(folder))
    hook = Hook("downloading", 3, restart)
    assert contents(download_folder(URL, tmp_path / "copy", progress=hook, options=patient)) == contents(folder)


KILLED_UPLOAD = """
import os, sys
from pathlib import Path
from datamodules.storage.folders import TransferOptions, upload_folder
from tests.tiny.storage_parts import QUICK, Hook
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


def test_a_server_that_accepts_and_says_nothing_is_noticed(s3, folder, monkeypatch):
    """Backed by a socket that nobody reads: the connection stands, and the body of a request gets stuck in it."""
    with socket.socket() as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        options = TransferOptions(patience_s=1.6, attempts=1)
        begin = time.monotonic()
        with pytest.raises(StorageUnavailableError, match="broke off"):
            remote_state(URL, options=options)
        with (
            ObjectStore(BUCKET, options) as store,
            pytest.raises(StorageUnavailableError, match=r"cannot be reached or broke off"),
        ):
            store.put("large", bytes(16 * MIB))
        assert time.monotonic() - begin < 60  # on a busy machine too; such a connection would stand for hours


def test_ctrl_c_ends_an_upload_that_hangs(s3, tmp_path, monkeypatch):
    proxy = StallingProxy(s3, 1_000_000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "tokens.bin").write_bytes(bytes(20_000_000))

    def interrupt():
        proxy.reached.wait()
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    begin = time.monotonic()
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            upload_folder(tmp_path / "large", URL, options=TransferOptions(patience_s=10_000, part_bytes=4_000_000))
    finally:
        signal.signal(signal.SIGINT, before)
        proxy.close()
    assert time.monotonic() - begin < 600  # the connection itself would hang for an hour


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
    hasty = TransferOptions(patience_s=8.0, attempts=2, first_delay_s=0.01, part_bytes=PART, threads=2, joining_s=0.1)
    report = upload_folder(folder, URL, options=hasty)
    assert len(answers) == (1 if was_joined else 2)
    assert report.sent_bytes == sum(map(len, contents(folder).values()))
    assert s3.path("some/prefix/tokens.bin").read_bytes() == (folder / "tokens.bin").read_bytes()


def test_a_server_that_always_loses_parts_is_given_up(s3, folder, monkeypatch):
    def lose(self, *arguments):
        raise StorageError("the server knows no such parts", "InvalidPart")

    monkeypatch.setattr(ObjectStore, "finish_parts", lose)
    with pytest.raises(StorageUnavailableError, match=r"tokens\.bin: the server loses parts"):
        upload_folder(folder, URL, options=TransferOptions(first_delay_s=0.01, part_bytes=PART, joining_s=0.05))
    assert remote_state(URL) == "incomplete"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "is missing"), (b"a: 3", "has 4 bytes instead of 5"), (b"a: 3\n", "holds something else")],
    ids=["deleted", "shorter", "other"],
)
def test_what_did_not_stay_on_the_server_is_noticed_before_the_marker(content, reason, s3, folder):
    def spoil():
        # by way of the server: of a file changed behind its back it lists what it has read 10 ms ago
        with ObjectStore(BUCKET, QUICK) as somebody_else:
            if content is None:
                somebody_else.delete("some/prefix/config.yaml")
            else:
                somebody_else.put("some/prefix/config.yaml", content)

    with pytest.raises(StorageError, match=rf"{URL}/config\.yaml {reason}"):
        upload_folder(folder, URL, progress=Hook("uploading", 6, spoil), options=QUICK)
    assert remote_state(URL) == "incomplete"
    assert upload_folder(folder, URL, options=QUICK).sent == ["config.yaml"]
