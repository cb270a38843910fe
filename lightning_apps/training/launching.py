"""The processes of a run: how Lightning starts them, how they find each other, and that they end together."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from lightning_apps.process.parent_death import PARENT_VARIABLE
from lightning_apps.process.safe_stop import SIGNALS

GRACE_S = 10.0
"""What the first process has to end by itself once another one has failed; over gloo it learns of it at once."""
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "NCCL")
"""In what torch raises when another rank does not answer."""


class RankError(RuntimeError):
    """Another rank, or the way to it, is at fault."""


@contextlib.contextmanager
def rendezvous(timeout_s: float) -> Iterator[None]:
    """Around the wait for all ranks, which happens in C++: a signal ends the process at once, and failing is one line.

    Raises:
        RankError: a rank did not come in time, or the port is taken.
    """
    in_main = threading.current_thread() is threading.main_thread()
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS} if in_main else {}
    for signum, handler in handlers.items():
        if handler is not signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)
    try:
        yield
    except torch.distributed.DistError as error:
        raise RankError(_why_not_together(str(error), timeout_s)) from error
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def _why_not_together(text: str, timeout_s: float) -> str:
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    if "EADDRINUSE" in text or "address already in use" in text:
        return f"port {os.environ.get('MASTER_PORT')} is in use by another program; set MASTER_PORT to a free one"
    world = os.environ.get("WORLD_SIZE", "?")
    return (
        f"the {world} processes of this run did not meet at {address} within {timeout_s:.0f} s "
        f"({text.splitlines()[0][:120]}); start all of them, see that MASTER_ADDR and MASTER_PORT lead to the first "
        "one, or give them longer with hardware.timeout_s"
    )


@contextlib.contextmanager
def in_company(rank: int) -> Iterator[None]:
    """Around the work of a rank: where it fails because another one is gone, its error is a line that says so.

    Raises:
        RankError: in place of what torch says about its sockets.
    """
    try:
        yield
    except RuntimeError as error:
        is_torchs = isinstance(error, torch.distributed.DistError) or type(error) is RuntimeError
        lost = is_torchs and torch.distributed.is_initialized() and any(sign in str(error) for sign in LOST)
        if not lost:
            raise
        raise RankError(
            f"process {rank} of this run waited for another one that is gone; where that one failed, its own error "
            "stands above or in its output; go on from the last checkpoint with run.resume=auto"
        ) from error


class RankLauncher(_SubprocessScriptLauncher):
    """Lightning's launcher, whose processes live and die together.

    Lightning's own kills the first process five seconds after another one has failed, in the middle of what it writes,
    and leaves the others running when the first one is killed.
    """

    def launch(self, function: Callable, *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the further processes, where nobody else has, and call the function in this one."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            os.environ[PARENT_VARIABLE] = str(os.getpid())  # they are killed when this process ends
            self._call_children_scripts()
            threading.Thread(target=end_with_any, args=(self.procs,), daemon=True, name="ranks").start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def wait(self) -> None:
        """Wait for the further processes, which have nothing left to do, before this one takes them with it."""
        end = time.monotonic() + GRACE_S
        for process in self.procs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(end - time.monotonic(), 0.01))


def end_with_any(processes: Sequence[subprocess.Popen]) -> None:
    """Wait until one of the processes fails; if this one then does not end by itself, end all at once."""
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes):
            break
        time.sleep(0.2)
    if not any(process.poll() for process in processes):
        return
    time.sleep(GRACE_S)
    for process in processes:
        process.kill()
    os.write(2, b"error: another process of this run has failed, see above; this one waited for it in vain\n")
    os._exit(1)
