"""One bucket of an S3-compatible object store: URLs, requests with retries, and errors that say what to do."""

import asyncio
import base64
import concurrent.futures
import functools
import hashlib
import itertools
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

from datamodules.storage.errors import StorageError, StorageUnavailableError, explained

PATIENCE_VARIABLE = "LIGHTNING_APPS_STORAGE_PATIENCE_S"
"""Environment variable: seconds after which a server that does not answer is given up."""
T = TypeVar("T")
SLOWEST = 1 << 14
"""Bytes a second at which a request may send its body, and no slower."""


def is_remote(path: str) -> bool:
    """Whether a path names a place in an object store."""
    return path.startswith("s3://")


def split_url(url: str) -> tuple[str, str]:
    """`s3://bucket/some/prefix/` -> (`bucket`, `some/prefix`); the prefix may be empty.

    Raises:
        StorageError: it has another form, or holds something that may be a secret.
    """
    if not is_remote(url):
        raise StorageError(f"{url!r} is no URL of an object store: write s3://bucket/prefix")
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if "@" in bucket or "?" in url or "#" in url:  # not repeated in the message: it may hold a key
        raise StorageError(
            "an s3:// URL holds a bucket and a prefix, no '@' before the prefix, '?' or '#'; "
            "credentials belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}", bucket):
        raise StorageError(f"{url!r}: {bucket!r} is no name of a bucket; write s3://bucket/prefix")
    prefix = prefix.strip("/")
    if prefix and (reason := bad_name(prefix)) is not None:
        raise StorageError(f"{url!r}: the prefix {reason}")
    return bucket, prefix


def join_url(url: str, *names: str) -> str:
    """`s3://bucket/prefix` and names below it, checked.

    Raises:
        StorageError: the URL or a name is not allowed.
    """
    bucket, prefix = split_url(url)
    for name in names:
        if (reason := bad_name(name)) is not None:
            raise StorageError(f"{name!r} below {url}: the name {reason}")
    return "s3://" + "/".join(part for part in (bucket, prefix, *names) if part)


def bad_name(name: str) -> str | None:
    """Why a relative path may not be an object's name or a file's below a folder; None if it may.

    Names come from listings and markers, which are data from outside: none may lead out of its folder.
    """
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "has a part that is empty, '.' or '..'"
    if "\\" in name or any(ord(sign) < 32 or ord(sign) == 127 for sign in name):
        return "holds a backslash or a control character"
    try:
        length = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "is not valid Unicode"
    return "is longer than 900 bytes" if length > 900 else None  # S3 keys end at 1,024


@dataclass(frozen=True)
class TransferOptions:
    """How patiently and in what pieces files travel.

    Attributes:
        patience_s: a request is tried again until so many seconds have passed since it was first sent; a connection
            may take an eighth of them, and a silence in a transfer three eighths.
        attempts: most attempts for one request.
        first_delay_s: seconds before the second attempt; doubled each time up to 8 s, and varied by half.
        part_bytes: larger files travel in parts of this size, at least 5 MiB (AWS's lower limit).
        threads: requests under way at once; each holds a part in memory.
        joining_s: a server whose answer was lost may take so long to make an object of its parts.
    """

    patience_s: float = 40.0
    attempts: int = 8
    first_delay_s: float = 0.5
    part_bytes: int = 16 << 20
    threads: int = 4
    joining_s: float = 10.0

    @classmethod
    def from_environment(cls) -> Self:
        """The defaults, with the patience that the environment asks for.

        Raises:
            StorageError: it is no positive number.
        """
        text = os.environ.get(PATIENCE_VARIABLE)
        if text is None:
            return cls()
        try:
            patience_s = float(text)
        except ValueError:
            patience_s = 0.0
        if not 0 < patience_s < float("inf"):
            raise StorageError(f"{PATIENCE_VARIABLE}={text!r}: write a positive number of seconds")
        return cls(patience_s=patience_s)


class StoredObject(NamedTuple):
    """What a listing says of an object: its size in bytes and its ETag."""

    size: int
    etag: str


@functools.cache
def _data_loader() -> Any:
    """What reads botocore's description of S3 from JSON, a third of a second, once for all clients."""
    import botocore.loaders

    return botocore.loaders.create_loader()


def _breaking_socket(silence_s: float, address: tuple[Any, ...]) -> socket.socket:
    """A socket whose connection breaks where the other side takes no more of what is sent.

    aiohttp's timeouts do not see that. Where the system has no such option, the time limit of the request does.
    """
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(silence_s * 1000))
    return made


