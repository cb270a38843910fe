"""One identity of a tokenizer: what it does counts, not where or when it was written."""

import os
import shutil

import pytest

from datamodules.text import tokenizer_identity as identity
from datamodules.text.hub import find_tokenizer
from datamodules.text.tokenized_texts import word_tokenizer
from datamodules.text.tokenizer_identity import tokenizer_identity


@pytest.fixture
def folder(tmp_path):
    word_tokenizer(["a b"]).save_pretrained(tmp_path / "x")
    return tmp_path / "x"


def test_a_copy_is_the_same_tokenizer_and_another_vocabulary_is_another(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    word_tokenizer(["a c"]).save_pretrained(tmp_path / "z")
    known = tokenizer_identity(str(folder))
    assert len(known) == 32
    assert tokenizer_identity(str(tmp_path / "copy")) == known
    assert tokenizer_identity(str(tmp_path / "z")) != known
    assert find_tokenizer(str(folder), None).revision == known


def test_times_and_files_beside_the_tokenizer_change_nothing(folder):
    known = tokenizer_identity(str(folder))
    for file in folder.iterdir():
        os.utime(file, (0, 0))
    for name in ("model.safetensors", "config.json", "README.md", "train.log"):
        (folder / name).write_text("beside")
    assert tokenizer_identity(str(folder)) == known


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "additional_chat_templates/tools.jinja", "spiece.model", "vocab.txt", "merges.txt"]
)
def test_every_file_of_a_tokenizer_counts(folder, name):
    known = tokenizer_identity(str(folder))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("one")
    one = tokenizer_identity(str(folder))
    (folder / name).write_text("two")  # as long as before
    os.utime(folder / name, (1, 1))
    assert len({known, one, tokenizer_identity(str(folder))}) == 3


def test_a_gguf_file_is_known_by_its_content(tmp_path):
    names = ("a.gguf", "b.gguf", "c.gguf")
    for name, content in zip(names, (b"same", b"same", b"diff"), strict=True):
        (tmp_path / name).write_bytes(content)
    a, b, c = (find_tokenizer(str(tmp_path / name), None).revision for name in names)
    assert a == b != c


def test_names_on_the_hub_carry_their_commit_where_it_is_known(monkeypatch):
    monkeypatch.setattr(identity, "hub_commit", {"some/name": "c0ffee", "gpt2": "beef"}.get)
    assert tokenizer_identity("some/name") == "some/name@c0ffee"
    assert tokenizer_identity("gpt2") == "gpt2@beef"
    assert tokenizer_identity("other/name") == "other/name"


def test_the_learned_tokenizer_is_not_looked_for_on_the_hub(monkeypatch):
    monkeypatch.setattr(identity, "hub_commit", lambda name: pytest.fail(f"asked for {name}"))
    assert tokenizer_identity("words") == "words"
