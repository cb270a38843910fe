"""Parquet files row by row: only the columns that are asked for are read, and what is wrong is said in one line."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from datamodules.text.hub_access import first_line

ROWS_AT_ONCE = 64
"""Documents may be long: so many are in memory together."""


def open_parquet(file: Path | IO[bytes], source: str) -> Any:
    """A pyarrow ParquetFile.

    Args:
        file: path, or an open file of bytes.
        source: name of the file, for messages.

    Raises:
        ValueError: it is no parquet file, or a damaged one.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{source}: no readable parquet file ({first_line(error)})") from error


def parquet_rows(table: Any, source: str, wanted: Collection[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row number, 1 the first, and fields of each row.

    Fields by the names of all columns, so that a message can list them; those that nobody asked for are None: columns
    that cannot be decoded are no trouble to who does not read them.

    Args:
        table: see open_parquet.
        source: name of the file, for messages.
        wanted: names of the columns to read; one that is not there is passed over.

    Raises:
        ValueError: a wanted column is there twice, or cannot be decoded.
    """
    import pyarrow

    names = table.schema_arrow.names
    refuse_twice(names, wanted, source)
    columns = [name for name in names if name in wanted]
    number = 0
    try:
        for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
            for row in range(batch.num_rows):
                number += 1
                yield number, dict.fromkeys(names) | {name: batch.column(name)[row].as_py() for name in columns}
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}, row {number:,}: not UTF-8; write the file again with clean texts") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{source}, after row {number:,}: {', '.join(columns)} cannot be read ({first_line(error)}); write the "
            "file again"
        ) from error


def refuse_twice(names: Collection[str], wanted: Collection[str], source: str) -> None:
    """Nobody can tell which of two columns of one name is meant.

    Args:
        names: of all columns.
        wanted: of those that are read.
        source: name of the file, for messages.

    Raises:
        ValueError: a wanted column is there twice.
    """
    for name in wanted:
        if (count := list(names).count(name)) > 1:
            raise ValueError(f"{source}: {count} columns are called {name!r}; rename or drop all but one of them")
