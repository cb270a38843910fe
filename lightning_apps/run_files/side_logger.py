"""Loggers of other libraries: their trouble (a network, a full disk, their own faults) stops no training."""

import queue
import threading
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from lightning_apps.process.side_products import side_product

TOLERATED_FAILURES = 3
"""So many calls in a row may fail before a logger is left alone: each may wait a minute for a network."""
LONGEST_CALL_S = 120.0
"""A call that has not returned by then is waited for no longer: W&B gives up its own start after 90 s."""


class SideLogger(Logger):
    """Hands every call to another logger, as a side product; metrics.csv has all values whatever happens to it.

    The calls are made one after another in a thread of their own, so that one that hangs can be left behind.

    Args:
        inner: the logger.
    """

    def __init__(self, inner: Logger) -> None:
        super().__init__()
        self.inner = inner
        self._failures = 0
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[None]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def _try(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if self._failures >= TOLERATED_FAILURES:
            return
        self._failures += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=type(self.inner).__name__, daemon=True)
            self._thread.start()
        answer: Future[None] = Future()
        self._calls.put((partial(call, *args, **kwargs), answer))
        with side_product(type(self.inner).__name__):
            if not wait([answer], LONGEST_CALL_S).done:
                self._failures = TOLERATED_FAILURES
                raise TimeoutError(f"no answer for {LONGEST_CALL_S:.0f} s")
            answer.result()
            self._failures = 0

    def _work(self) -> None:
        while True:
            call, answer = self._calls.get()
            try:
                call()
                answer.set_result(None)
            except BaseException as error:  # it is raised where the call was asked for
                answer.set_exception(error)

    @property
    def name(self) -> str | None:
        """Of the logger."""
        return self.inner.name

    @property
    def version(self) -> int | str | None:
        """Of the logger."""
        return self.inner.version

    @property
    def root_dir(self) -> str | None:
        """Of the logger."""
        return self.inner.root_dir

    @property
    def log_dir(self) -> str | None:
        """Of the logger."""
        return self.inner.log_dir

    @property
    def save_dir(self) -> str | None:
        """Of the logger."""
        return self.inner.save_dir

    @property
    def group_separator(self) -> str:
        """Of the logger."""
        return self.inner.group_separator

    @property
    def experiment(self) -> Any:
        """What the other library logs to, for who needs it; None where it cannot be begun (a key that W&B refuses)."""
        found: list[Any] = []
        self._try(lambda: found.append(getattr(self.inner, "experiment", None)))
        return found[0] if found else None

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Hand on the values of one step."""
        self._try(self.inner.log_metrics, metrics, step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Hand on the configuration."""
        self._try(self.inner.log_hyperparams, params, *args, **kwargs)

    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:
        """Hand on the model."""
        self._try(self.inner.log_graph, model, input_array)

    def save(self) -> None:
        """Let it write what it keeps."""
        self._try(self.inner.save)

    def after_save_checkpoint(self, checkpoint_callback: Checkpoint) -> None:
        """Hand on that a checkpoint was written."""
        self._try(self.inner.after_save_checkpoint, checkpoint_callback)

    def finalize(self, status: str) -> None:
        """Let it end."""
        self._try(self.inner.finalize, status)
