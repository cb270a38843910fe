"""Fetching a folder from an object store: pieces in parallel, resumed where it ended; whole as folders.py says."""

import contextlib
import glob
import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

from datamodules.storage.errors import StorageError
from datamodules.storage.folder_lock import locked
from datamodules.storage.marker import MARKER, MarkedFile, read_marker
from datamodules.storage.object_store import ObjectStore, StoredObject, TransferOptions, split_url
from datamodules.storage.upload import Bar, Progress


class _Piece(NamedTuple):
    name: str
    start: int
    end: int


def fetch_marker(url: str, *, options: TransferOptions | None = None) -> bytes:
    """COMPLETE below `url`: what an upload that came to its end has left there.

    Raises:
        StorageError: there is none: nothing is there, or an upload is under way or was interrupted.
    """
    bucket, prefix = split_url(url)
    with ObjectStore(bucket, options) as store:
        return _fetch_marker(store, url, f"{prefix}/" if prefix else "")


def _fetch_marker(store: ObjectStore, url: str, base: str) -> bytes:
    try:
        return store.read(base + MARKER)
    except StorageError as error:
        if error.code != "NoSuchKey":
            raise
    if any(key.startswith(base) for key in store.listing(base)):
        raise StorageError(
            f"{url} is incomplete: it has no {MARKER}, so its upload is under way or was interrupted; upload it again "
            "from where it was made"
        )
    raise StorageError(f"{url}: nothing is there; check the URL, and AWS_ENDPOINT_URL")


def download_folder(
    url: str,
    folder: Path,
    *,
    progress: Progress | None = None,
    report: Callable[[str], None] | None = None,
    options: TransferOptions | None = None,
) -> Path:
    """Fetch a whole folder; it appears by one rename, after every file's size and SHA-256 have been compared.

    Files are written to a hidden sibling of `folder`, named after the marker's checksum. A second call goes on there;
    a killed one leaves nothing that could be taken for the folder. Processes that fetch the same one wait for each
    other. The folder holds a copy of COMPLETE.

    Args:
        url: s3://bucket/prefix, the place of an upload.
        folder: where it goes; may be there already if it is this very download, or empty.
        progress: tqdm for a bar; None for silence.
        report: told when a request is tried again.
        options: patience and retries; None takes them from the environment.

    Returns:
        The folder.

    Raises:
        StorageError: the upload is incomplete, absent or damaged (the file is named), the server refuses, or `folder`
            holds something else.
        StorageUnavailableError: the server is out of reach; the same call goes on later.
    """
    bucket, prefix = split_url(url)
    base = f"{prefix}/" if prefix else ""
    options = options or TransferOptions.from_environment()
    with ObjectStore(bucket, options, report) as store:
        marker = _fetch_marker(store, url, base)
        files = read_marker(marker, url)
        if _is_there(folder, marker, files, url):
            return folder
        there = store.listing(base)
        for name, file in files.items():
            _check_listed(url, name, file, there.get(base + name))
        part = folder.with_name(f".{folder.name}.{hashlib.sha256(marker).hexdigest()[:12]}.part")
        part.mkdir(parents=True, exist_ok=True)
        with locked(part, report):
            if _is_there(folder, marker, files, url):  # the process that was waited for has fetched it
                return folder
            _remove_older_parts(folder, part)
            with ThreadPoolExecutor(options.threads) as pool:
                try:
                    _Download(store, pool, url, base, part, files, there).run(progress)
                except BaseException:
                    store.stop()  # else the pool's threads would go on trying
                    raise
            (part / MARKER).write_bytes(marker)
            part.rename(folder)  # replaces an empty folder
    return folder


