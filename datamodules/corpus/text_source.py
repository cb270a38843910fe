"""Labelled documents to read: the Hugging Face hub, or train|validation|test.jsonl|parquet in a folder or on S3.

Everything streams: a document is read, handed on and forgotten.
"""

import contextlib
import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from datamodules.corpus.token_store import SPLITS
from datamodules.sampling.order import hash_key, permute
from datamodules.storage.cache import file_sha256
from datamodules.text.hub_access import hub_is_reachable, load_hub_dataset
from datamodules.text.jsonl import decoded_lines, jsonl_objects, line_place, whole_characters
from datamodules.text.parquet import open_parquet, parquet_rows

SUFFIXES = (".jsonl", ".parquet")

Row = tuple[int, str, str]
"""Position in the split, text, label."""


class SourceError(ValueError):
    """A source cannot be read; the message names the file, the line where there is one, and the remedy."""


@dataclass(frozen=True)
class TextSource:
    """Where documents come from.

    Attributes:
        identity: JSON values that change when the documents do.
        splits: names of the splits that are there, in the order of SPLITS.
        read: (split, limit, seed) -> rows; with a limit, so many of them as a sample drawn by the seed.
    """

    identity: dict[str, Any]
    splits: tuple[str, ...]
    read: Callable[[str, int | None, int], Iterator[Row]]


# ---------------------------------------------------------------------- files


def file_source(
    path: str,
    *,
    text_column: str,
    label_column: str,
    sizes: dict[str, dict[str, Any]],
    open_file: Callable[[str], IO[bytes]],
) -> TextSource:
    """A folder, local or remote, of files named after splits: train.jsonl, test.parquet, train-00000-of-00004.parquet.

    Args:
        path: the folder, for messages.
        text_column: field that holds the document.
        label_column: field that holds its category.
        sizes: file name -> facts that change with its content; see local_files.
        open_file: opens one of these files for reading bytes.

    Raises:
        SourceError: no file is named after a split.
    """
    files = {split: sorted(name for name in sizes if _is_of_split(name, split)) for split in SPLITS}
    files = {split: names for split, names in files.items() if names}
    if not files:
        there = ", ".join(sorted(sizes)[:5]) or "nothing"
        raise SourceError(
            f"data.path={path}: expected train, validation or test with the ending .jsonl or .parquet; there is {there}"
        )
    for split, names in files.items():
        if len({Path(name).suffix for name in names}) > 1:
            raise SourceError(f"data.path={path}: both .jsonl and .parquet of {split} are there; keep one of them")

    def rows(split: str) -> Iterator[Row]:
        number = 0
        for name in files[split]:
            with open_file(name) as file:
                place = f"{path.rstrip('/')}/{name}"
                reader = read_lines if name.endswith(".jsonl") else read_parquet
                for text, label in reader(file, place, text_column=text_column, label_column=label_column):
                    yield number, text, label
                    number += 1

    def count(split: str) -> int:
        total = 0
        for name in files[split]:
            with open_file(name) as file:
                total += (
                    _count_lines(file, name) if name.endswith(".jsonl") else open_parquet(file, name).metadata.num_rows
                )
        return total

    def read(split: str, limit: int | None, seed: int) -> Iterator[Row]:
        if limit is None:
            yield from rows(split)
            return
        # a sample, not the first rows: files are often sorted by label
        total = count(split)
        key = hash_key(seed, SPLITS.index(split))
        wanted = set(permute(np.arange(min(limit, total)), length=max(total, 1), key=key).tolist()) if total else set()
        for row in rows(split):
            if row[0] in wanted:
                yield row

    return TextSource(
        identity={"files": {name: sizes[name] for names in files.values() for name in names},
                  "text_column": text_column, "label_column": label_column},
        splits=tuple(files),
        read=read,
    )  # fmt: skip


