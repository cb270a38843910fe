"""What is refused: damaged objects, wrong settings, markers and names that lead elsewhere."""

import hashlib
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.storage.folders import (
    StorageError,
    TransferOptions,
    download_folder,
    is_remote,
    join_url,
    open_file,
    remote_state,
    split_url,
    upload_folder,
)
from datamodules.storage.marker import MarkedFile, marker_text, read_marker
from datamodules.storage.object_store import PATIENCE_VARIABLE, bad_name
from tests.fakes.s3_server import KEY, SECRET
from tests.tiny.storage_parts import QUICK, URL, contents, marker_of


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
