"""Checksums of a local file: what COMPLETE lists, and what a server's ETags are compared with."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datamodules.storage.object_store import StoredObject

MOST_PARTS = 10_000  # S3's limit
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class FileDigest:
    """A local file, and the parts that it travels in.

    Attributes:
        size: bytes.
        sha256: of the whole file, hexadecimal.
        md5: of the whole file, hexadecimal.
        part_bytes: size of each part but the last.
        part_md5s: MD5 of each part, 16 bytes.
    """

    size: int
    sha256: str
    md5: str
    part_bytes: int
    part_md5s: tuple[bytes, ...]

    def is_etag(self, etag: str) -> bool:
        """Whether a server that makes ETags of MD5s would give this one to the file."""
        joined = hashlib.md5(b"".join(self.part_md5s), usedforsecurity=False).hexdigest()
        return etag in (self.md5, f"{joined}-{len(self.part_md5s)}")

    def part(self, index: int) -> StoredObject:
        """Part `index` (0 is the first) as a server that makes ETags of MD5s would list it; empty beyond the end."""
        if index >= len(self.part_md5s):
            return StoredObject(0, "")
        size = min(self.part_bytes, self.size - index * self.part_bytes)
        return StoredObject(size, self.part_md5s[index].hex())


def md5_of(content: bytes = b"") -> "hashlib._Hash":
    """An MD5 that guards against damage, not against people."""
    return hashlib.md5(content, usedforsecurity=False)


def file_digest(path: Path, part_bytes: int, advance: Callable[[int], None] = lambda _: None) -> FileDigest:
    """Checksums of a file in one reading, a MiB at a time.

    Args:
        path: the file.
        part_bytes: size of its parts; larger where there would be more than S3 allows.
        advance: told how many bytes have been read.
    """
    size = path.stat().st_size
    if size > part_bytes * MOST_PARTS:
        part_bytes = math.ceil(size / MOST_PARTS / READ_BYTES) * READ_BYTES
    sha256, md5, part_md5 = hashlib.sha256(), md5_of(), md5_of()
    part_md5s: list[bytes] = []
    position = 0
    with path.open("rb") as file:
        while block := file.read(min(READ_BYTES, part_bytes - position % part_bytes)):
            for digest in (sha256, md5, part_md5):
                digest.update(block)
            position += len(block)
            if position % part_bytes == 0:
                part_md5s.append(part_md5.digest())
                part_md5 = md5_of()
            advance(len(block))
    if position % part_bytes or not part_md5s:
        part_md5s.append(part_md5.digest())
    return FileDigest(position, sha256.hexdigest(), md5.hexdigest(), part_bytes, tuple(part_md5s))
