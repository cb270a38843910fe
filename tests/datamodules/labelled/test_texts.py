import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.labelled.labels import describe_balance, encode_labels, find_label_names, stratified_rows
from datamodules.labelled.texts import LabelledTexts, find_split_files, read_file, read_hub_dataset

COLUMNS = {"text_column": "text", "label_column": "label"}
ROWS = [
    {"text": 'good, "very" good\nindeed', "label": "positive"},
    {"text": "schlecht für mich", "label": "negative"},
]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def labelled(*labels, class_names=None):
    split = LabelledTexts("train.jsonl", class_names=class_names)
    for number, label in enumerate(labels, start=1):
        split.add(number, "text", label, **COLUMNS)
    return split


def test_three_formats_say_the_same(tmp_path):
    write(tmp_path / "a.jsonl", "\ufeff" + jsonl(*ROWS))
    write(tmp_path / "a.csv", 'label,text\r\npositive,"good, ""very"" good\nindeed"\r\nnegative,schlecht für mich\r\n')
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for ending, numbers in ((".jsonl", [1, 2]), (".csv", [2, 4]), (".parquet", [1, 2])):
        read = read_file(tmp_path / f"a{ending}", **COLUMNS)
        assert read.texts == [row["text"] for row in ROWS]
        assert read.labels == ["positive", "negative"]
        assert read.numbers == numbers


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_lines_may_end_in_three_ways_and_begin_with_a_byte_order_mark(ends, mark, tmp_path):
    """A column that nobody asked for may be there twice; a quoted line break stays what it is."""
    lines = ["x,text,label,x", f'1,"a\u2028{ends}b",good,2', "1,c\x85,bad,2", ""]
    write(tmp_path / "a.csv", mark + ends.join(lines))
    read = read_file(tmp_path / "a.csv", **COLUMNS)
    assert (read.texts, read.labels) == ([f"a\u2028{ends}b", "c\x85"], ["good", "bad"])
    assert read.numbers == [2, 4]
    rows = ['{"text": "a\u2028b", "label": "good"}', '{"text": "c\x85", "label": "bad"}', ""]
    write(tmp_path / "a.jsonl", mark + ends.join(rows))
    read = read_file(tmp_path / "a.jsonl", **COLUMNS)
    assert (read.texts, read.labels, read.numbers) == (["a\u2028b", "c\x85"], ["good", "bad"], [1, 2])


