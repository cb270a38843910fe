"""Files of a data folder that are splits by their names and are not read: named, never passed over in silence."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

SPLIT_FILES = ("train", "validation", "test")
"""File names, without their ending, that a folder of data may hold."""
OTHER_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}
ENDINGS = (".jsonl", ".csv", ".parquet", ".json", ".tsv")


def refuse_unread(path: str | Path, names: Iterable[str], found: Collection[str], formats: Sequence[str]) -> None:
    """Refuse a file that would be a split that was not found, had it another name or ending.

    Args:
        path: the folder, for messages.
        names: of all files in it.
        found: splits that are read.
        formats: endings of the files that are read.

    Raises:
        ValueError: naming the first such file.
    """
    for name in sorted(names):
        stem = Path(name).stem.lower().partition("-")[0]  # validation-00000-of-00001.parquet
        split = OTHER_NAMES.get(stem, stem)
        if Path(name).suffix.lower() in ENDINGS and split in SPLIT_FILES and split not in found:
            raise ValueError(
                f"data.path={path}: {name} would not be read; make it {split}{'|'.join(formats)}, or take it out of "
                "the folder"
            )