class ObjectStore:
    """Requests of s3fs to one bucket, each retried; may be used by several threads, but not in a forked child.

    Credentials, region and endpoint are those of the standard AWS environment and configuration files. s3fs's cache of
    listings and its own retries are off: these multiply (25 requests to a server that is gone), know no deadline, say
    nothing, and give up at the first HTTP 500.

    Args:
        bucket: name of the bucket.
        options: patience and retries; None takes them from the environment.
        report: told, at most every ten seconds, that a request is tried again.
    """

    def __init__(
        self, bucket: str, options: TransferOptions | None = None, report: Callable[[str], None] | None = None
    ) -> None:
        import aiobotocore.session
        import s3fs  # half a second, which only those who use it should wait for
        from botocore.handlers import add_expect_header

        self.bucket = bucket
        self.options = options or TransferOptions.from_environment()
        self._report = report
        self._last_report = float("-inf")
        self._stopped = threading.Event()
        self._under_way: set[concurrent.futures.Future[dict[str, Any]]] = set()
        patience_s = self.options.patience_s
        session = aiobotocore.session.get_session()
        session.register_component("data_loader", _data_loader())
        # aiohttp waits for 100-continue without a timeout, and not every server sends it
        session.unregister("before-call.s3", add_expect_header)
        self._fs: Any = s3fs.S3FileSystem(
            session=session,
            skip_instance_cache=True,
            use_listings_cache=False,
            config_kwargs={
                "connect_timeout": patience_s / 8,
                "read_timeout": patience_s * 3 / 8,
                "max_pool_connections": self.options.threads + 1,
                "connector_args": {"socket_factory": functools.partial(_breaking_socket, patience_s / 2)},
                "retries": {"total_max_attempts": 1},
                # other servers than AWS's stumble over checksum trailers; Content-MD5 is sent instead, which all know
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
        )
        self._fs.retries = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Break off what is under way in other threads; no request follows."""
        self._stopped.set()
        for future in list(self._under_way):
            future.cancel()

    def url(self, key: str) -> str:
        """The URL of an object."""
        return f"s3://{self.bucket}/{key}"

    def listing(self, prefix: str) -> dict[str, StoredObject]:
        """The object `prefix`, or else those below it as a folder, as they are now, by key.

        Raises:
            StorageError: the bucket is missing or may not be listed.
        """
        found = self._patiently(self._fs.find, self.url(prefix), detail=True)
        return {
            path.removeprefix(f"{self.bucket}/"): StoredObject(entry["size"], entry["ETag"].strip('"'))
            for path, entry in found.items()
        }

    def read(self, key: str, start: int = 0, end: int | None = None, *, etag: str = "") -> bytes:
        """Bytes start to end of an object.

        Args:
            key: which.
            start: first byte.
            end: behind the last byte; None for all, an empty range is not allowed.
            etag: refuse an object that has another one by now.

        Raises:
            StorageError: there is no such object (code NoSuchKey), or another one by now (code PreconditionFailed).
        """
        extra: dict[str, Any] = {"IfMatch": f'"{etag}"'} if etag else {}
        if end is not None:
            extra["Range"] = f"bytes={start}-{end - 1}"
        content: bytes = self._send("get_object", key, **extra)["Body"]
        if end is not None and len(content) != end - start:
            raise StorageError(
                f"{self.url(key)}: {len(content)} bytes came for bytes {start} to {end}; is it truncated?"
            )
        return content

    def head(self, key: str) -> Mapping[str, Any]:
        """What the server says of one object: ETag, Metadata, ServerSideEncryption, ..."""
        return self._send("head_object", key)

    def put(self, key: str, content: bytes, *, sha256: str = "") -> Mapping[str, Any]:
        """Store a small object whole or not at all; returns the server's answer, with an ETag.

        The server compares the content with its MD5, and keeps the SHA-256 as metadata.
        """
        extra = {"Metadata": {"sha256": sha256}} if sha256 else {}
        return self._send("put_object", key, content, **extra)

    def delete(self, key: str) -> None:
        """Delete an object; one that is not there is no error."""
        self._patiently(self._fs.rm_file, self.url(key))

    def unfinished_uploads(self, key: str) -> list[str]:
        """Ids of uploads of this object that were begun in parts and not finished, oldest first."""
        answer = self._patiently(self._fs.call_s3, "list_multipart_uploads", Bucket=self.bucket, Prefix=key)
        begun = [entry for entry in answer.get("Uploads", []) if entry["Key"] == key]
        return [entry["UploadId"] for entry in sorted(begun, key=lambda entry: entry["Initiated"])]

    def parts(self, key: str, upload_id: str) -> dict[int, StoredObject]:
        """The parts that an unfinished upload has, by number (1 is the first)."""
        parts: dict[int, StoredObject] = {}
        more: dict[str, Any] = {}
        while True:
            page = self._send("list_parts", key, UploadId=upload_id, **more)
            for part in page.get("Parts", []):
                parts[part["PartNumber"]] = StoredObject(part["Size"], part["ETag"].strip('"'))
            if not page.get("IsTruncated"):
                return parts
            more = {"PartNumberMarker": page["NextPartNumberMarker"]}

    def abort_parts(self, key: str, upload_id: str) -> None:
        """Delete the parts of an unfinished upload."""
        self._send("abort_multipart_upload", key, UploadId=upload_id)

    def begin_parts(self, key: str, *, sha256: str) -> str:
        """Begin an object that arrives in parts; returns the id of the upload."""
        return str(self._send("create_multipart_upload", key, Metadata={"sha256": sha256})["UploadId"])

    def put_part(self, key: str, upload_id: str, number: int, content: bytes) -> Mapping[str, Any]:
        """Send part `number` (1 is the first), compared by the server with its MD5; returns the answer, with an ETag.

        Raises:
            StorageError: with code NoSuchUpload where the server has forgotten the upload.
        """
        return self._send("upload_part", key, content, UploadId=upload_id, PartNumber=number)

    def finish_parts(self, key: str, upload_id: str, etags: list[str]) -> str:
        """Make the object of its parts, of which `etags` are in order; returns the object's ETag.

        Raises:
            StorageError: with code NoSuchUpload where the server has forgotten the upload.
        """
        parts = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in enumerate(etags, start=1)]
        answer = self._send("complete_multipart_upload", key, UploadId=upload_id, MultipartUpload={"Parts": parts})
        return str(answer.get("ETag", "")).strip('"')

    def _send(self, method: str, key: str, content: bytes | None = None, **arguments: Any) -> Mapping[str, Any]:
        """The answer to a request of S3's own, by its name in botocore, with a body that the server compares."""
        limit_s = None
        if content is not None:
            digest = hashlib.md5(content, usedforsecurity=False).digest()
            arguments |= {"Body": content, "ContentMD5": base64.b64encode(digest).decode()}
            limit_s = 60 + len(content) / SLOWEST
        return self._patiently(self._attempt, method, {"Bucket": self.bucket, "Key": key, **arguments}, limit_s)

    def _attempt(self, method: str, arguments: Mapping[str, Any], limit_s: float | None) -> Mapping[str, Any]:
        async def answered() -> dict[str, Any]:
            client = await self._fs.set_session()
            answer: dict[str, Any] = await getattr(client, method)(**arguments)
            if method == "get_object":
                async with answer["Body"] as stream:
                    answer["Body"] = await stream.read()
            return answer

        future = asyncio.run_coroutine_threadsafe(answered(), self._fs.loop)
        self._under_way.add(future)
        try:
            return future.result(limit_s)
        finally:
            future.cancel()
            self._under_way.discard(future)

    def _patiently(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """What `call` returns, made again for as long as the server is unavailable and patience lasts.

        Raises:
            StorageError: what went wrong, in words.
        """
        begin = time.monotonic()
        for attempt in itertools.count(1):
            if self._stopped.is_set():
                raise StorageUnavailableError("the transfer was given up")
            try:
                return call(*args, **kwargs)
            except concurrent.futures.CancelledError:
                continue  # by stop
            except Exception as failure:
                error = explained(failure, bucket=self.bucket, endpoint=self._endpoint())
            late = time.monotonic() - begin > self.options.patience_s
            if late or attempt >= self.options.attempts or not isinstance(error, StorageUnavailableError):
                raise error
            if self._report is not None and time.monotonic() - self._last_report > 10:
                self._last_report = time.monotonic()
                self._report(f"{error}; trying again")
            delay_s = min(self.options.first_delay_s * 2 ** (attempt - 1), 8.0) * random.uniform(0.5, 1.5)  # noqa: S311
            self._stopped.wait(delay_s)
        raise AssertionError("unreachable")

    def _endpoint(self) -> str:
        """Scheme, host and port of the server; a user name or password in the URL is not shown."""
        try:
            url = urlsplit(self._fs.s3.meta.endpoint_url)
            port = f":{url.port}" if url.port else ""
        except Exception:  # no client can be made
            return "the server"
        return f"{url.scheme}://{url.hostname}{port}"
