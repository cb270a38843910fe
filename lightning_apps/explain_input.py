"""Documents to explain: from a file, or chosen from a split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_apps.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Document:
    """One text, and what is known of it.

    Attributes:
        id: name of the document.
        text: as it is, possibly blank.
        label: class, where it is known.
        evidence: [start, end) characters that the label rests on; None where nobody knows.
    """

    id: str
    text: str
    label: str | None = None
    evidence: list[list[int]] | None = None


def read_documents(path: Path, *, text_column: str, label_column: str, label_names: Sequence[str]) -> list[Document]:
    """Documents of a .jsonl file, one a line; any other file is one document.

    Fields of a line: the text, and where there are any `id`, the label and `evidence_spans`.

    Raises:
        ConfigError: there is no such file, or a line is wrong, naming it.
    """
    from datamodules.labelled_text import decode_line, json_object

    if not path.is_file():
        raise ConfigError(f"input={path}: there is no such file; name a .jsonl file, or a text file of one document")
    columns = {"text": text_column, "label": label_column}
    documents, lines = [], []
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = decode_line(raw, path.name, number)
                if path.suffix != ".jsonl":
                    lines.append(line)
                elif line.strip():
                    record = json_object(line, path.name, number)
                    where = f"input={path.name}, line {number:,}"
                    documents.append(document_of(record, where, f"line {number}", columns, label_names))
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"input={path}: {error}") from error
    if path.suffix != ".jsonl":
        return [Document(path.name, "".join(lines))]
    if not documents:
        raise ConfigError(f"input={path}: it holds no document; each line must be an object with a field {text_column}")
    return documents


def document_of(
    record: dict[str, Any], where: str, name: str, columns: dict[str, str], label_names: Sequence[str]
) -> Document:
    """One document of a jsonl record.

    Raises:
        ConfigError: a field is missing or wrong.
    """
    column = columns["text"]
    if column not in record:
        hint = did_you_mean(column, list(record))
        raise ConfigError(
            f"{where}: there is no field {column!r}{hint}; it has {', '.join(record) or 'none'}; name the right one "
            "with text_column=..."
        )
    text, label, evidence = record[column], record.get(columns["label"]), record.get("evidence_spans")
    if not isinstance(text, str):
        raise ConfigError(f"{where}: {column} is not a text")
    if label is not None and label not in label_names:
        hint = did_you_mean(str(label), list(label_names))
        raise ConfigError(
            f"{where}: the run knows no label {label!r}{hint}; allowed are {', '.join(label_names)}, or no label"
        )
    if evidence is not None and not _are_spans(evidence, len(text)):
        raise ConfigError(
            f"{where}: evidence_spans must be a list of [start, end) characters with 0 <= start < end <= {len(text):,}"
        )
    return Document(str(record.get("id", name)), text, label, evidence)


def _are_spans(value: Any, length: int) -> bool:
    return isinstance(value, list) and all(
        isinstance(span, list)
        and len(span) == 2
        and all(isinstance(end, int) and not isinstance(end, bool) for end in span)
        and 0 <= span[0] < span[1] <= length
        for span in value
    )


def choose_documents(
    documents: Sequence[Document], *, ids: Sequence[str] | None, max_documents: int | None, seed: int
) -> list[Document]:
    """Those named, or as many as are wanted, classes in proportion, in the order of the data.

    Args:
        documents: of a split or file.
        ids: names; None leaves the choice to `max_documents`.
        max_documents: how many; None for all.
        seed: of the choice.

    Raises:
        ConfigError: a name is unknown.
    """
    if ids is not None:
        there = {document.id: document for document in documents}
        for name in ids:
            if name not in there:
                hint = did_you_mean(name, list(there))
                raise ConfigError(
                    f"ids={name}: no such document{hint}; there are {len(there):,}, from {documents[0].id} to "
                    f"{documents[-1].id}"
                )
        return [there[name] for name in ids]
    if max_documents is None or max_documents >= len(documents):
        return list(documents)
    source = np.random.Generator(np.random.PCG64(seed))
    groups: dict[str | None, list[int]] = {}
    for row in source.permutation(len(documents)).tolist():
        groups.setdefault(documents[row].label, []).append(row)
    # the k-th of n documents of a class stands at (k + 1/2) / n of the way: every prefix has classes in proportion
    ranked = sorted(
        ((place + 0.5) / len(rows), str(label), row) for label, rows in groups.items() for place, row in enumerate(rows)
    )
    return [documents[row] for row in sorted(row for _, _, row in ranked[:max_documents])]
