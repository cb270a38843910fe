"""What a sweep's engine asks of whatever runs its jobs.

A back end is small: it starts a command where there is room, says how far it is, passes signals on, and finds again
what an engine that was killed had started. Retries, time limits, the state and the search are the engine's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol


@dataclass(frozen=True, kw_only=True)
class Task:
    """One job, as a command to run.

    Attributes:
        name: of the job, unique within its sweep; letters, digits and . _ = , + -
        command: words of the train command, overrides included.
        log: what the command's output is appended to.
        accelerator: `hardware.accelerator` of the job.
        devices: `hardware.devices`, processes on each node.
        nodes: `hardware.num_nodes`.
    """

    name: str
    command: Sequence[str]
    log: Path
    accelerator: str
    devices: int
    nodes: int = 1


@dataclass(frozen=True)
class Handle:
    """A task that a back end has taken.

    Attributes:
        key: what the back end knows it by: a process id, a job id of SLURM or Ray; written to the sweep's state.
        where: for people, such as `devices 0,1`; empty where there is nothing to say.
    """

    key: str
    where: str = ""


@dataclass(frozen=True)
class Sign:
    """How far a task is.

    Attributes:
        phase: `queued` until it has a place, then `running`, then `ended`.
        code: exit code of what has ended, negative for a signal that killed it; None where nobody knows it, such as
            that of a process which an earlier engine started: the run's summary.json decides then.
        note: what the back end says of the end in a few words, `out of memory`, `node failed`; may be empty.
        again: the place was lost and not the job's fault (pre-emption, a lost node): the engine submits it again.
    """

    phase: Literal["queued", "running", "ended"]
    code: int | None = None
    note: str = ""
    again: bool = False


class Backend(Protocol):
    """Runs tasks. Nothing here is called by two threads at once, and nothing waits longer than a moment but recover.

    `str()` of it is what the banner says after "at once": `2 on devices 0; 1`.
    """

    @property
    def places(self) -> int:
        """Tasks that the engine may have submitted and not seen end."""

    def submit(self, task: Task) -> Handle:
        """Start a task, or queue it.

        Raises:
            BackendError: it cannot be taken; the job fails with this text and the sweep goes on.
        """

    def poll(self, handle: Handle) -> Sign:
        """How far a task is; the same answer again and again once it has ended."""

    def cancel(self, handle: Handle, signum: int) -> None:
        """Pass a signal on: SIGTERM and SIGUSR1 save and end, SIGINT ends sooner, SIGKILL at once and all children."""

    def recover(self, started: Mapping[str, Handle]) -> Mapping[str, Handle]:
        """Those of the tasks of an engine that is no more that still are to be polled, by name of the job.

        A back end whose tasks end with their engine waits until they have, and returns none.

        Args:
            started: of every job of the sweep that is not done; its key is empty where none was written down, either
                because nothing was started or because the engine was killed while it submitted.
        """

    def close(self) -> None:
        """Let go of what the back end holds: connections, places; tasks have ended by then."""


class BackendError(Exception):
    """A task could not be submitted, in one line."""
