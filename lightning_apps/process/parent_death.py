"""A job does not outlive the process that started it, even where that was killed with SIGKILL."""

import ctypes
import os
import signal
import sys

PARENT_VARIABLE = "LIGHTNING_APPS_PARENT"
"""Environment variable in which a sweep tells its jobs its process id."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def stop_with_parent() -> None:
    """Ask for SIGTERM when the process that PARENT_VARIABLE names dies; nothing happens where it is not set.

    A run answers SIGTERM by finishing its optimizer step and saving. Further processes of a run ask for SIGKILL when
    the first one dies: they could finish nothing without it, and in a collective they hear nothing else. Only Linux
    can do it (prctl(2)); elsewhere the job goes on, and the next start of the sweep waits for it.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None or not parent.isdecimal():
        return
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    if sys.platform != "linux":
        return
    signum = signal.SIGKILL if os.environ.get("LOCAL_RANK", "0") != "0" else signal.SIGTERM
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != int(parent):  # it died before the promise was made
        sys.exit(128 + signum)
