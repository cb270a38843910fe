"""Prepared data that a crash or a bad disk has damaged are prepared again."""

import json
import os

import numpy as np
import pytest

from datamodules.storage.cache import MANIFEST, damage, prepared_folder, read_manifest

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
