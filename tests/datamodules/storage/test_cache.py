"""Prepared data that a crash or a bad disk has damaged are prepared again."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from datamodules.storage.cache import MANIFEST, CacheError, damage, fingerprint, prepared_folder, read_manifest

SETTINGS = {"a": 1}
LARGE = np.arange(1_000_000, dtype=np.int64)  # 8 MB


def write(folder):
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    (folder / "empty").write_bytes(b"")
    np.save(folder / "tokens.npy", LARGE)
    return {"tokens": len(LARGE)}


@pytest.fixture
def prepared(tmp_path):
    return prepared_folder(tmp_path, "x", SETTINGS, write)


def cut(path, keep):
    os.truncate(path, keep)


def zero(path, start, size):
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\0" * size)


DAMAGES = {
    "cut": (lambda folder: cut(folder / "tokens.npy", 5_000_000), "tokens.npy has 5,000,000 bytes instead of"),
    "emptied": (lambda folder: cut(folder / "tokens.npy", 0), "tokens.npy has 0 bytes"),
    "zeroed": (lambda folder: zero(folder / "tokens.npy", 0, 8_000_128), "tokens.npy does not hold what was written"),
    "tail zeroed": (lambda folder: zero(folder / "tokens.npy", 7_999_000, 1_128), "tokens.npy does not hold"),
    "zeros within": (lambda folder: zero(folder / "tokens.npy", 4_000_000, 200_000), "tokens.npy does not hold"),
    "one bit of a small file": (
        lambda folder: (folder / "tokenizer" / "vocab.txt").write_text("a\nc\n"),
        "tokenizer/vocab.txt does not hold",
    ),
    "missing": (lambda folder: (folder / "empty").unlink(), "empty is missing"),
    "manifest half": (lambda folder: cut(folder / MANIFEST, 40), "manifest.json cannot be read"),
    "manifest empty": (lambda folder: cut(folder / MANIFEST, 0), "manifest.json cannot be read"),
    "manifest zeroed": (lambda folder: (folder / MANIFEST).write_bytes(b"\0" * 300), "manifest.json cannot be read"),
    "manifest a list": (lambda folder: (folder / MANIFEST).write_text("[]"), "manifest.json cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_data_are_prepared_again(kind, prepared, tmp_path, capsys):
    assert damage(prepared) is None
    harm, said = DAMAGES[kind]
    harm(prepared)
    assert said in damage(prepared)
    assert prepared_folder(tmp_path, "x", SETTINGS, write) == prepared
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1
    assert line.endswith("is prepared again\n")
    assert damage(prepared) is None
    assert np.array_equal(np.load(prepared / "tokens.npy"), LARGE)
    assert [path.name for path in prepared.parent.iterdir()] == [prepared.name]  # nothing of it stays


def test_whole_data_are_not_prepared_again(prepared, tmp_path):
    (prepared / ".verified.json").write_text("a note of those who use it")

    def never(folder):
        raise AssertionError

    assert prepared_folder(tmp_path, "x", SETTINGS, never) == prepared


def test_data_without_stamps_are_taken_as_they_are(prepared):
    manifest = json.loads((prepared / MANIFEST).read_text())
    del manifest["files"]
    (prepared / MANIFEST).write_text(json.dumps(manifest))
    assert damage(prepared) is None
    assert read_manifest(prepared)["facts"] == {"tokens": 1_000_000}


@pytest.mark.parametrize("place", ["/proc/nothing", "/dev/null/cache"])
def test_a_cache_that_cannot_be_written_is_one_line(place):
    with pytest.raises(
        CacheError, match=rf"run\.cache_root={place}: .* cannot be used \(.*run\.cache_root=\.\.\."
    ) as error:
        prepared_folder(Path(place), "x", SETTINGS, write)
    assert "\n" not in str(error.value)


def test_a_cache_that_belongs_to_somebody_else(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    (tmp_path / "x").chmod(0o500)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may write everywhere
    with pytest.raises(CacheError, match=r"x cannot be used \(Permission denied\)"):
        prepared_folder(tmp_path, "x", SETTINGS, write)


def test_a_full_disk_while_data_are_prepared(tmp_path):
    def fill(folder):
        with open("/dev/full", "wb", buffering=0) as file:  # noqa: PTH123
            file.write(b"x")

    with pytest.raises(CacheError, match="No space left on device"):
        prepared_folder(tmp_path, "x", SETTINGS, fill)
    assert list(tmp_path.rglob("*")) == []

    def fails(folder):
        raise FileNotFoundError(2, "No such file", "their.csv")

    with pytest.raises(FileNotFoundError, match=r"their\.csv"):  # not the cache's fault
        prepared_folder(tmp_path, "x", SETTINGS, fails)


def test_others_may_read_what_was_prepared(tmp_path):
    before = os.umask(0o022)
    try:
        folder = prepared_folder(tmp_path, "x", SETTINGS, write)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o755


def test_who_waits_for_another_process_says_so(tmp_path, capsys):
    fcntl = pytest.importorskip("fcntl")
    at = tmp_path / "x" / f".{fingerprint(SETTINGS)}.lock"
    at.parent.mkdir()
    with at.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = threading.Thread(target=prepared_folder, args=(tmp_path, "x", SETTINGS, write))
        waiting.start()
        said = ""
        while not said and waiting.is_alive():
            said = capsys.readouterr().err
        assert said == f"waiting for another process, which prepares the same data ({at})\n"
    waiting.join()
    assert (tmp_path / "x" / fingerprint(SETTINGS) / MANIFEST).is_file()
