"""Folders in an S3-compatible object store: sent and fetched with retries, resumed, and whole or refused.

A folder below a URL is whole if and only if the object COMPLETE is there. It lists every file with size and SHA-256, is
deleted before anything changes, and written after everything has arrived and was looked at again. While an upload is
under way, INCOMPLETE names the objects that are its own; nothing else below the URL is ever deleted.

Credentials, region and endpoint come from the standard AWS environment and configuration files alone
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, ...).
"""

import io
from pathlib import Path
from typing import Any, BinaryIO, Literal

from datamodules.storage.download import download_folder, fetch_marker
from datamodules.storage.errors import StorageError, StorageUnavailableError
from datamodules.storage.marker import MARKER
from datamodules.storage.object_store import ObjectStore, StoredObject, TransferOptions, is_remote, join_url, split_url
from datamodules.storage.upload import UploadReport, folder_files, upload_folder

__all__ = [
    "MARKER",
    "StorageError",
    "StorageUnavailableError",
    "TransferOptions",
    "UploadReport",
    "download_folder",
    "fetch_marker",
    "folder_files",
    "is_remote",
    "join_url",
    "open_file",
    "remote_state",
    "split_url",
    "upload_folder",
]

BUFFER_BYTES = 8 << 20


def remote_state(url: str, *, options: TransferOptions | None = None) -> Literal["complete", "incomplete", "absent"]:
    """Whether a whole folder is below `url`, a part of one, or nothing.

    Raises:
        StorageError: the server refuses or is out of reach.
    """
    bucket, prefix = split_url(url)
    base = f"{prefix}/" if prefix else ""
    with ObjectStore(bucket, options) as store:
        keys = [key for key in store.listing(base) if key.startswith(base)]
    if base + MARKER in keys:
        return "complete"
    return "incomplete" if keys else "absent"


def open_file(path: str, *, options: TransferOptions | None = None) -> BinaryIO:
    """A local file or an s3:// object, open for reading bytes, lines, or any part of it (as pyarrow does).

    An object is read in ranges of eight MiB, each retried; one that is replaced meanwhile is an error, not a mixture.
    Read it in the process that opened it.

    Raises:
        StorageError: there is no such object, or the server refuses or is out of reach; also while reading.
    """
    if not is_remote(path):
        return Path(path).open("rb")
    bucket, key = split_url(path)
    store = ObjectStore(bucket, options)
    try:
        found = store.listing(key).get(key)
        if found is None:
            raise StorageError(f"{path}: there is no such object", "NoSuchKey")
        return io.BufferedReader(_RemoteFile(store, key, found), BUFFER_BYTES)
    except BaseException:
        store.stop()
        raise


class _RemoteFile(io.RawIOBase):
    """An object as a file; BufferedReader asks it for whole buffers."""

    def __init__(self, store: ObjectStore, key: str, found: StoredObject) -> None:
        self._store = store
        self._key = key
        self._found = found
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._found.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        start, end = self._position, min(self._position + len(buffer), self._found.size)
        if end <= start:
            return 0
        buffer[: end - start] = self._store.read(self._key, start, end, etag=self._found.etag)
        self._position = end
        return end - start

    def close(self) -> None:
        self._store.stop()
        super().close()