BAD = {
    "missing column": (
        "a.jsonl", jsonl({"txt": "a", "label": 0}),
        ["a.jsonl, line 1", "'text'", "did you mean txt?", "data.text_column"],
    ),
    "missing label column": ("a.csv", "text,lable\na,b\n", ["a.csv, line 2", "mean lable?", "data.label_column"]),
    "empty text": ("a.jsonl", jsonl(ROWS[0], {"text": " \n", "label": 1}), ["a.jsonl, line 2", "text is empty"]),
    "no text": ("a.jsonl", jsonl({"text": 5, "label": 1}), ["line 1", "text is 5, not a text"]),
    "no label": ("a.jsonl", jsonl({"text": "a", "label": None}), ["line 1", "label is missing"]),
    "null among labels": (
        "a.jsonl", jsonl({"text": "a", "label": ["a", None]}),
        ["a.jsonl, line 1: label holds None; a label is a name or a whole number"],
    ),
    "empty text among labels": (
        "a.jsonl", jsonl(ROWS[0], {"text": "a", "label": ["b", ""]}), ["a.jsonl, line 2: label holds ''; a label is"],
    ),
    "object among labels": ("a.jsonl", jsonl({"text": "a", "label": [{"x": 1}]}), ["line 1: label holds {'x': 1}; a"]),
    "list among labels": ("a.jsonl", jsonl({"text": "a", "label": [["a"]]}), ["line 1: label holds ['a']; a label is"]),
    "fraction as label": ("a.jsonl", jsonl({"text": "a", "label": 0.5}), ["line 1", "0.5", "whole number"]),
    "not json": ("a.jsonl", jsonl(ROWS[0]) + "{oops\n", ["a.jsonl, line 2", "not JSON"]),
    "no object": ("a.jsonl", "[1]\n", ["a.jsonl, line 1", "not a JSON object"]),
    "latin-1": (
        "a.jsonl", jsonl(ROWS[0]).encode() + '{"text": "fürs"}'.encode("latin-1"),
        ["a.jsonl, line 2", "byte 12 (0xfc)", "not UTF-8"],
    ),
    "latin-1 csv": ("a.csv", "text,label\nok,1\nfür,1\n".encode("latin-1"), ["a.csv, line 3", "byte 2 (0xfc)"]),
    "open quote": ("a.csv", 'text,label\nok,1\n"never closed,1\nmore,0\n', ["a.csv, line 3", "quote", "broken"]),
    "quote too early": ("a.csv", 'text,label\n"a" b,1\n', ["a.csv, line 2", "quote", "broken"]),
    "too many fields": ("a.csv", "text,label\na, b,1\n", ["a.csv, line 2", "3 fields", "names 2"]),
    "column twice": ("a.csv", "text,label,text\na,1,b\n", ["a.csv, line 1", "2 columns are called 'text'", "drop"]),
    "field twice": ("a.jsonl", '{"text": "a", "text": "b", "label": 1}', ["a.jsonl, line 1", "'text' is there twice"]),
    "deep": ("a.jsonl", jsonl(ROWS[0]) + "[" * 50_000, ["a.jsonl, line 2", "nested too deep"]),
    "empty file": ("a.jsonl", "", ["a.jsonl holds no sample"]),
    "no parquet": ("a.parquet", "nothing", ["a.parquet", "no readable parquet file"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name, tmp_path):
    file, content, expected = BAD[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the parts are looked at)
        read_file(write(tmp_path / file, content), **COLUMNS)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message


def test_files_of_a_folder(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        find_split_files(tmp_path / "nowhere")
    write(tmp_path / "reviews.jsonl", "")
    with pytest.raises(ValueError, match=r"no train\.jsonl.*it holds reviews\.jsonl"):
        find_split_files(tmp_path)
    assert find_split_files(tmp_path / "reviews.jsonl") == {"train": tmp_path / "reviews.jsonl"}
    with pytest.raises(ValueError, match=r"cannot read \.doc"):
        find_split_files(write(tmp_path / "a.doc", ""))
    train, test = write(tmp_path / "train.csv", ""), write(tmp_path / "test.jsonl", "")
    assert find_split_files(tmp_path) == {"train": train, "test": test}
    write(tmp_path / "train.jsonl", "")
    with pytest.raises(ValueError, match=r"train\.jsonl and train\.csv are both there"):
        find_split_files(tmp_path)


@pytest.mark.parametrize("name", ["val.jsonl", "valid.csv", "Dev.parquet", "validation.json", "test-0-of-1.csv"])
def test_a_split_of_another_name_is_not_passed_over(name, tmp_path):
    write(tmp_path / "train.jsonl", "")
    write(tmp_path / "test_old.jsonl", "")  # no split by its name
    write(tmp_path / name, "")
    split = "test" if name.startswith("test") else "validation"
    with pytest.raises(ValueError) as error:  # noqa: PT011 (looked at as a whole)
        find_split_files(tmp_path)
    assert str(error.value) == (
        f"data.path={tmp_path}: {name} would not be read; make it {split}.jsonl|.csv|.parquet, or take it out of "
        "the folder"
    )
    write(tmp_path / f"{split}.csv", "")  # the other one is no split then
    assert list(find_split_files(tmp_path)) == ["train", split]


def test_names_of_classes():
    assert find_label_names(labelled("b", "a", "b"), given=None) == ["a", "b"]
    assert find_label_names(labelled("b", "a"), given=["b", "a"]) == ["b", "a"]
    assert find_label_names(
        labelled(0, 1),
        given=None,
    ) == ["0", "1"]
    assert find_label_names(labelled(0, 1, class_names=["neg", "pos"]), given=None) == ["neg", "pos"]
    assert find_label_names(labelled("10", "2", *map(str, range(11))), given=None) == [str(n) for n in range(11)]
    assert find_label_names(labelled(["x", "y"], [], "y|z"), given=None, multi_label=True) == ["x", "y", "z"]


def test_labels_as_numbers():
    assert encode_labels(labelled("b", 0, "1", 1), ["a", "b"]).tolist() == [1, 0, 1, 1]
    # a name goes before a position
    assert encode_labels(labelled(1, 2), ["1", "2"]).tolist() == [0, 1]
    many = encode_labels(labelled(["a", "c"], [], "c | b"), ["a", "b", "c"], multi_label=True)
    assert many.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 1]]


def test_numbers_as_names():
    """A whole number is no position where names are numbers, and 1, 1.0 and "1" are one name."""
    train = labelled("1.0", "2.0", "3.0")
    assert find_label_names(train, given=None) == ["1.0", "2.0", "3.0"]
    assert encode_labels(labelled("1", "2", 3, 2.0), ["1.0", "2.0", "3.0"]).tolist() == [0, 1, 2, 1]
    assert find_label_names(labelled(1, 1.0, "01", 0, "0.0"), given=None) == ["0", "1"]
    assert find_label_names(labelled("10.5", "9.5", "-1"), given=None) == ["-1", "9.5", "10.5"]
    stars = find_label_names(labelled(1, 2, 3, 4, 5), given=[1, 2, 3, 4, 5])  # what the refusal of 1 to 5 prints
    assert stars == ["1", "2", "3", "4", "5"]
    assert encode_labels(labelled(5, "1", 2.0), stars).tolist() == [4, 0, 1]
    with pytest.raises(ValueError, match=r"line 1: label '0' is not a class.*; classes: 1, 2, 3, 4, 5; mend it"):
        encode_labels(labelled(0), stars)
    with pytest.raises(ValueError, match=r"label_names=\[1, 1\.0\]: '1' is there twice"):
        find_label_names(labelled(1), given=[1, 1.0])


def test_numbers_of_a_source_that_names_them():
    """They are positions whatever the names are, and names in another order are an order, not new names."""
    stars = ["1", "2", "3"]
    assert encode_labels(labelled(0, 1, 2, class_names=stars), stars).tolist() == [0, 1, 2]
    split = labelled(0, 1, class_names=["neg", "pos"])
    assert encode_labels(split, ["pos", "neg"]).tolist() == [1, 0]
    assert encode_labels(split, ["bad", "good"]).tolist() == [0, 1]
    for names in (["pos", "bad"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match=r"train\.jsonl names its 2 classes neg, pos; list these in any order"):
            encode_labels(split, names)
    with pytest.raises(ValueError, match=r"line 1: label -1 lies outside 0 to 2 .*without a label"):
        encode_labels(labelled(-1, class_names=stars), stars)


@pytest.mark.parametrize(
    ("labels", "given", "expected"),
    [
        (["positive", "postive", "negative", "positive"], None, ["line 2", "'postive' (1 of 4", "mean positive?"]),
        (["good", "good", "godo", "bad"], None, ["line 3", "'godo' (1 of 4 labels; did you mean good?)"]),
        (["a", "a"], None, ["every sample is labelled 'a'", "data.label_column"]),
        (["a", "b"], ["a"], ["data.label_names=[a]: a classifier needs two classes at least; name them all"]),
        ([1, 2, 1], None, ["train.jsonl, line 2", "label 2 lies outside 0 to 1", "data.label_names=[1,2]"]),
        ([0, 1, -1], ["a", "b"], ["train.jsonl, line 3", "label -1 lies outside 0 to 1", "without a label"]),
        ([0, 2], ["a", "b"], ["train.jsonl, line 2", "label 2 lies outside 0 to 1 (classes: a, b)"]),
        (["good", "bda"], ["bad", "good"], ["line 2", "'bda' is not a class (did you mean bad?)", "bad, good"]),
        (["good", "bad"] * 99 + ["godo"], None, ["line 199", "'godo' (1 of 199 labels; did you mean good?)"]),
        (["good", "Good "] + ["good", "bad"] * 99, None, ["line 2", "'Good '", "did you mean good?"]),
        (["a", "b"], ["a", "b", "a"], ["'a' is there twice"]),
        ([["a"], "b"], None, ["line 1", "data.multi_label=true"]),
    ],
)  # fmt: skip
def test_bad_labels(labels, given, expected):
    split = labelled(*labels)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the parts are looked at)
        encode_labels(split, find_label_names(split, given=given))
    for part in expected:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "labels",
    [["topic a", "topic a", "topic b"], ["cat", "cat", "cats"], ["positive", "postive"], ["warm", "warm", "ward"]],
)
def test_a_class_of_one_sample_is_no_typo_by_itself(labels):
    assert find_label_names(labelled(*labels), given=None) == sorted(set(labels))


