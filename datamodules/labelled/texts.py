"""Texts with labels from jsonl, csv and parquet files or a Hugging Face data set; what is wrong is said by line."""

import csv
import difflib
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.text.hub_access import load_hub_dataset
from datamodules.text.jsonl import decoded_lines, line_place, read_jsonl
from datamodules.text.parquet import open_parquet, parquet_rows, refuse_twice
from datamodules.text.split_names import SPLIT_FILES, refuse_unread

FORMATS = (".jsonl", ".csv", ".parquet")


@dataclass
class LabelledTexts:
    """One split as it was read.

    Attributes:
        source: what it was read from, for messages: a file name, or a data set and its split.
        texts: n texts, none of them blank.
        labels: n labels as they were found: names, whole numbers, or a list of names.
        numbers: where each was found, 1 the first: a line of a text file, else a row.
        unit: `line` or `row`.
        class_names: names that the source itself gives to whole-number labels, where it does.
        extra: further fields by what they are to us (`id`, `group`); None where a sample lacks one that may be lacking.
    """

    source: str
    texts: list[str] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    unit: str = "line"
    class_names: list[str] | None = None
    extra: dict[str, list[Any]] = field(default_factory=dict)

    def place(self, row: int) -> str:
        """Where row `row` (0-based) was found, in words."""
        return f"{self.source}, {self.unit} {self.numbers[row]:,}"

    def add(
        self,
        number: int,
        text: Any,
        label: Any,
        *,
        text_column: str,
        label_column: str,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Append one sample, with values of the further fields where there are such.

        Raises:
            ValueError: the text is no text or blank, or there is no label.
        """
        where = f"{self.source}, {self.unit} {number:,}"
        if not isinstance(text, str):
            raise ValueError(
                f"{where}: {text_column} is {_shown(text)}, not a text; mend it, or name another data.text_column"
            )
        if not text.strip():
            raise ValueError(f"{where}: {text_column} is empty; give it a text, or take the {self.unit} out")
        if label is None or label == "":
            raise ValueError(f"{where}: {label_column} is missing; label it, or take the {self.unit} out")
        for one in label if isinstance(label, list) else [label]:
            whole = isinstance(one, float) and one.is_integer()  # pandas makes floats of whole numbers beside a gap
            if one == "" or (not whole and not isinstance(one, str | int)):  # a bool is an int
                held = "holds" if isinstance(label, list) else "is"
                raise ValueError(f"{where}: {label_column} {held} {_shown(one)}; a label is a name or a whole number")
        self.texts.append(text)
        self.labels.append(label)
        self.numbers.append(number)
        for name, value in (extra or {}).items():
            self.extra.setdefault(name, []).append(value)


def find_split_files(path: Path) -> dict[str, Path]:
    """The files of a data set: `train`, and `validation` and `test` where they are there.

    Args:
        path: a folder with train.jsonl (or .csv, .parquet), validation... and test..., or one file to train on.

    Raises:
        ValueError: nothing is there to train on, a split is there twice, or under a name that is not read.
    """
    if path.is_file():
        if path.suffix not in FORMATS:
            raise ValueError(f"data.path={path}: cannot read {path.suffix or 'this'}; allowed are {', '.join(FORMATS)}")
        return {"train": path}
    if not path.is_dir():
        raise ValueError(f"data.path={path}: there is no such file or folder")
    found: dict[str, Path] = {}
    for split in SPLIT_FILES:
        files = [path / f"{split}{ending}" for ending in FORMATS if (path / f"{split}{ending}").is_file()]
        if len(files) > 1:
            raise ValueError(
                f"data.path={path}: {' and '.join(file.name for file in files)} are both there; keep one of them"
            )
        found |= {split: files[0]} if files else {}
    if "train" not in found:
        there = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"data.path={path}: no train{'|'.join(FORMATS)} is in this folder; it holds {there}; name a single file to "
            "train on all of it"
        )
    refuse_unread(path, (file.name for file in path.iterdir()), found, FORMATS)
    return found


def read_file(
    path: Path, *, text_column: str, label_column: str, extra_columns: Mapping[str, str | None] | None = None
) -> LabelledTexts:
    """Read one file of a format that its ending names.

    Args:
        path: the file, .jsonl, .csv or .parquet.
        text_column: field of the text.
        label_column: field of the label.
        extra_columns: further fields by what they are to us; with None the field of that very name is read where a
            record has it, one that is named must be there.

    Raises:
        ValueError: naming file, line and remedy: a missing column, an empty text, a missing label, bytes that are not
            UTF-8, a line that is no JSON object, a csv whose quotes do not match, a column that is read and there
            twice, no sample at all.
    """
    split = LabelledTexts(path.name, unit="row" if path.suffix == ".parquet" else "line")
    records = _records(path, _wanted(text_column, label_column, extra_columns))
    _fill(split, records, text_column, label_column, extra_columns)
    if not split.texts:
        raise ValueError(f"{path.name} holds no sample")
    return split


def _wanted(text_column: str, label_column: str, extra_columns: Mapping[str, str | None] | None) -> set[str]:
    """Names of all fields that are read."""
    return {text_column, label_column} | {column or name for name, column in (extra_columns or {}).items()}


def _fill(
    split: LabelledTexts,
    records: Iterable[tuple[int, dict[str, Any]]],
    text_column: str,
    label_column: str,
    extra_columns: Mapping[str, str | None] | None,
) -> None:
    """Add numbered records to a split; see read_file."""
    columns = {"text_column": text_column, "label_column": label_column}
    named = {f"{name}_column": column for name, column in (extra_columns or {}).items() if column is not None}
    for number, record in records:
        for key, column in {**columns, **named}.items():
            if column not in record:
                raise missing_column(f"{split.source}, {split.unit} {number:,}", key, column, list(record))
        extra = {name: record.get(column or name) for name, column in (extra_columns or {}).items()}
        split.add(number, record[text_column], record[label_column], **columns, extra=extra)


def missing_column(where: str, key: str, column: str, known: Sequence[str]) -> ValueError:
    """The error for a record that lacks a column."""
    return ValueError(
        f"{where}: there is no column {column!r}{nearest(column, known)}; it has "
        f"{', '.join(map(str, known)) or 'none'}; name the right one with data.{key}=..."
    )


def nearest(word: str, known: Sequence[str], cutoff: float = 0.5) -> str:
    """` (did you mean x?)`, or nothing where no known word is near."""
    match = difflib.get_close_matches(word, list(map(str, known)), n=1, cutoff=cutoff)
    return f" (did you mean {match[0]}?)" if match else ""


def _records(path: Path, wanted: Collection[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number of line or row and fields of each record; only those that are wanted need be decoded."""
    if path.suffix == ".jsonl":
        return read_jsonl(path, source=path.name)
    return read_csv(path, wanted) if path.suffix == ".csv" else read_parquet(path, wanted)


def read_csv(path: Path, wanted: Collection[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number at which each record begins, and its fields by the names in the first line.

    Strict: Python's reader would otherwise take everything behind a broken quote for one field.

    Args:
        path: of the file.
        wanted: columns that will be read.

    Raises:
        ValueError: quotes do not match, a record has not as many fields as the first line, or a wanted column is there
            twice.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a text may be longer than the 131,072 characters of old
    with path.open("rb") as file:
        rows = csv.reader(decoded_lines(file, path.name), strict=True)
        header: list[str] | None = None
        while True:
            number = rows.line_num + 1
            try:
                fields = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                raise ValueError(
                    f"{line_place(path.name, number)}: a quote in the record that begins here is broken ({error}); "
                    'close it, and double each quote inside a quoted field ("")'
                ) from error
            if not fields:
                continue
            if header is None:
                header = fields
                refuse_twice(header, wanted, line_place(path.name, number))
                continue
            if len(fields) != len(header):
                raise ValueError(
                    f"{line_place(path.name, number)}: {len(fields)} fields, but the first line names {len(header)}; "
                    "quote fields that hold commas or line breaks"
                )
            yield number, dict(zip(header, fields, strict=True))


def read_parquet(path: Path, wanted: Collection[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row number and fields of each row; see parquet_rows."""
    with open_parquet(path, path.name) as table:
        yield from parquet_rows(table, path.name, wanted)


def read_hub_dataset(
    name: str,
    *,
    revision: str | None,
    text_column: str,
    label_column: str,
    extra_columns: Mapping[str, str | None] | None = None,
) -> dict[str, LabelledTexts]:
    """Splits `train`, `validation` and `test` of a data set on the Hugging Face hub, as far as they are there.

    Raises:
        ValueError: it cannot be loaded, has no train split, or lacks a column.
    """
    import datasets

    loaded = load_hub_dataset(
        name,
        said=f"data.dataset={name}",
        remedy="without a network use local files, data.path=FOLDER",
        revision=revision,
    )
    if "train" not in loaded:
        raise ValueError(f"data.dataset={name} has no split train; it has {', '.join(map(str, loaded))}")
    found = {}
    for split_name in SPLIT_FILES:
        if split_name not in loaded:
            continue
        rows = loaded[split_name]
        split = LabelledTexts(f"{name} {split_name}", unit="row")
        feature = rows.features.get(label_column)
        split.class_names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
        wanted = _wanted(text_column, label_column, extra_columns)
        read = rows.select_columns([column for column in rows.column_names if column in wanted] or rows.column_names)
        records = (dict.fromkeys(rows.column_names) | row for row in read)  # all names, so that a message lists them
        _fill(split, enumerate(records, start=1), text_column, label_column, extra_columns)
        found[split_name] = split
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
