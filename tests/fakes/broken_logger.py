"""A logger of another library whose every call fails."""

from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch.loggers import Logger


class BrokenLogger(Logger):
    """Counts what it is asked for, and fails.

    Args:
        save_dir: of the run.
    """

    calls: list[str] = []  # noqa: RUF012 (of all of them, for the test)

    def __init__(self, *, save_dir: Path) -> None:
        super().__init__()

    name = "broken"
    version = ""

    def _fail(self, call: str) -> NoReturn:
        self.calls.append(call)
        raise ConnectionError("the server is gone\nand has a second line")

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Fail."""
        self._fail("log_metrics")

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Fail."""
        self._fail("log_hyperparams")

    def log_graph(self, *args: Any, **kwargs: Any) -> None:
        """Fail."""
        self._fail("log_graph")

    def after_save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Fail."""
        self._fail("after_save_checkpoint")

    def save(self) -> None:
        """Fail."""
        self._fail("save")

    def finalize(self, status: str) -> None:
        """Fail."""
        self._fail("finalize")