def test_a_rare_class_is_no_typo_unless_it_looks_like_one():
    labels = ["topic1", "bad"] * 150 + ["indifferent", "topic12"]
    assert find_label_names(labelled(*labels), given=None) == ["bad", "indifferent", "topic1", "topic12"]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.integers(0, 80), st.integers(0, 5))
def test_stratified_rows_keep_the_shares(labels, count, seed):
    labels, count = np.array(labels), min(count, len(labels))
    rows = stratified_rows(labels, count, seed=seed)
    assert len(rows) == count
    assert rows.tolist() == sorted(set(rows.tolist()))
    for number in range(4):
        wanted = (labels == number).sum() * count / len(labels)
        assert abs((labels[rows] == number).sum() - wanted) < 1


def test_stratified_rows_follow_their_seed():
    labels = np.array([0, 1] * 50)
    assert stratified_rows(labels, 10, seed=1).tolist() == stratified_rows(labels, 10, seed=1).tolist()
    assert stratified_rows(labels, 10, seed=1).tolist() != stratified_rows(labels, 10, seed=2).tolist()


def test_the_balance_in_words():
    said = describe_balance({"train": np.array([0, 1, 1, 1])}, ["no", "yes"])
    assert said == {"train": "4 samples: no 1 (25.0%), yes 3 (75.0%)"}
    several = describe_balance({"test": np.array([[1, 0], [1, 1]])}, ["a", "b"])
    assert several == {"test": "2 samples: a 2 (100.0%), b 1 (50.0%)"}


def test_a_data_set_of_the_hub(monkeypatch):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    loaded = datasets.DatasetDict({"train": rows, "test": rows, "unsupervised": rows})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, revision, download_config: loaded)
    found = read_hub_dataset("some/set", revision=None, **COLUMNS)
    assert list(found) == ["train", "test"]
    assert found["train"].class_names == ["neg", "pos"]
    assert encode_labels(found["train"], ["neg", "pos"]).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"no column 'texts' \(did you mean text\?\)"):
        read_hub_dataset("some/set", revision=None, text_column="texts", label_column="label")

    def offline(name, revision, download_config):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        ValueError, match=r"^data\.dataset=some/set cannot be loaded \(no network\); .*data\.path=FOLDER$"
    ):
        read_hub_dataset("some/set", revision=None, **COLUMNS)
