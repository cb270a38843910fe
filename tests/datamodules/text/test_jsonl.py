"""One reader and one writer of JSON Lines: no character splits a row, and every mistake is one line with its place."""

import json
import re
from datetime import date, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.labelled.document_facts import evidence_spans
from datamodules.text.jsonl import json_line, jsonl_objects, read_jsonl, read_rows, whole_characters, write_jsonl
from tests.tiny.shared_files import shared

LINE_SEPARATORS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
"""Where str.splitlines splits and JSON Lines does not."""

texts = st.text(st.characters() | st.sampled_from(f"{LINE_SEPARATORS}\r\n\0\ud800\udc00\ufeff"))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(rows=st.lists(st.dictionaries(texts, values, max_size=4), max_size=5))
def test_what_was_written_is_read_back(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "new" / "rows.jsonl"
    write_jsonl(path, rows)
    assert read_rows(path) == [json.loads(json.dumps(row)) for row in rows]  # JSON joins halves that make a pair
    assert path.read_bytes().count(b"\n") == len(rows)
    assert len(path.read_text().splitlines()) == len(rows)  # even a reader that splits where it should not
    assert [file.name for file in path.parent.iterdir()] == ["rows.jsonl"]


def test_every_character_comes_back(tmp_path):
    row = {"text": f"a{LINE_SEPARATORS}\r\n\0\ud800 \udc00\ufeff😀", "\u2028": [1, {"\udfff": None}]}
    write_jsonl(tmp_path / "a.jsonl", [row, row])
    assert read_rows(tmp_path / "a.jsonl") == [row, row]


def test_characters_that_split_lines_elsewhere_stand_in_files_as_they_are(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"text": f"a{LINE_SEPARATORS}b"}  # JSON escapes \x0b to \x1e, the other three it need not
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n{}\n", encoding="utf-8", newline="")
    assert list(read_jsonl(path)) == [(1, row), (2, {})]


def test_gsm8k_holds_such_a_character():
    rows = dict(read_jsonl(shared("data", "gsm8k", "train.jsonl")))
    assert list(rows) == list(range(1, 7474))
    assert [number for number, row in rows.items() if any("\u2028" in text for text in row.values())] == [2382]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_ends_of_lines_and_byte_order_marks(ends, mark, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(mark + ends.join(['{"a": "1\u2028"}', "", " \t", '{"a": 2}']), encoding="utf-8", newline="")
    assert list(read_jsonl(path)) == [(1, {"a": "1\u2028"}), (4, {"a": 2})]


def test_a_line_may_be_long(tmp_path):
    path = tmp_path / "a.jsonl"
    long = {"text": "\u2028é" * 1_000_000}
    path.write_text(json.dumps(long, ensure_ascii=False) + "\n" + json.dumps(long), encoding="utf-8", newline="")
    assert [(number, row == long) for number, row in read_jsonl(path)] == [(1, True), (2, True)]


NOT_JSON = "each line must be one object, whole and alone"
MISTAKES = {
    "latin-1": (b'{"a": "f\xfcr"}', "byte 9 (0xfc) is not UTF-8; save the file as UTF-8"),
    "utf-16": (b"\xff\xfe{", "byte 1 (0xff) is not UTF-8; save the file as UTF-8"),
    "cut": (b'{"a": 1', f"not JSON (Expecting ',' delimiter at column 8); {NOT_JSON}"),
    "two": (b'{"a": 1} {"a": 2}', f"not JSON (Extra data at column 10); {NOT_JSON}"),
    "zeros": (b"\0\0\0", f"not JSON (Expecting value at column 1); {NOT_JSON}"),
    "raw NUL": (b'{"a": "\0"}', f"not JSON (Invalid control character at at column 8); {NOT_JSON}"),
    "list": (b"[1, 2]", "[1, 2] is not a JSON object; each line must be one"),
    "long": (b'"' + b"x" * 50 + b'"', '"' + "x" * 36 + "... is not a JSON object; each line must be one"),
    "twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the field 'c' is there twice; keep one of them"),
    "deep lists": (b'{"a": ' + b"[" * 50_000, "JSON nested too deep to be read; mend or remove the line"),
    "deep objects": (b'{"a": ' * 50_000, "JSON nested too deep to be read; mend or remove the line"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_one_line(name, tmp_path):
    line, expected = MISTAKES[name]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line + b"\n{}\n")
    found = read_jsonl(path)
    assert next(found) == (1, {"a": 1})
    with pytest.raises(ValueError, match=re.escape(expected)) as raised:
        next(found)
    assert str(raised.value) == f"{path}, line 3: {expected}"


def test_spans_in_a_text_field_nest_no_deeper_than_can_be_read():
    with pytest.raises(ValueError, match=r"^a, line 1: evidence spans nest too deep to be read"):
        evidence_spans("[" * 50_000, "text", "a, line 1")


def test_numbers_of_too_many_digits_are_named():
    with pytest.raises(ValueError, match=r"^x, line 1: not JSON that can be read \(Exceeds the limit"):
        list(jsonl_objects([b'{"a": ' + b"1" * 5000 + b"}"], "x"))


def test_what_is_no_finite_number_is_null():
    assert json_line({"a": [float("nan"), (float("inf"), 1.5)], "é": "\ud800"}) == (
        '{"a": [null, [null, 1.5]], "\\u00e9": "\\ud800"}\n'
    )


def test_what_parquet_holds_and_json_has_no_word_for_is_text():
    row = {"a": [date(2020, 1, 2), float("nan")], "b": b"caf\xc3\xa9", "c": b"\xff\x00", "d": Decimal("1.50")}
    assert json_line(row) == '{"a": ["2020-01-02", null], "b": "caf\\u00e9", "c": "ff00", "d": "1.50"}\n'
    assert json_line({"at": datetime(2020, 1, 2, 3, 4, 5)}) == '{"at": "2020-01-02 03:04:05"}\n'
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        json_line({"a": object()})


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"a": 1}])

    def rows():
        yield {"a": 2}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, rows())
    assert read_rows(path) == [{"a": 1}]
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "victim")
    write_jsonl(tmp_path / "a.jsonl", [{"a": 1}])
    assert (tmp_path / "victim").read_text() == "mine"
    assert read_rows(tmp_path / "a.jsonl") == [{"a": 1}]


def test_halves_of_characters_become_question_marks():
    assert whole_characters("a\ud800b\0\U0001f600\u2028") == "a?b\0\U0001f600\u2028"
