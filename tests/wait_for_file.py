"""A callback with which a test holds a run at a step while it does something to the world."""

import time
from pathlib import Path
from typing import Any

import lightning as L


class WaitForFile(L.Callback):
    """Waits before optimizer step `step` until `path` exists."""

    def __init__(self, *, step: int, path: str) -> None:
        self.step = step
        self.path = Path(path)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step - 1:
            deadline = time.monotonic() + 120
            while not self.path.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
