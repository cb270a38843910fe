"""Loggers of other libraries: their trouble (a network, a full disk, their own faults) stops no training."""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from lightning_apps.process.side_products import side_product

TOLERATED_FAILURES = 3
"""So many calls in a row may fail before a logger is left alone: each may wait a minute for a network."""


class SideLogger(Logger):
    """Hands every call to another logger, as a side product; metrics.csv has all values whatever happens to it.

    Args:
        inner: the logger.
    """

    def __init__(self, inner: Logger) -> None:
        super().__init__()
        self.inner = inner
        self._failures = 0

    def _try(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if self._failures >= TOLERATED_FAILURES:
            return
        self._failures += 1
        with side_product(type(self.inner).__name__):
            call(*args, **kwargs)
            self._failures = 0

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
        """What the other library logs to, for who needs it."""
        return getattr(self.inner, "experiment", None)

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
