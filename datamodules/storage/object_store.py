"""One bucket of an S3-compatible object store: URLs, requests with retries, and errors that say what to do.

Folders are built on this in storage.py. s3fs makes the client; its conveniences are passed by, because its directory
listings are cached, its retries multiply with botocore's, and its uploads carry no checksum that the server compares.
"""

import asyncio
import base64
import concurrent.futures
import hashlib
import io
import itertools
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from datamodules.storage.errors import StorageError, StorageUnavailableError, explained

PATIENCE_VARIABLE = "LIGHTNING_APPS_STORAGE_PATIENCE_S"
"""Environment variable: seconds after which a server that does not answer is given up."""
READ_BYTES = 1 << 18


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
    """

    patience_s: float = 40.0
    attempts: int = 8
    first_delay_s: float = 0.5
    part_bytes: int = 16 << 20
    threads: int = 4

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


class ObjectStore:
    """Requests to one bucket, each retried; may be used by several threads, but not in a forked child.

    Credentials, region and endpoint are those of the standard AWS environment and configuration files.

    Args:
        bucket: name of the bucket.
        options: patience and retries; None takes them from the environment.
        report: told, at most every ten seconds, that a request is tried again.
    """

    def __init__(
        self, bucket: str, options: TransferOptions | None = None, report: Callable[[str], None] | None = None
    ) -> None:
        import s3fs  # half a second, which only those who use it should wait for

        self.bucket = bucket
        self.options = options or TransferOptions.from_environment()
        self._report = report
        self._last_report = float("-inf")
        self._stopped = threading.Event()
        self._silence_s = self.options.patience_s / 2
        self._fs: Any = s3fs.S3FileSystem(
            skip_instance_cache=True,
            use_listings_cache=False,
            config_kwargs={
                "connect_timeout": self.options.patience_s / 8,
                "read_timeout": self.options.patience_s * 3 / 8,
                "max_pool_connections": self.options.threads + 1,
                "retries": {"total_max_attempts": 1},
                # other servers than AWS's stumble over checksum trailers; Content-MD5 is sent instead, which all know
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
        )
        self._fs.retries = 1
        self._client: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.stop()
        self._fs = self._client = None  # s3fs closes its client when it is collected

    def stop(self) -> None:
        """Give up what is under way in other threads; the store is of no use afterwards."""
        self._stopped.set()

    def url(self, key: str) -> str:
        """The URL of an object."""
        return f"s3://{self.bucket}/{key}"

    def listing(self, prefix: str, *, limit: int | None = None) -> dict[str, StoredObject]:
        """Objects whose key starts with `prefix`, as they are now; at most about `limit`.

        Raises:
            StorageError: the bucket is missing or may not be listed.
        """
        found: dict[str, StoredObject] = {}
        more: dict[str, str] = {}
        while True:
            count = {"MaxKeys": limit} if limit is not None else {}
            page = self._request("list_objects_v2", Prefix=prefix, **count, **more)
            for entry in page.get("Contents", []):
                found[entry["Key"]] = StoredObject(entry["Size"], entry.get("ETag", "").strip('"'))
            if not page.get("IsTruncated") or (limit is not None and len(found) >= limit):
                return found
            more = {"ContinuationToken": page["NextContinuationToken"]}

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
        extra = {"IfMatch": f'"{etag}"'} if etag else {}
        if end is not None:
            extra["Range"] = f"bytes={start}-{end - 1}"
        content: bytes = self._request("get_object", Key=key, **extra)["Body"]
        if end is not None and len(content) != end - start:
            raise StorageError(
                f"{self.url(key)}: {len(content)} bytes came for bytes {start} to {end}; is it truncated?"
            )
        return content

    def head(self, key: str) -> Mapping[str, Any]:
        """What the server says of one object: ETag, Metadata, ServerSideEncryption, ..."""
        answer: Mapping[str, Any] = self._request("head_object", Key=key)
        return answer

    def put(self, key: str, content: bytes, *, sha256: str = "") -> Mapping[str, Any]:
        """Store a small object whole or not at all; returns the server's answer, with an ETag.

        The server compares the content with its MD5, and keeps the SHA-256 as metadata.
        """
        extra = {"Metadata": {"sha256": sha256}} if sha256 else {}
        answer: Mapping[str, Any] = self._request("put_object", Key=key, Body=content, **extra)
        return answer

    def delete(self, key: str) -> None:
        """Delete an object; one that is not there is no error."""
        self._request("delete_object", Key=key)

    def unfinished_uploads(self, key: str) -> list[str]:
        """Ids of uploads of this object that were begun in parts and not finished, oldest first."""
        answer = self._request("list_multipart_uploads", Prefix=key)
        begun = [entry for entry in answer.get("Uploads", []) if entry["Key"] == key]
        return [entry["UploadId"] for entry in sorted(begun, key=lambda entry: entry["Initiated"])]

    def parts(self, key: str, upload_id: str) -> dict[int, StoredObject]:
        """The parts that an unfinished upload has, by number (1 is the first)."""
        parts: dict[int, StoredObject] = {}
        more: dict[str, int] = {}
        while True:
            page = self._request("list_parts", Key=key, UploadId=upload_id, **more)
            for part in page.get("Parts", []):
                parts[part["PartNumber"]] = StoredObject(part["Size"], part["ETag"].strip('"'))
            if not page.get("IsTruncated"):
                return parts
            more = {"PartNumberMarker": page["NextPartNumberMarker"]}

    def abort_parts(self, key: str, upload_id: str) -> None:
        """Delete the parts of an unfinished upload."""
        self._request("abort_multipart_upload", Key=key, UploadId=upload_id)

    def begin_parts(self, key: str, *, sha256: str) -> str:
        """Begin an object that arrives in parts; returns the id of the upload."""
        return str(self._request("create_multipart_upload", Key=key, Metadata={"sha256": sha256})["UploadId"])

    def put_part(self, key: str, upload_id: str, number: int, content: bytes) -> Mapping[str, Any]:
        """Send part `number` (1 is the first), compared by the server with its MD5; returns the answer, with an ETag.

        Raises:
            StorageError: with code NoSuchUpload where the server has forgotten the upload.
        """
        answer: Mapping[str, Any] = self._request(
            "upload_part", Key=key, UploadId=upload_id, PartNumber=number, Body=content
        )
        return answer

    def finish_parts(self, key: str, upload_id: str, etags: list[str]) -> str:
        """Make the object of its parts, of which `etags` are in order; returns the object's ETag.

        Raises:
            StorageError: with code NoSuchUpload where the server has forgotten the upload.
        """
        parts = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in enumerate(etags, start=1)]
        answer = self._request(
            "complete_multipart_upload", Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts}
        )
        return str(answer.get("ETag", "")).strip('"')

    def _request(self, method: str, **arguments: Any) -> dict[str, Any]:
        """A server's answer, asked again for as long as it is unavailable and patience lasts."""
        begin = time.monotonic()
        for attempt in itertools.count(1):
            try:
                return self._attempt(method, arguments)
            except StorageUnavailableError as error:
                late = time.monotonic() - begin > self.options.patience_s
                if late or attempt >= self.options.attempts or self._stopped.is_set():
                    raise
                self._say_retry(f"{error}; trying again")
                delay_s = min(self.options.first_delay_s * 2 ** (attempt - 1), 8.0) * random.uniform(0.5, 1.5)  # noqa: S311
                if self._stopped.wait(delay_s):
                    raise
        raise AssertionError("unreachable")

    def _say_retry(self, text: str) -> None:
        now = time.monotonic()
        if self._report is not None and now - self._last_report > 10:
            self._last_report = now
            self._report(text)

    def _attempt(self, method: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self._stopped.is_set():
            raise StorageUnavailableError("the transfer was given up")
        arguments = {"Bucket": self.bucket, **arguments}
        pulse = _Pulse()
        if "Body" in arguments:
            content = arguments["Body"]
            digest = hashlib.md5(content, usedforsecurity=False).digest()
            arguments |= {"Body": _Body(content, pulse), "ContentMD5": base64.b64encode(digest).decode()}
        future = asyncio.run_coroutine_threadsafe(self._send(method, arguments, pulse), self._fs.loop)
        try:
            # aiohttp's timeouts do not see a body that is stuck in a dead connection: nobody answers, nobody refuses
            while not concurrent.futures.wait([future], timeout=0.2).done:
                if self._stopped.is_set():
                    raise StorageUnavailableError("the transfer was given up")
                if time.monotonic() - pulse.at > self._silence_s:
                    raise StorageUnavailableError(
                        f"{self._endpoint()} was silent for {self._silence_s:.3g} s; check network and AWS_ENDPOINT_URL"
                    )
            return future.result()
        except StorageError:
            raise
        except Exception as error:
            raise explained(error, bucket=self.bucket, endpoint=self._endpoint()) from None
        finally:
            future.cancel()

    async def _send(self, method: str, arguments: Mapping[str, Any], pulse: "_Pulse") -> dict[str, Any]:
        client = await self._fs.set_session()
        if client is not self._client:
            from botocore.handlers import add_expect_header

            # aiohttp waits for 100-continue without a timeout, and not every server sends it
            client.meta.events.unregister("before-call.s3", add_expect_header)
            self._client = client
        answer = await self._fs._call_s3(method, **arguments)
        if method == "get_object":
            chunks = []
            async with answer["Body"] as stream:
                while chunk := await stream.read(READ_BYTES):
                    pulse.beat()
                    chunks.append(chunk)
            answer["Body"] = b"".join(chunks)
        return answer

    def _endpoint(self) -> str:
        """Scheme, host and port of the server; a user name or password in the URL is not shown."""
        url = urlsplit(self._client.meta.endpoint_url if self._client else os.environ.get("AWS_ENDPOINT_URL", ""))
        try:
            port = f":{url.port}" if url.port else ""
        except ValueError:
            port = ""
        return f"{url.scheme}://{url.hostname}{port}" if url.hostname else "the server"


class _Pulse:
    """When a transfer last moved."""

    def __init__(self) -> None:
        self.at = time.monotonic()

    def beat(self) -> None:
        self.at = time.monotonic()


class _Body(io.BytesIO):
    """The content of a request; the connection takes it in small pieces, and each is a sign of life."""

    def __init__(self, content: bytes, pulse: _Pulse) -> None:
        super().__init__(content)
        self._pulse = pulse

    def read(self, size: int | None = -1, /) -> bytes:
        self._pulse.beat()
        return super().read(size)
