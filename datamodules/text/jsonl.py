r"""JSON Lines: the one reader and the one writer of the project.

A line ends at LF, CRLF or CR and nowhere else. `str.splitlines` also splits at U+0085, U+2028 and six more characters,
which JSON may hold as they are: real reviews do.

NUL and halves of surrogate pairs, which JSON can write (\u0000, \ud800), are characters like any other here: a row is
given back as it was written. Who needs Unicode that can be encoded, as tokenizers do, takes `whole_characters` of it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from datamodules.storage.atomic_files import written_aside


def read_jsonl(path: Path, *, source: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number, 1 the first, and object of each line of a file that is not blank.

    Args:
        path: of the file.
        source: its name in messages; None for its path.

    Raises:
        ValueError: see json_object and decode_line.
    """
    with path.open("rb") as file:
        yield from jsonl_objects(file, str(path) if source is None else source)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All objects of a file; see read_jsonl."""
    return [row for _, row in read_jsonl(path)]


def jsonl_objects(lines: Iterable[bytes], source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line that is not blank.

    Args:
        lines: bytes as an open file gives them, of any length.
        source: name of the file, for messages.

    Raises:
        ValueError: see json_object and decode_line.
    """
    for number, line in enumerate(decoded_lines(lines, source), start=1):
        if line.strip():
            yield number, json_object(line, source, number)


def decoded_lines(lines: Iterable[bytes], source: str) -> Iterator[str]:
    """Lines of UTF-8 with their ends, a byte order mark taken off.

    Args:
        lines: bytes as an open file gives them.
        source: name of the file, for messages.

    Raises:
        ValueError: see decode_line.
    """
    # splitlines of bytes, unlike that of texts, splits at LF, CRLF and CR alone; JSON has no bare CR inside a text
    pieces = (piece for line in lines for piece in line.splitlines(keepends=True))
    for number, piece in enumerate(pieces, start=1):
        yield decode_line(piece, source, number)


def line_place(source: str, number: int) -> str:
    """Where line `number` is, in words."""
    return f"{source}, line {number:,}"


def decode_line(line: bytes, source: str, number: int) -> str:
    """One line as text.

    Raises:
        ValueError: it is not UTF-8, naming the line and the byte.
    """
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{line_place(source, number)}: byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8; save the "
            "file as UTF-8"
        ) from error


def json_object(line: str, source: str, number: int) -> dict[str, Any]:
    """The JSON object in a line.

    Raises:
        ValueError: it holds something else, nests too deep for the parser, or names a field twice.
    """
    where = line_place(source, number)
    try:
        record = json.loads(line.rstrip("\r\n"), object_pairs_hook=_fields_once)
    except _FieldTwiceError as error:
        raise ValueError(f"{where}: the field {error} is there twice; keep one of them") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: not JSON ({error.msg} at column {error.colno:,}); each line must be one object, whole and alone"
        ) from error
    except ValueError as error:  # a number of more digits than Python reads
        raise ValueError(f"{where}: not JSON that can be read ({error}); mend or remove the line") from error
    except RecursionError as error:
        raise ValueError(f"{where}: JSON nested too deep to be read; mend or remove the line") from error
    if not isinstance(record, dict):
        shown = line.strip()
        raise ValueError(
            f"{where}: {shown if len(shown) <= 40 else shown[:37] + '...'} is not a JSON object; each line must be one"
        )
    return record


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one object a line; the file is there whole or not at all.

    Args:
        path: where to; its folder is made.
        rows: what read_jsonl gives back: equal values, but null for NaN and infinity, which JSON lacks.
    """
    with written_aside(path) as file:
        file.writelines(json_line(row).encode("ascii") for row in rows)


def json_line(row: Mapping[str, Any]) -> str:
    """A row as one line with its end; NaN and infinity are null, dates, decimals and bytes are text.

    All but ASCII is escaped: no reader can split inside a row, and halves of surrogate pairs can be written at all.
    """
    try:
        return json.dumps(row, allow_nan=False, default=_as_text) + "\n"
    except ValueError:
        finite = json.loads(json.dumps(row, default=_as_text), parse_constant=lambda _: None)
        return json.dumps(finite) + "\n"


def _as_text(value: object) -> str:
    """What a column of parquet may hold and JSON has no word for: bytes of UTF-8 as they read, others in hexadecimal.

    Raises:
        TypeError: it is something else, a slip of the program.
    """
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.hex()
    if isinstance(value, date | time | timedelta | Decimal | UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def whole_characters(text: str) -> str:
    """The text with `?` in place of each half of a surrogate pair, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


class _FieldTwiceError(Exception):
    """An object names a field twice; Python would keep the second in silence."""


def _fields_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        raise _FieldTwiceError(repr(next(name for name in names if names.count(name) > 1)))
    return fields
