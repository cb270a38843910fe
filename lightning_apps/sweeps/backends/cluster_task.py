"""What a cluster's worker runs for a job: the train command, in a process of its own, with signals passed on."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lightning_apps.process.parent_death import PARENT_VARIABLE

GRACE_S = 60.0
"""How long a job that was told to save may take before its place is given up all the same."""


class TrainTask:
    """The train command; it is told to save and end should this process die.

    Args:
        command: words of the train command.
        log: what its output is appended to.
        folder: that the command starts in: the engine's, for its relative paths.
    """

    def __init__(self, command: Sequence[str], log: Path, folder: Path) -> None:
        self.command, self.log, self.folder = list(command), log, folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command."""
        # the engine's own settings mean nothing on another machine
        environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
        environment[PARENT_VARIABLE] = str(os.getpid())
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: S603
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self.folder,
            )
        return self.process

    def pass_on(self, signum: int) -> None:
        """Hand a signal to the command."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signum)

    def save(self) -> None:
        """Before the place is lost: tell the command to save and end, and wait for it."""
        self.pass_on(signal.SIGUSR1)
        if self.process is not None:
            try:
                self.process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process = None
