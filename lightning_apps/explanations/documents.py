"""Documents to explain: read from a file, or chosen from many."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.labelled.document_facts import Span, evidence_spans
from datamodules.labelled.labels import class_number, class_positions
from datamodules.text.jsonl import decoded_lines, jsonl_objects, line_place
from lightning_apps.errors import ConfigError, did_you_mean

DEFAULT_COLUMNS = {"text": "text", "label": "label", "id": "id", "evidence_spans": "evidence_spans"}


@dataclass(frozen=True)
class Document:
    """One text, and what is known of it.

    Attributes:
        id: name of the document.
        text: all of it, possibly blank.
        label: name of its class; None where nobody knows.
        evidence: [start, end) characters that the label rests on; None where nobody knows.
    """

    id: str
    text: str
    label: str | None = None
    evidence: Sequence[Span] | None = None


def columns_of(data: Mapping[str, Any]) -> dict[str, str]:
    """Names of the fields in the files of a run's data settings."""
    return {key: data.get(f"{key}_column") or name for key, name in DEFAULT_COLUMNS.items()}


def read_documents(path: Path, *, columns: Mapping[str, str], label_names: Sequence[str]) -> list[Document]:
    """Documents of a .jsonl file, one a line; any other file is one document.

    Args:
        path: the file, in UTF-8.
        columns: what a field is to us (`text`, `id`, `label`, ...) -> its name in the file; only the text must be
            there.
        label_names: the classes that the run knows.

    Raises:
        ConfigError: there is no such file, or a line is wrong, naming it.
    """
    if not path.is_file():
        raise ConfigError(f"input={path}: there is no such file; name a .jsonl file, or a text file of one document")
    try:
        with path.open("rb") as file:
            if path.suffix != ".jsonl":
                return [Document(path.name, "".join(decoded_lines(file, path.name)))]
            documents = [
                document_of(record, path.name, number, columns, label_names)
                for number, record in jsonl_objects(file, path.name)
            ]
    except ValueError as error:
        raise ConfigError(f"input={path}: {error}") from error
    if not documents:
        raise ConfigError(
            f"input={path}: it holds no document; each line must be an object with a field {columns['text']}"
        )
    return documents


def document_of(
    record: Mapping[str, Any], source: str, number: int, columns: Mapping[str, str], label_names: Sequence[str]
) -> Document:
    """One document of line `number` of a file.

    Args:
        record: the fields of the line.
        source: name of the file, for messages.
        number: of the line, from 1.
        columns: what a field is to us (`text`, `id`, `label`, `evidence_spans`) -> its name in the file.
        label_names: the classes that the run knows.

    Raises:
        ValueError: a field is missing or wrong.
    """
    where, column = line_place(source, number), columns["text"]
    if column not in record:
        raise ValueError(
            f"{where}: there is no field {column!r}{did_you_mean(column, list(record))}; it has "
            f"{', '.join(record) or 'none'}; rename the field of the text"
        )
    text, label = record[column], record.get(columns["label"])
    if not isinstance(text, str):
        raise ValueError(f"{where}: {column} is not a text")
    number_of_class = None if label is None else class_number(label, class_positions(label_names))
    if label is not None and number_of_class is None:
        raise ValueError(
            f"{where}: the run knows no label {label!r}{did_you_mean(str(label), list(label_names))}; allowed are "
            f"{', '.join(label_names)}, or no label"
        )
    known = None if number_of_class is None else label_names[number_of_class]
    name = record.get(columns["id"])
    evidence = evidence_spans(record.get(columns["evidence_spans"]), text, where)
    return Document(f"line {number}" if name is None else str(name), text, known, evidence)


def choose_rows(
    names: Sequence[str],
    labels: Sequence[str | None],
    *,
    ids: Sequence[str] | None,
    max_documents: int | None,
    seed: int,
) -> list[int]:
    """Rows of the documents that are asked for, or of as many as are wanted, classes in proportion, in their order.

    Args:
        names: (n,) ids of the documents.
        labels: (n,) their classes.
        ids: those asked for; None leaves the choice to `max_documents`.
        max_documents: how many; None for all.
        seed: of the draw that chooses; the same seed chooses the same documents.

    Raises:
        ConfigError: there is no document of that name.
    """
    if ids is not None:
        rows = {name: row for row, name in enumerate(names)}
        for name in ids:
            if name not in rows:
                raise ConfigError(
                    f"ids={name}: no such document{did_you_mean(name, list(rows))}; there are {len(names):,}, from "
                    f"{names[0]} to {names[-1]}"
                )
        return [rows[name] for name in ids]
    if max_documents is None or max_documents >= len(names):
        return list(range(len(names)))
    source = np.random.Generator(np.random.PCG64(seed))
    groups: dict[str | None, list[int]] = {}
    for row in source.permutation(len(names)).tolist():
        groups.setdefault(labels[row], []).append(row)
    # the k-th of n documents of a class stands at (k + 1/2) / n of the way: every prefix has classes in proportion
    ranked = sorted(
        ((place + 0.5) / len(members), str(label), row)
        for label, members in groups.items()
        for place, row in enumerate(members)
    )
    return sorted(row for _, _, row in ranked[:max_documents])
