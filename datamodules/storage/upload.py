"""Sending a folder to an object store: pieces in parallel, resumed where it ended; whole as folders.py says."""

import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from datamodules.storage.errors import StorageError, StorageUnavailableError
from datamodules.storage.file_digest import FileDigest, file_digest, md5_of
from datamodules.storage.marker import MARKER, UNDER_WAY, MarkedFile, marker_text, names_text, read_names
from datamodules.storage.object_store import ObjectStore, TransferOptions, bad_name, split_url

LOST_PARTS = ("NoSuchUpload", "InvalidPart", "InvalidPartOrder")
"""What servers answer who have forgotten an upload in parts, or some of them."""
TRIES = 3

Progress = Callable[..., Any]
"""tqdm, or what takes total=, desc=, unit=, unit_scale= and gives something with update(n) and close()."""
T = TypeVar("T")


@dataclass
class UploadReport:
    """What an upload did.

    Attributes:
        sent: names of the files that were sent.
        kept: names of the files that were there already.
        deleted: names of the objects that were deleted.
        sent_bytes: bytes sent.
    """

    sent: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    sent_bytes: int = 0


def upload_folder(
    folder: Path,
    url: str,
    *,
    complete: bool = True,
    leave_out: Callable[[str], bool] | None = None,
    progress: Progress | None = None,
    report: Callable[[str], None] | None = None,
    on_file: Callable[[str], None] | None = None,
    options: TransferOptions | None = None,
) -> UploadReport:
    """Make the objects below `url` equal to the files of `folder`.

    Files that are there with the same checksum are not sent again, nor are parts of large files; so an interrupted
    upload goes on where it ended. What is sent is compared with what was hashed before, and by the server with its
    MD5; at the end all sizes and ETags are read again.

    Args:
        folder: its regular files are sent, those of subfolders too, but for COMPLETE and INCOMPLETE at its top.
        url: s3://bucket/prefix.
        complete: the folder is all there is to send: delete what earlier uploads sent and the folder lacks, and write
            COMPLETE at the end. False only adds files, and deletes COMPLETE where one of them is new.
        leave_out: told a file's name (relative, with `/`); True leaves it out.
        progress: tqdm for a bar; None for silence.
        report: told when a request is tried again.
        on_file: told the name of each file that is known to be on the server.
        options: patience and retries; None takes them from the environment.

    Raises:
        StorageError: the server refuses, or a file changed while it was sent; COMPLETE is then missing, or still that
            of an earlier upload where nothing has been changed.
        StorageUnavailableError: the server is out of reach; the same call goes on later.
    """
    bucket, prefix = split_url(url)
    options = options or TransferOptions.from_environment()
    paths = folder_files(folder, leave_out)
    if not paths:
        raise StorageError(f"{folder} holds no files; nothing to upload to {url}")
    base = f"{prefix}/" if prefix else ""
    with ObjectStore(bucket, options, report) as store, ThreadPoolExecutor(options.threads) as pool:
        try:
            upload = _Upload(store, pool, base, paths, on_file, progress)
            upload.run(complete=complete)
            return upload.done
        except BaseException:
            store.stop()
            raise


def folder_files(folder: Path, leave_out: Callable[[str], bool] | None = None) -> dict[str, Path]:
    """Regular files of a folder by their name relative to it, sorted.

    A symlink to a file counts as the file. One to a folder is passed over if that lies in `folder` as well.

    Raises:
        StorageError: a symlink leads to a folder elsewhere, or a name cannot be that of an object.
    """
    found: dict[str, Path] = {}
    for parent, folders, files in os.walk(folder):
        for entry in (*folders, *files):
            path = Path(parent, entry)
            name = path.relative_to(folder).as_posix()
            if name in (MARKER, UNDER_WAY) or (leave_out is not None and leave_out(name)):
                continue
            if path.is_dir():
                if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                    raise StorageError(
                        f"{path} is a symlink to a folder elsewhere, which is not followed; copy it there"
                    )
            elif path.is_file():
                if (reason := bad_name(name)) is not None:
                    raise StorageError(f"{str(path)!r} cannot be uploaded: its name {reason}")
                found[name] = path
    return dict(sorted(found.items()))


