"""sample_log.bin: which samples fed each optimizer step, in the order in which they were delivered.

A header of 24 bytes is followed by one record per step, all of one width, so that a step is found by one seek and a
resumed run continues by one truncation. Each record ends its fields with a checksum over itself and the checksum of
the record before: no row can be changed without breaking the chain.

    header  8s magic, uint32 ids per record, uint32 bytes per id, 8 unused bytes
    record  uint64 step, uint32 number of ids, uint32 checksum, ids, padding
"""

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

MAGIC = b"SAMPLOG1"
HEADER = struct.Struct("<8sII8x")
FIELDS = struct.Struct("<QII")
NOT_RECORDED = 0xFFFFFFFF  # as number of ids: a gap that a power cut or an older version left


class SampleLogError(ValueError):
    """The sample log has no such step, or somebody changed it."""


class SampleLogWriter:
    """Appends one record per step.

    Args:
        path: the file.
        ids_per_step: most ids of a step.
        num_samples: ids lie below it; decides between 4 and 8 bytes for each.
    """

    def __init__(self, path: Path, *, ids_per_step: int, num_samples: int) -> None:
        self.path = path
        self.ids_per_step = ids_per_step
        self.dtype = np.dtype("<u4" if num_samples <= 2**32 else "<u8")
        self._width = FIELDS.size + ids_per_step * self.dtype.itemsize
        self._checksum = 0
        self._file: BinaryIO | None = None

    def start_after(self, step: int) -> None:
        """Keep the records up to `step`, drop what an interrupted run wrote beyond, mark missing ones as such.

        Raises:
            SampleLogError: the file is of other data or another batch size.
        """
        self.close()
        if not self.path.exists():
            self.path.write_bytes(HEADER.pack(MAGIC, self.ids_per_step, self.dtype.itemsize))
        self._file = self.path.open("r+b", buffering=0)
        header = self._file.read(HEADER.size)
        if header != HEADER.pack(MAGIC, self.ids_per_step, self.dtype.itemsize):
            raise SampleLogError(
                f"{self.path} was written with another batch size or is no sample log; choose another run.name"
            )
        size = self._file.seek(0, 2)
        present = min(step, (size - HEADER.size) // self._width)
        end = HEADER.size + present * self._width
        self._file.truncate(end)
        self._checksum = 0
        if present:
            self._file.seek(end - self._width)
            self._checksum = FIELDS.unpack(self._file.read(FIELDS.size))[2]
        self._file.seek(end)
        for missing in range(present + 1, step + 1):
            self._write(missing, NOT_RECORDED, b"")

    def append(self, step: int, ids: NDArray[np.int64]) -> None:
        """Record the ids (n,) that fed `step`, at most ids_per_step."""
        self._write(step, len(ids), ids.astype(self.dtype).tobytes())

    def _write(self, step: int, count: int, ids: bytes) -> None:
        assert self._file is not None, "start_after comes first"
        body = ids.ljust(self._width - FIELDS.size, b"\0")
        self._checksum = _checksum(self._checksum, step, count, body)
        self._file.write(FIELDS.pack(step, count, self._checksum) + body)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _checksum(previous: int, step: int, count: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(struct.pack("<IQI", previous, step, count)))


def sample_log_row(path: Path, step: int) -> NDArray[np.int64] | None:
    """Ids (n,) that fed optimizer step `step` (1 is the first); None where the step was not recorded.

    Raises:
        SampleLogError: the sample log does not reach this step, or the record does not fit its checksum.
    """
    with path.open("rb") as file:
        header = file.read(HEADER.size)
        if len(header) < HEADER.size or header[: len(MAGIC)] != MAGIC:
            raise SampleLogError(f"{path} is no sample log")
        _, ids_per_step, id_bytes = HEADER.unpack(header)
        width = FIELDS.size + ids_per_step * id_bytes
        last = (file.seek(0, 2) - HEADER.size) // width
        if not 1 <= step <= last:
            raise SampleLogError(f"{path} holds the steps 1 to {last}, not {step}")
        previous = 0
        if step > 1:
            file.seek(HEADER.size + (step - 2) * width)
            previous = FIELDS.unpack(file.read(FIELDS.size))[2]
        file.seek(HEADER.size + (step - 1) * width)
        found_step, count, checksum = FIELDS.unpack(file.read(FIELDS.size))
        body = file.read(width - FIELDS.size)
    if found_step != step or checksum != _checksum(previous, step, count, body):
        raise SampleLogError(f"{path}: the record of step {step}, or the one before, was changed after it was written")
    if count == NOT_RECORDED:
        return None
    return np.frombuffer(body, dtype=f"<u{id_bytes}", count=count).astype(np.int64)
