"""Commands in processes of their own that need not import torch again: each is forked from one that has."""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

# the server from which they are forked imports and computes nothing, so that a fork loses no thread; elsewhere than on
# Linux libraries do not outlive a fork
CONTEXT = get_context("forkserver") if sys.platform == "linux" else get_context("spawn")


def preload(modules: Sequence[str]) -> None:
    """Say what the server imports, before the first command; what it does not find is left to the processes."""
    CONTEXT.set_forkserver_preload(list(modules))


def run_preloaded(
    module: str, arguments: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run of `python -m module arguments`: its exit code, and as stdout all that it wrote.

    Args:
        module: of this program, with a `main()`.
        arguments: of the command.
        environment: of the process. What a library reads while it is imported comes from the first command's.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        process = CONTEXT.Process(target=_run, args=(module, list(arguments), dict(environment), str(output)))
        process.start()
        process.join()
        said = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
    assert process.exitcode is not None  # it was waited for
    return subprocess.CompletedProcess([module, *arguments], process.exitcode, stdout=said, stderr="")


def _run(module: str, arguments: list[str], environment: dict[str, str], output: str) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    # its own lock is one between processes: where one is killed, multiprocessing's tracker complains that it leaked
    tqdm.set_lock(threading.RLock())
    import_module(module).main()