class _Upload:
    """One upload under way: what the server has, and what is still to send."""

    def __init__(
        self,
        store: ObjectStore,
        pool: ThreadPoolExecutor,
        base: str,
        paths: Mapping[str, Path],
        on_file: Callable[[str], None] | None,
        progress: Progress | None,
    ) -> None:
        self.store = store
        self.pool = pool
        self.base = base
        self.paths = paths
        self.on_file = on_file
        self.progress = progress
        self.done = UploadReport()
        self.etags: dict[str, str] = {}
        self.there = store.listing(base)  # ahead of hashing: a wrong key or URL is told at once
        with Bar(progress, sum(path.stat().st_size for path in paths.values()), "checking") as bar:
            tasks = [partial(file_digest, path, store.options.part_bytes, bar.update) for path in paths.values()]
            self.digests = dict(zip(paths, self._together(tasks), strict=True))
        self._lock = threading.Lock()

    def run(self, *, complete: bool) -> None:
        """Send what differs from what is there."""
        store, base, digests, there = self.store, self.base, self.digests, self.there
        marker, under_way = base + MARKER, base + UNDER_WAY
        text = marker_text({name: MarkedFile(digest.size, digest.sha256) for name, digest in digests.items()}).encode()
        marked = store.read(marker) if marker in there else None
        named = read_names(store.read(under_way)) if under_way in there else set()
        owned = named | (read_names(marked) if marked is not None else set())
        stale = sorted(name for name in owned - digests.keys() if base + name in there) if complete else []
        for name in digests:
            if etag := self._same_etag(name):
                self._record(name, etag, None)
        to_send = [name for name in digests if name not in self.etags]
        if not to_send and not stale and (not complete or marked == text):
            return

        if not named >= owned | digests.keys():
            store.put(under_way, names_text(owned | digests.keys()).encode())
        if marked is not None:
            store.delete(marker)
        with Bar(self.progress, sum(digests[name].size for name in to_send), "uploading") as bar:
            small = [name for name in to_send if len(digests[name].part_md5s) == 1]
            self._together([partial(self._send_small, name, bar) for name in small])
            for name in to_send:
                if len(digests[name].part_md5s) > 1:
                    self._send_parts(name, bar)
        for name in stale:
            store.delete(base + name)
            self.done.deleted.append(name)
        self._check_arrival()
        if complete:
            store.put(marker, text)
            store.delete(under_way)

    def _together(self, tasks: Iterable[Callable[[], T]]) -> list[T]:
        """Results of all tasks in order; where one fails, the others are given up."""
        futures = [self.pool.submit(task) for task in tasks]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException as error:
            for future in futures:
                future.cancel()
            if not (isinstance(error, StorageError) and error.code in LOST_PARTS):  # which is begun anew
                self.store.stop()
            wait(futures)
            raise
        return [future.result() for future in futures]

    def _record(self, name: str, etag: str, sent_bytes: int | None) -> None:
        with self._lock:
            self.etags[name] = etag
            (self.done.kept if sent_bytes is None else self.done.sent).append(name)
            self.done.sent_bytes += sent_bytes or 0
            if self.on_file is not None:
                self.on_file(name)

    def _same_etag(self, name: str) -> str:
        """The ETag of the object if it is proven to hold the file already, else empty."""
        digest, found = self.digests[name], self.there.get(self.base + name)
        if found is None or found.size != digest.size or not found.etag:
            return ""
        if digest.is_etag(found.etag):
            return found.etag
        head = self.store.head(self.base + name)
        is_same = not _is_made_of_md5(found.etag, head) and head.get("Metadata", {}).get("sha256") == digest.sha256
        return found.etag if is_same else ""

    def _send_small(self, name: str, bar: "Bar") -> None:
        digest = self.digests[name]
        answer = self.store.put(self.base + name, self._part(name, 0), sha256=digest.sha256)
        self._record(name, self._arrived(name, answer, digest.md5), digest.size)
        bar.update(digest.size)

    def _send_parts(self, name: str, bar: "Bar") -> None:
        digest, key = self.digests[name], self.base + name
        indices = range(len(digest.part_md5s))
        for _ in range(TRIES):
            upload_id, present = self._unfinished(key, digest)
            upload_id = upload_id or self.store.begin_parts(key, sha256=digest.sha256)

            def send(index: int, upload_id: str = upload_id, present: Collection[int] = present) -> str:
                part = digest.part(index)
                etag = part.etag
                if index + 1 not in present:
                    answer = self.store.put_part(key, upload_id, index + 1, self._part(name, index))
                    etag = self._arrived(name, answer, etag)
                bar.update(part.size)
                return etag

            try:
                etags = self._together([partial(send, index) for index in indices])
                etag = self.store.finish_parts(key, upload_id, etags)
            except StorageError as error:
                if error.code not in LOST_PARTS:
                    raise
                etag = self._finished_late(key, upload_id, digest)
            if etag:
                self._record(name, etag, sum(digest.part(index).size for index in indices if index + 1 not in present))
                return
        raise StorageUnavailableError(f"{self.store.url(key)}: the server loses parts of it; try again later")

    def _finished_late(self, key: str, upload_id: str, digest: FileDigest) -> str:
        """The ETag of an object whose parts the server says to have lost; empty if it has.

        A server that was slow to join them may have done so: the answer was no longer waited for, and the second
        request found no parts. Servers under load lose some, too.
        """
        deadline = time.monotonic() + self.store.options.joining_s
        while True:
            found = self.store.listing(key).get(key)
            if found is not None and found.size == digest.size and digest.is_etag(found.etag):
                return found.etag
            if time.monotonic() > deadline:
                break
            time.sleep(self.store.options.first_delay_s)
        try:
            self.store.abort_parts(key, upload_id)
        except StorageUnavailableError:
            raise
        except StorageError:  # it does not know the upload any more
            pass
        return ""

    def _unfinished(self, key: str, digest: FileDigest) -> tuple[str, set[int]]:
        """An interrupted upload of this very file (empty: there is none), and the parts that it has.

        Others of the same object are aborted: nobody will finish them, and their parts cost money. Besides, not every
        server takes another content for a part that it has.
        """
        try:
            for upload_id in reversed(self.store.unfinished_uploads(key)):
                present = self.store.parts(key, upload_id)
                if all(part == digest.part(number - 1) for number, part in present.items()):
                    return upload_id, set(present)
                self.store.abort_parts(key, upload_id)
        except StorageUnavailableError:
            raise
        except StorageError:  # not allowed to look, or a server that answers NoSuchUpload where there is none
            pass
        return "", set()

    def _part(self, name: str, index: int) -> bytes:
        digest, path = self.digests[name], self.paths[name]
        with path.open("rb") as file:
            file.seek(index * digest.part_bytes)
            content = file.read(digest.part_bytes)
        if md5_of(content).digest() != digest.part_md5s[index]:
            raise StorageError(f"{path} changed while it was uploaded; upload again when nobody writes to it")
        return content

    def _arrived(self, name: str, answer: Mapping[str, Any], md5: str) -> str:
        """The ETag in an answer; servers that do not look at Content-MD5 tell by it what arrived."""
        etag = str(answer.get("ETag", "")).strip('"')
        if _is_made_of_md5(etag, answer) and etag != md5:
            raise StorageError(f"{self.store.url(self.base + name)} arrived damaged; upload again")
        return etag

    def _check_arrival(self) -> None:
        there = self.store.listing(self.base)
        for name, digest in self.digests.items():
            found = there.get(self.base + name)
            url = self.store.url(self.base + name)
            if found is None or found.size != digest.size:
                has = "is missing" if found is None else f"has {found.size:,} bytes instead of {digest.size:,}"
                raise StorageError(f"{url} {has} after the upload; does somebody else write there? Upload again")
            same = found.etag == self.etags[name] or digest.is_etag(found.etag)
            if not same and re.fullmatch(r"[0-9a-f]{32}(-\d+)?", found.etag):
                raise StorageError(
                    f"{url} holds something else after the upload; does somebody write there? Upload again"
                )


def _is_made_of_md5(etag: str, answer: Mapping[str, Any]) -> bool:
    """Whether an ETag is an MD5, or one of MD5s; with SSE-KMS and SSE-C it only looks like that."""
    encrypted = "kms" in str(answer.get("ServerSideEncryption", "")) or "SSECustomerAlgorithm" in answer
    return not encrypted and re.fullmatch(r"[0-9a-f]{32}(-\d+)?", etag) is not None


class Bar:
    """A progress bar that several threads move.

    Args:
        progress: what makes the bar, as tqdm does; None is silent.
        total: bytes to come; nothing is shown where it is 0.
        description: what stands before the bar.
    """

    def __init__(self, progress: Progress | None, total: int, description: str) -> None:
        self._bar = None
        if progress is not None and total:
            self._bar = progress(total=total, desc=description, unit="B", unit_scale=True)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def update(self, num_bytes: int) -> None:
        """So many bytes more are done."""
        if self._bar is not None:
            with self._lock:
                self._bar.update(num_bytes)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