def _is_there(folder: Path, marker: bytes, files: Mapping[str, MarkedFile], url: str) -> bool:
    """Whether `folder` is this download already; its files are compared by size.

    Raises:
        StorageError: it is something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / MARKER).is_file() or (folder / MARKER).read_bytes() != marker:
        raise StorageError(
            f"{folder} is there already and is not what {url} holds now; delete it, or choose another place"
        )
    for name, file in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != file.size:
            raise StorageError(f"{path} is not as it was downloaded; delete {folder} to download it again")
    return True


def _check_listed(url: str, name: str, file: MarkedFile, found: StoredObject | None) -> None:
    if found is None or found.size != file.size:
        has = "is missing" if found is None else f"has {found.size:,} bytes instead of {file.size:,}"
        raise StorageError(f"{url}/{name} {has}: the upload was damaged; upload it again from where it was made")


def _remove_older_parts(folder: Path, part: Path) -> None:
    """Delete what interrupted downloads of earlier states of the URL have left, unless one is under way."""
    for other in folder.parent.glob(f".{glob.escape(folder.name)}.????????????.part"):
        if other != part:
            with contextlib.suppress(OSError), locked(other, wait=False):
                shutil.rmtree(other)


class _Download:
    """One download under way: pieces are fetched ahead by several threads and written in order by this one."""

    def __init__(
        self,
        store: ObjectStore,
        pool: ThreadPoolExecutor,
        url: str,
        base: str,
        part: Path,
        files: Mapping[str, MarkedFile],
        there: Mapping[str, StoredObject],
    ) -> None:
        self.store = store
        self.pool = pool
        self.url = url
        self.base = base
        self.part = part
        self.files = files
        self.there = there

    def run(self, progress: Progress | None) -> None:
        """Fetch what is missing, compare everything."""
        present = {name: self._present_bytes(name) for name in self.files}
        missing = sum(file.size - present[name] for name, file in self.files.items())
        free = shutil.disk_usage(self.part).free
        if missing > free:
            raise StorageError(
                f"{self.url} needs {missing / 1e9:,.1f} GB, {self.part.parent} has {free / 1e9:,.1f} GB free: make room"
            )
        with Bar(progress, missing, "downloading") as bar:
            damaged = list(self._fetch(list(self.files), present, bar))
            # once more: a resumed piece of an interrupted download may be at fault, or the network
            for name in self._fetch(damaged, dict.fromkeys(damaged, 0), bar):
                raise StorageError(
                    f"{self.url}/{name} is damaged: its SHA-256 is not the one that {MARKER} lists; upload it again "
                    "from where it was made"
                )

    def _present_bytes(self, name: str) -> int:
        """Bytes of a file that an interrupted download has left."""
        path = self.part / name
        size = path.stat().st_size if path.is_file() else 0
        return size if size <= self.files[name].size else 0

    def _fetch(self, names: list[str], present: Mapping[str, int], bar: Bar) -> Iterator[str]:
        """Fetch files from their first missing byte on; yields the names of those whose SHA-256 is wrong, deleted."""
        pieces = (piece for name in names for piece in self._pieces(name, present[name]))
        file: IO[bytes] | None = None
        try:
            for piece, content in self._ahead(pieces):
                path = self.part / piece.name
                if file is None:
                    file, digest = self._open(path, piece.start)
                file.write(content)
                digest.update(content)
                bar.update(len(content))
                if piece.end == self.files[piece.name].size:
                    file.flush()
                    os.fsync(file.fileno())
                    file.close()
                    file = None
                    if digest.hexdigest() != self.files[piece.name].sha256:
                        path.unlink()
                        yield piece.name
        finally:
            if file is not None:
                file.close()

    def _open(self, path: Path, start: int) -> tuple[IO[bytes], "hashlib._Hash"]:
        """A file to write from byte `start` on, and the SHA-256 of what stands before."""
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("r+b" if start else "wb")
        digest = hashlib.sha256()
        while file.tell() < start:
            digest.update(file.read(min(1 << 20, start - file.tell())))
        return file, digest

    def _pieces(self, name: str, start: int) -> Iterator[_Piece]:
        size = self.files[name].size
        if start >= size:
            yield _Piece(name, size, size)  # nothing to fetch, but to compare
        step = self.store.options.part_bytes
        for begin in range(start, size, step):
            yield _Piece(name, begin, min(begin + step, size))

    def _ahead(self, pieces: Iterator[_Piece]) -> Iterator[tuple[_Piece, bytes]]:
        """Pieces with their content, in order; as many are under way as the pool has threads."""
        waiting: deque[tuple[_Piece, Future[bytes]]] = deque()
        for piece in pieces:
            waiting.append((piece, self.pool.submit(self._read, piece)))
            if len(waiting) > self.store.options.threads:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()

    def _read(self, piece: _Piece) -> bytes:
        if piece.start == piece.end:
            return b""
        key = self.base + piece.name
        try:
            return self.store.read(key, piece.start, piece.end, etag=self.there[key].etag)
        except StorageError as error:
            if error.code in ("PreconditionFailed", "NoSuchKey", "InvalidRange"):
                raise StorageError(f"{self.url}/{piece.name} changed while it was downloaded; download again") from None
            raise
