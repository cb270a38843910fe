"""A hub of models and data sets on loopback: what huggingface_hub asks of HF_ENDPOINT, kept in a folder."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE_BYTES = 10_000
"""From this size on files go and come as LFS objects."""
NAME = r"[\w.-]+/[\w.-]+"


class HubServer(ThreadingHTTPServer):
    """The server.

    Attributes:
        root: `models/owner/name/...` and `datasets/owner/name/...`, each repository a folder of its files.
        gated: repositories that need a grant nobody has.
        broken: how many more downloads of a file end after half of it.
        token: what a request that writes must bear.
        asked: method and path of each request.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.gated: set[str] = set()
        self.broken = 0
        self.token = "hf_" + "a" * 34
        self.asked: list[tuple[str, str]] = []
        self.objects: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    def repository(self, kind: str, name: str) -> Path:
        """Folder of a repository; it need not exist."""
        return self.root / kind / name


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self._path()
        if found := re.fullmatch(rf"/api/(models|datasets)/({NAME})(?:/revision/[^/]+)?", path):
            self._info(*found.groups())
        elif found := re.fullmatch(rf"/api/(models|datasets)/({NAME})/tree/[^/]+(?:/(.*))?", path):
            if (folder := self._opened(found[1], found[2])) is not None:
                self._tree(folder, (found[3] or "").strip("/"), recursive="recursive=True" in self.path)
        elif found := re.fullmatch(rf"/(datasets/)?({NAME})/resolve/[^/]+/(.+)", path):
            self._file("datasets" if found[1] else "models", found[2], found[3])
        else:
            self._error(404, "EntryNotFound")

    def do_POST(self) -> None:
        path, body = self._path(), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif found := re.fullmatch(rf"/api/(models|datasets)/({NAME})/paths-info/[^/]+", path):
            if (folder := self._opened(*found.groups())) is not None:
                wanted = set(json.loads(body)["paths"])
                self._json([self._entry(folder, name) for name in wanted if (folder / name).exists()])
        elif self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self._error(401, "RepoNotFound")
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            kind = f"{asked.get('type') or 'model'}s"
            self.server.repository(kind, name).mkdir(parents=True, exist_ok=True)
            self._json({"url": f"{self.server.url}/{name}", "private": asked.get("private"), "id": name})
        elif found := re.fullmatch(rf"/api/models/({NAME})/preupload/[^/]+", path):
            files = json.loads(body)["files"]
            self._json(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if file["size"] >= LARGE_BYTES else "regular",
                            "shouldIgnore": False,
                        }
                        for file in files
                    ]
                }
            )
        elif found := re.fullmatch(rf"/({NAME})\.git/info/lfs/objects/batch", path):
            objects = [
                {**entry, "actions": {"upload": {"href": f"{self.server.url}/lfs/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(rf"/api/models/({NAME})/commit/[^/]+", path):
            self._commit(found[1], body)
        else:
            self._error(404, "EntryNotFound")

    def do_PUT(self) -> None:
        self.server.objects[self._path().removeprefix("/lfs/")] = self.rfile.read(int(self.headers["Content-Length"]))
        self._json({})

    def _commit(self, name: str, body: bytes) -> None:
        folder = self.server.repository("models", name)
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "header":
                continue
            value = entry["value"]
            content = (
                self.server.objects[value["oid"]] if entry["key"] == "lfsFile" else base64.b64decode(value["content"])
            )
            (folder / value["path"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / value["path"]).write_bytes(content)
        self._json({"success": True, "commitUrl": f"{self.server.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        return path

    def _opened(self, kind: str, name: str) -> Path | None:
        folder = self.server.repository(kind, name)
        if not folder.is_dir():
            self._error(404, "RepoNotFound")
        elif name in self.server.gated:
            self._error(403, "GatedRepo")
        else:
            return folder
        return None

    def _tree(self, folder: Path, below: str, *, recursive: bool) -> None:
        if not (folder / below).is_dir():
            self._error(404, "EntryNotFound")
            return
        found = (folder / below).rglob("*") if recursive else (folder / below).iterdir()
        self._json(
            [self._entry(folder, name) for name in sorted(path.relative_to(folder).as_posix() for path in found)]
        )

    def _files(self, folder: Path) -> list[str]:
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def _entry(self, folder: Path, name: str) -> dict[str, Any]:
        if (folder / name).is_dir():
            return {"type": "directory", "path": name, "size": 0, "oid": COMMIT}
        content = (folder / name).read_bytes()
        entry = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if len(content) >= LARGE_BYTES:
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry

    def _info(self, kind: str, name: str) -> None:
        if (folder := self._opened(kind, name)) is None:
            return
        siblings = [{"rfilename": file, "size": (folder / file).stat().st_size} for file in self._files(folder)]
        self._json({"_id": "0", "id": name, "sha": COMMIT, "private": False, "siblings": siblings, "tags": []})

    def _file(self, kind: str, repository: str, name: str) -> None:
        if (folder := self._opened(kind, repository)) is None:
            return
        if not (folder / name).is_file():
            self._error(404, "EntryNotFound")
            return
        content = (folder / name).read_bytes()
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Accept-Ranges", "bytes")
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.broken > 0 and len(content) >= LARGE_BYTES:
            self.server.broken -= 1
            self.wfile.write(content[start : start + (len(content) - start) // 2])
            self.close_connection = True
        else:
            self.wfile.write(content[start:])

    def _json(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A running hub with no repository."""
    server = HubServer(tmp_path / "hub")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
