"""What a run makes beside its weights may fail; the run goes on."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_apps.errors import GuardError, first_line
from lightning_apps.process.console import log_file_only, say_once
from lightning_apps.process.safe_stop import StopRun


@contextmanager
def side_product(name: str) -> Iterator[None]:
    """Pictures, pages, prediction files, uploads and loggers stop no training: what fails is said once in one line.

    What ends a run on purpose passes: guards, a stop that was asked for, Ctrl-C.

    Args:
        name: what is made, `summary.png`, for the message; one run says each name once.
    """
    try:
        yield
    except (GuardError, StopRun):
        raise
    except Exception as error:
        said = f": {first_line(error)}" if str(error).strip() else ""
        if say_once(name, f"warning: {name} failed ({type(error).__name__}{said}); the run goes on without it"):
            log_file_only("".join(traceback.format_exception(error)))
