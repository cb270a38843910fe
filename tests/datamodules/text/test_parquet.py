"""Only the columns that are asked for are read, and what is wrong with them is one line."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.corpus.text_source import read_parquet
from datamodules.labelled.texts import read_file
from datamodules.text.parquet import open_parquet, parquet_rows

COLUMNS = {"text_column": "text", "label_column": "label"}
NOT_UTF8 = pa.array([b"fine", b"\xff\xfe"]).view(pa.string())


def write(path, columns):
    pq.write_table(pa.Table.from_arrays([pa.array(values) for _, values in columns], [name for name, _ in columns]),
                   path)  # fmt: skip
    return path


def labelled(path):
    found = read_file(path, **COLUMNS)
    return list(zip(found.texts, found.labels, strict=True))


def corpus(path):
    with path.open("rb") as file:
        return list(read_parquet(file, path.name, **COLUMNS))


@pytest.mark.parametrize("read", [labelled, corpus])
def test_columns_that_nobody_asked_for_are_no_trouble(read, tmp_path):
    columns = [("text", ["a", "b"]), ("junk", NOT_UTF8), ("label", ["x", "y"]), ("twice", [1, 2]), ("twice", [3, 4])]
    assert read(write(tmp_path / "a.parquet", columns)) == [("a", "x"), ("b", "y")]


@pytest.mark.parametrize("read", [labelled, corpus])
@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([("text", ["a"]), ("label", ["x"]), ("text", ["b"])],
         "a.parquet: 2 columns are called 'text'; rename or drop all but one of them"),
        ([("text", NOT_UTF8), ("label", ["x", "y"])],
         "a.parquet, row 2: not UTF-8; write the file again with clean texts"),
    ],
)  # fmt: skip
def test_trouble_with_a_column_that_is_read_is_one_line(read, columns, expected, tmp_path):
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        read(write(tmp_path / "a.parquet", columns))


def test_a_damaged_column_is_named_and_the_others_are_read(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["abc" * 9], "label": ["x"]}), path, compression="none", use_dictionary=False)
    start = pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)
    with open_parquet(path, "a.parquet") as table:
        assert list(parquet_rows(table, "a.parquet", {"label"})) == [(1, {"text": None, "label": "x"})]
        with pytest.raises(ValueError, match=r"^a\.parquet, after row 0: text cannot be read \([^\n]+$"):
            list(parquet_rows(table, "a.parquet", {"text"}))
