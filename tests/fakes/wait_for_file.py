"""A callback that slows a run down until a test has done something to the world."""

import time
from pathlib import Path
from typing import Any

import lightning as L


class WaitForFile(L.Callback):
    """From optimizer step `step` on, waits up to a second before each step until `path` exists."""

    def __init__(self, *, step: int, path: str) -> None:
        self.step = step
        self.path = Path(path)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        end = time.monotonic() + 1
        while trainer.global_step >= self.step - 1 and not self.path.exists() and time.monotonic() < end:
            time.sleep(0.02)
