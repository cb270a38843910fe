"""Jobs on a cluster of Ray: it finds room for them and says when a node is lost."""

import contextlib
import hashlib
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError

from lightning_apps.errors import ConfigError
from lightning_apps.sweeps.backends.backend import BackendError, Handle, Sign, Task
from lightning_apps.sweeps.backends.cluster_task import TrainTask
from lightning_apps.sweeps.backends.settings import RaySettings

CONNECT_S = 30.0
"""How long the actors of an earlier engine may take to answer."""


class RayTask(TrainTask):
    """The train command as an actor: it lives as long as the actor, which outlives the engine."""

    def __init__(self, command: Sequence[str], log: Path, folder: Path) -> None:
        super().__init__(command, log, folder)
        self.start()

    def code(self) -> int | None:
        """Exit code, negative for a signal that killed it; None while it runs."""
        assert self.process is not None
        return self.process.poll()


class RayBackend:
    """Jobs as actors, named after the sweep's folder and the job, so that an engine that was killed finds them again.

    Args:
        folder: of the sweep, on a file system that all nodes share.
        settings: of the cluster.
        places: tasks that may be queued or running at once; None for as many as the cluster has room for now.

    Raises:
        ConfigError: the cluster cannot be reached.
    """

    def __init__(self, folder: Path, settings: RaySettings, *, places: int | None) -> None:
        self.settings = settings
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
        namespace = f"lightning-apps-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}"
        try:
            if settings.address not in (None, "auto", "local"):  # Ray would ask for minutes
                host, _, port = settings.address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
            ray.init(
                address=settings.address,
                namespace=namespace,
                include_dashboard=None if settings.address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (OSError, RuntimeError, ValueError, RayError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"sweep.ray.address={settings.address}: {reason}; start a cluster by `ray start --head`, or leave the "
                "address null for one on this machine"
            ) from error
        room = ray.cluster_resources()
        self.places = places or max(1, int(room.get("GPU", 0) or room.get("CPU", 1) / settings.cpus_per_job))
        self._actors: dict[str, Any] = {}
        self._asked: dict[str, Any] = {}  # by key: the answer that is under way
        self._answered: set[str] = set()
        self._ended: dict[str, Sign] = {}

    def __str__(self) -> str:
        """How many at once, and where."""
        return f"{self.places} on Ray, {len(ray.nodes())} nodes"

    def submit(self, task: Task) -> Handle:
        """Ask for an actor; Ray starts it where there is room."""
        if task.nodes > 1:
            raise BackendError("sweep.backend=ray runs a job on one node: set hardware.num_nodes=1, or use slurm")
        on_gpu = task.accelerator not in ("cpu", "mps") and "GPU" in ray.cluster_resources()
        needed = {
            "num_cpus": self.settings.cpus_per_job * (1 if on_gpu else task.devices),
            "num_gpus": task.devices if on_gpu else 0,
            "resources": dict(self.settings.resources),
        }
        key = f"{task.name}-{os.urandom(4).hex()}"
        try:
            actor = ray.remote(RayTask).options(name=key, lifetime="detached", max_restarts=0, **needed)
            self._actors[key] = actor.remote(list(task.command), task.log.absolute(), Path.cwd())
        except (RayError, ValueError) as error:
            raise BackendError(f"job {task.name}: {str(error).splitlines()[0]}") from error
        return Handle(key, "Ray")

    def poll(self, handle: Handle) -> Sign:
        """By the actor's answer; one that has not answered yet waits for its node."""
        key = handle.key
        if key in self._ended:
            return self._ended[key]
        if key not in self._asked:
            self._asked[key] = self._actors[key].code.remote()
        ready, _ = ray.wait([self._asked[key]], timeout=0)
        if not ready:
            return Sign("running" if key in self._answered else "queued")
        try:
            code = ray.get(self._asked.pop(key))
        except ActorUnavailableError:  # its node does not answer; Ray goes on trying, or says that it is lost
            return Sign("running")
        except RayError as error:  # the actor or its node is gone
            self._ended[key] = Sign("ended", None, f"{type(error).__name__}: node or worker lost", again=True)
            return self._ended[key]
        self._answered.add(key)
        if code is None:
            return Sign("running")
        self._ended[key] = Sign("ended", code)
        self._let_go(key)
        return self._ended[key]

    def cancel(self, handle: Handle, signum: int) -> None:
        """Pass a signal on; a job that waits for its node is taken back."""
        if handle.key in self._ended:
            return
        with contextlib.suppress(RayError):
            self._actors[handle.key].pass_on.remote(signum)
        if handle.key not in self._answered:
            self._ended[handle.key] = Sign("ended", -signum, "cancelled while it waited for a node")
            self._let_go(handle.key)

    def recover(self, started: Mapping[str, Handle]) -> Mapping[str, Handle]:
        """Actors outlive their engine as long as their cluster does."""
        return {name: handle for name, handle in started.items() if self._is_there(handle.key)}

    def _is_there(self, key: str) -> bool:
        try:
            actor: Any = ray.get_actor(key)
            ray.get(actor.code.remote(), timeout=CONNECT_S)
        except (ValueError, RayError):  # no such actor, one that died, or whose node does not answer
            return False
        self._actors[key] = actor
        self._answered.add(key)
        return True

    def close(self) -> None:
        """Leave the cluster; one that was started for this sweep ends with it."""
        ray.shutdown()

    def _let_go(self, key: str) -> None:
        with contextlib.suppress(RayError):
            ray.kill(self._actors[key])
