import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from datamodules.corpus.prepared_store import find_store
from datamodules.corpus.text_source import SourceError, file_source, local_files, read_lines
from datamodules.corpus.token_store import INDEX_ROW, SPLITS, StoreError, open_store, token_dtype, write_index
from datamodules.corpus.tokenize_corpus import write_store
from datamodules.storage.cache import file_sha256, prepared_folder
from tests.tiny.tiny_runs import PAPERS


def make(root, folder=PAPERS, **changes):
    options = {"path": str(folder), "hub_name": "none", "hub_config": None, "text_column": "text",
               "label_column": "label", "tokenizer_name": str(PAPERS / "tokenizer"), "shared_store": None,
               "max_documents_per_split": None,
               "num_workers": 1}  # fmt: skip
    return find_store(root, **{**options, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make(tmp_path_factory.mktemp("store"))


@pytest.fixture
def store(whole, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "store"))


def write_jsonl(folder, split, rows):
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rehash(folder):
    """Make the manifest believe what is there."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["facts"]["files"]:
        file = folder / name
        manifest["facts"]["files"][name] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    path.write_text(json.dumps(manifest))


def test_every_document_is_where_the_index_says(whole):
    opened = open_store(whole)
    tokenizer = AutoTokenizer.from_pretrained(whole / "tokenizer")
    assert opened.categories == ["bio", "math", "phys"]
    assert opened.tokens.dtype == np.uint16
    seen = 0
    for split in SPLITS:
        rows = [json.loads(line) for line in (PAPERS / f"{split}.jsonl").read_text().splitlines()]
        for category in opened.categories:
            start, stop = opened.documents(split, category)
            lengths = opened.index["length"][start:stop]
            assert (np.diff(lengths.astype(int)) <= 0).all()
            for row in opened.index[start:stop]:
                source_row = rows[row["document"]]
                assert source_row["label"] == category
                ids = tokenizer(source_row["text"], add_special_tokens=False)["input_ids"]
                assert opened.tokens[row["offset"] : row["offset"] + row["length"]].tolist() == ids
                assert row["num_bytes"] == len(source_row["text"].encode())
                seen += 1
    assert seen == len(opened.index) == 66
    splits = json.loads((whole / "splits.json").read_text())
    assert splits["train"]["documents"] == {"bio": 12, "math": 12, "phys": 12}
    assert sum(sum(splits[split]["tokens"].values()) for split in SPLITS) == len(opened.tokens)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=40),
    st.integers(1, 10),
)
def test_long_documents_of_a_category_are_found_by_bisection(tmp_path_factory, documents, min_length):
    rows = np.zeros(len(documents), dtype=INDEX_ROW)
    for name, column in zip(("split", "category", "length"), zip(*documents, strict=True), strict=True):
        rows[name] = column
    rows["document"] = np.arange(len(rows))
    path = tmp_path_factory.mktemp("index") / "index.bin"
    groups = write_index(path, rows)
    written = np.fromfile(path, dtype=INDEX_ROW)
    assert sorted(written["document"].tolist()) == list(range(len(rows)))
    for split in range(3):
        for category in range(groups.shape[1]):
            start, stop = groups[split, category]
            part = written[start:stop]
            assert (part["split"] == split).all()
            assert (part["category"] == category).all()
            assert len(part) == sum(entry[:2] == (split, category) for entry in documents)
            assert (np.diff(part["length"].astype(int)) <= 0).all()


@pytest.mark.parametrize(
    ("highest", "name"), [(0, "uint16"), (65_535, "uint16"), (65_536, "uint32"), (2**32 - 1, "uint32")]
)
def test_the_token_type_never_overflows(highest, name):
    assert token_dtype(highest) == np.dtype(name)


def test_a_token_beyond_32_bits_is_refused():
    with pytest.raises(StoreError, match="does not fit 32 bits"):
        token_dtype(2**32)


def test_workers_change_nothing(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.corpus.tokenize_corpus.BATCH_CHARACTERS", 600)
    parallel = make(tmp_path, num_workers=2)
    for name in ("tokens.bin", "index.bin", "splits.json"):
        assert (parallel / name).read_bytes() == (whole / name).read_bytes()
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (parallel, whole)]
    assert manifests[0] == manifests[1]


def test_parquet_holds_the_same_store(whole, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ["bio", "math", "phys"]
    metadata = json.dumps({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}})
    for split in SPLITS:
        rows = [json.loads(line) for line in (PAPERS / f"{split}.jsonl").read_text().splitlines()]
        table = pa.table({"text": [row["text"] for row in rows], "label": [names.index(row["label"]) for row in rows]})
        half = len(rows) // 2
        table = table.replace_schema_metadata({"huggingface": metadata})
        pq.write_table(table.slice(0, half), tmp_path / f"{split}-00000-of-00002.parquet")
        pq.write_table(table.slice(half), tmp_path / f"{split}-00001-of-00002.parquet")
    folder = make(tmp_path / "cache", tmp_path)
    for name in ("tokens.bin", "index.bin", "splits.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_a_first_look_is_a_sample_and_no_prefix(tmp_path):
    opened = open_store(make(tmp_path, max_documents_per_split=9))
    splits = json.loads((opened.folder / "splits.json").read_text())
    assert [sum(splits[split]["documents"].values()) for split in SPLITS] == [9, 9, 9]
    # the files are sorted by label: the first nine training documents would all be of one category
    assert all(count > 0 for count in splits["train"]["documents"].values())
    again = open_store(make(tmp_path / "again", max_documents_per_split=9))
    assert again.tokens.tolist() == opened.tokens.tolist()


def test_empty_documents_are_counted_and_left_out(tmp_path):
    rows = [{"text": "cell gene", "label": "bio"}, {"text": "", "label": "bio"}, {"text": "  ", "label": "bio"}]
    write_jsonl(tmp_path / "source", "train", rows)
    write_jsonl(tmp_path / "source", "validation", rows[:2])
    opened = open_store(make(tmp_path, tmp_path / "source"))
    assert len(opened.index) == 2
    assert opened.facts["num_empty_documents"] == {"train": 2, "validation": 1}


def test_changed_documents_are_prepared_anew_and_unchanged_ones_are_not(tmp_path):
    for split in ("train", "validation"):
        write_jsonl(tmp_path / "source", split, [{"text": "cell gene", "label": "bio"}])
    first = make(tmp_path, tmp_path / "source")
    stamp = (first / "tokens.bin").stat().st_mtime_ns
    assert make(tmp_path, tmp_path / "source") == first
    assert (first / "tokens.bin").stat().st_mtime_ns == stamp
    write_jsonl(tmp_path / "source", "train", [{"text": "gene cell", "label": "bio"}])
    assert make(tmp_path, tmp_path / "source") != first


# ---------------------------------------------------------------------- damage


def test_a_truncated_bin_is_refused(store):
    path = store / "tokens.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(
        StoreError, match=r"tokens.bin has [\d,]+ bytes, the manifest says [\d,]+; delete it and prepare"
    ):
        open_store(store)


def test_a_missing_file_is_refused(store):
    (store / "index.bin").unlink()
    with pytest.raises(StoreError, match=r"index.bin is missing"):
        open_store(store)


def test_a_flipped_byte_is_found_once(store):
    path = store / "tokens.bin"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"tokens\.bin is damaged: its SHA-256"):
        open_store(store)


def test_a_token_outside_the_vocabulary_is_named(store):
    tokens = np.fromfile(store / "tokens.bin", dtype="<u2")
    tokens[17] = 999
    tokens.tofile(store / "tokens.bin")
    rehash(store)
    with pytest.raises(StoreError, match=r"tokens.bin: token 17 is 999, outside the vocabulary of 42"):
        open_store(store)


def test_an_index_that_points_outside_is_named(store):
    index = np.fromfile(store / "index.bin", dtype=INDEX_ROW)
    index[1]["offset"] = 10**6
    index.tofile(store / "index.bin")
    rehash(store)
    with pytest.raises(StoreError, match=r"index.bin disagrees with tokens.bin: document \d+ of train ends at token"):
        open_store(store)


def test_an_index_of_other_groups_is_named(store):
    index = np.fromfile(store / "index.bin", dtype=INDEX_ROW)
    index[[0, -1]] = index[[-1, 0]]
    index.tofile(store / "index.bin")
    rehash(store)
    with pytest.raises(StoreError, match=r"index.bin disagrees with splits.json: rows 0 to 11 are not of train/bio"):
        open_store(store)
    splits = json.loads((store / "splits.json").read_text())
    splits["train"]["rows"]["bio"] = [0, 5]
    (store / "splits.json").write_text(json.dumps(splits))
    rehash(store)
    with pytest.raises(StoreError, match="its row ranges do not tile it"):
        open_store(store)


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match="is no token store"):
        open_store(tmp_path)


# ---------------------------------------------------------------------- bad sources


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a", "label": ', r"train.jsonl, line 2: not JSON \(.* at column \d+\)"),
        (b'{"text": "\xff", "label": "x"}', r"train.jsonl, line 2: byte 11 \(0xff\) is not UTF-8"),
        (b'{"label": "x"}', r"train.jsonl, line 2: no field text; it has label; set data.text_column"),
        (b'{"text": 3, "label": "x"}', r"train.jsonl, line 2: text is int, expected a string"),
        (b'{"text": "a", "label": null}', r"train.jsonl, line 2: no field label"),
        (b'{"text": "a", "label": 1.5}', r"train.jsonl, line 2: label=1.5, expected a name or a class number"),
        (b"[1]", r"train.jsonl, line 2: \[1\] is not a JSON object"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(b'{"text": "a", "label": "x"}\n' + line + b"\n")
    (folder / "validation.jsonl").write_bytes(b'{"text": "a", "label": "x"}\n')
    with pytest.raises(ValueError, match=message):
        make(tmp_path, folder)
    assert [path.name for path in tmp_path.iterdir() if path.name == "arxiv"] == []  # nothing half is left


def test_halves_of_characters_become_question_marks_and_marks_and_line_ends_do_not_matter():
    content = '\ufeff{"text": "a\\ud800\\u0000", "label": "x"}\r\r{"text": "b\u2028c", "label": "y"}'.encode()
    found = read_lines(io.BytesIO(content), "train.jsonl", text_column="text", label_column="label")
    assert list(found) == [("a?\0", "x"), ("b\u2028c", "y")]


def test_a_folder_without_splits_is_refused(tmp_path):
    (tmp_path / "papers.jsonl").write_text("")
    with pytest.raises(
        SourceError,
        match=r"expected train, validation or test with the ending .jsonl or .parquet; there is papers.jsonl",
    ):
        make(tmp_path, tmp_path)
    with pytest.raises(SourceError, match="no such folder"):
        make(tmp_path, tmp_path / "nowhere")
    with pytest.raises(SourceError) as error:
        make(tmp_path, tmp_path / "papers.jsonl")
    assert str(error.value) == (
        f"data.path={tmp_path}/papers.jsonl: this is a file; name a folder that holds train and validation as .jsonl "
        "or .parquet"
    )


def test_a_folder_without_validation_is_refused_before_anything_is_tokenized(tmp_path):
    shutil.copy(PAPERS / "train.jsonl", tmp_path)
    with pytest.raises(SourceError) as error:
        make(tmp_path, tmp_path)
    assert str(error.value) == (
        f"data.path={tmp_path}: there is no validation.jsonl or validation.parquet in it; put some documents of every "
        "category into one"
    )
    shutil.copy(PAPERS / "validation.jsonl", tmp_path / "dev.jsonl")
    with pytest.raises(ValueError, match=r"dev\.jsonl would not be read; make it validation\.jsonl\|\.parquet, or"):
        make(tmp_path, tmp_path)


def test_a_missing_column_of_a_parquet_file_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"body": ["a"], "label": ["x"]}), tmp_path / "train.parquet")
    pq.write_table(pa.table({"text": ["a"], "label": ["x"]}), tmp_path / "validation.parquet")
    with pytest.raises(SourceError, match=r"train.parquet: no column text; there are body, label"):
        make(tmp_path / "cache", tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="no readable parquet file"):
        make(tmp_path / "cache", tmp_path)


def test_an_unknown_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data.tokenizer=.*nowhere cannot be loaded"):
        make(tmp_path, tokenizer_name=str(tmp_path / "nowhere"))


# ---------------------------------------------------------------------- interruption


def test_a_preparation_that_dies_leaves_nothing_to_read_and_is_cleared_away(tmp_path):
    calls = []

    def dies(folder):
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared_folder(tmp_path, "arxiv", {"a": 1}, dies)
    assert list(tmp_path.rglob("*")) == []

    # kill -9 leaves the folder of a dead process behind
    import platform

    from datamodules.storage.cache import fingerprint

    left = tmp_path / "arxiv" / f".{fingerprint({'a': 1})}-{platform.node()}-999999999-x"
    left.mkdir(parents=True)
    (left / "half").write_text("half")
    folder = prepared_folder(tmp_path, "arxiv", {"a": 1}, lambda folder: calls.append(folder) or {})
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert len(calls) == 1


def test_store_is_written_the_same_by_the_function_alone(whole, tmp_path):
    source = file_source(
        str(PAPERS),
        text_column="text",
        label_column="label",
        sizes=local_files(PAPERS, tmp_path / "hashes"),
        open_file=lambda name: (PAPERS / name).open("rb"),
    )
    folder = tmp_path / "store"
    folder.mkdir()
    facts = write_store(
        folder, source, tokenizer_name=str(PAPERS / "tokenizer"), max_documents_per_split=None, seed=0, num_workers=1
    )
    assert facts == json.loads((whole / "manifest.json").read_text())["facts"]