def local_files(folder: Path, memo: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 of the data files of a folder; `memo` remembers those of files whose size and time have not changed."""
    known: dict[str, Any] = {}
    if memo.is_file():
        try:
            known = dict(json.loads(memo.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # damaged: what it knew is found again
            known = {}
    found, stamps = {}, {}
    for path in sorted(folder.iterdir()):
        if path.suffix in SUFFIXES and path.is_file():
            stat = path.stat()
            stamp = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
            digest = known.get(stamp)
            if digest is None:
                digest = file_sha256(path)
            found[path.name], stamps[stamp] = {"sha256": digest}, digest
    if stamps.keys() - known.keys():
        with contextlib.suppress(OSError):  # without it the next start reads the files once more
            memo.parent.mkdir(parents=True, exist_ok=True)
            aside = memo.with_name(f".{memo.name}.{secrets.token_hex(8)}.part")
            aside.write_text(json.dumps({**known, **stamps}, indent=1), encoding="utf-8")
            aside.replace(memo)
    return found


def _is_of_split(name: str, split: str) -> bool:
    stem, suffix = Path(name).stem, Path(name).suffix
    return suffix in SUFFIXES and (stem == split or stem.startswith(f"{split}-"))


def read_lines(file: IO[bytes], place: str, *, text_column: str, label_column: str) -> Iterator[tuple[str, str]]:
    """Text and label of each line of jsonl; blank lines are passed over.

    Raises:
        ValueError: with file and line, what is wrong there.
    """
    for number, record in jsonl_objects(file, place):
        text, label = record.get(text_column), record.get(label_column)
        yield _fields(text, label, line_place(place, number), text_column, label_column, list(record))


def read_parquet(file: IO[bytes], place: str, *, text_column: str, label_column: str) -> Iterator[tuple[str, str]]:
    """Text and label of each row; class ids that the Hugging Face metadata names become names.

    Raises:
        ValueError: a column is missing, or a value is not text.
    """
    table = open_parquet(file, place)
    columns = table.schema_arrow.names
    for column in (text_column, label_column):
        if column not in columns:
            raise SourceError(
                f"{place}: no column {column}; there are {', '.join(columns)}; set data.text_column, data.label_column"
            )
    names = _class_names(table.schema_arrow, label_column)
    for number, record in parquet_rows(table, place, {text_column, label_column}):
        text, label = record[text_column], record[label_column]
        if names is not None and isinstance(label, int) and 0 <= label < len(names):
            label = names[label]
        yield _fields(text, label, f"{place}, row {number:,}", text_column, label_column, columns)


def _class_names(schema: Any, column: str) -> list[str] | None:
    """Names of a ClassLabel column, as `datasets` stores them in the file's metadata."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names: list[str] | None = features[column].get("names")
    except (KeyError, TypeError, json.JSONDecodeError, AttributeError):
        return None
    return names


def _fields(
    text: Any, label: Any, where: str, text_column: str, label_column: str, there: list[str]
) -> tuple[str, str]:
    for column, value in ((text_column, text), (label_column, label)):
        if value is None:
            raise SourceError(
                f"{where}: no field {column}; it has {', '.join(there)}; set data.text_column, data.label_column"
            )
    if not isinstance(text, str):
        raise SourceError(f"{where}: {text_column} is {type(text).__name__}, expected a string")
    if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
        raise SourceError(f"{where}: {label_column}={label!r}, expected a name or a class number")
    return whole_characters(text), whole_characters(str(label))


def _count_lines(file: IO[bytes], name: str) -> int:
    return sum(1 for line in decoded_lines(file, name) if line.strip())


# ---------------------------------------------------------------------- hub


def hub_source(name: str, config: str | None, *, text_column: str, label_column: str) -> TextSource:
    """A data set of the Hugging Face hub, streamed.

    Raises:
        SourceError: the hub cannot be reached, or has no such data set.
    """

    def load(split: str) -> Any:
        said = f"the data set {name} of the Hugging Face hub"
        remedy = "check the network, or give data.path=<folder with train.jsonl, validation.jsonl, test.jsonl>"
        if not hub_is_reachable():  # nothing of what is streamed lies in a cache
            raise SourceError(f"{said} cannot be read: it does not answer, or HF_HUB_OFFLINE is set; {remedy}")
        return load_hub_dataset(name, said=said, remedy=remedy, name=config, split=split, streaming=True)

    def read(split: str, limit: int | None, seed: int) -> Iterator[Row]:
        rows = load(split)
        names = getattr(rows.features.get(label_column), "names", None) if rows.features else None
        if limit is not None:  # a whole pass for a sample would download everything: shuffle within a buffer
            rows = rows.shuffle(seed=seed, buffer_size=10 * limit).take(limit)
        for number, record in enumerate(rows):
            text, label = record.get(text_column), record.get(label_column)
            if names is not None and isinstance(label, int):
                label = names[label]
            where = f"{name}/{split}, row {number + 1}"
            yield (number, *_fields(text, label, where, text_column, label_column, list(record)))

    identity = {"hub": name, "config": config, "text_column": text_column, "label_column": label_column}
    return TextSource(identity=identity, splits=SPLITS, read=read)
