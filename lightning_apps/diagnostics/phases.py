"""Where the time of a run goes: `trainer.profiler=phases`.

Each moment belongs to the innermost phase that is open, so that the table sums to the wall time. Lightning opens
its own actions (callbacks, evaluation, checkpoints), take_step and the network's hooks the parts of a step.
"""

import json
import time
from pathlib import Path

import torch
from lightning.pytorch.profilers import Profiler
from torch import nn

from lightning_apps.run_files.atomic_files import write_text_atomically

STEP_PHASES = ("data", "forward", "loss", "backward", "clip", "optimizer")
PHASES = (*STEP_PHASES, "callbacks", "evaluation", "checkpoint", "other")
MAX_EVENTS = 200_000
"""Events of a trace that a browser still opens; later ones are in the table, not in the trace."""


def phase_of(action: str) -> str | None:
    """The phase that an action of Lightning or take_step opens; None where the one around it goes on."""
    if action in STEP_PHASES:
        return action
    hook = action.rpartition(".")[2]
    if hook == "optimizer_step":
        return "optimizer"
    if hook.endswith("save_checkpoint"):
        return "checkpoint"
    if hook.startswith(("on_validation", "on_test", "validation_", "test_", "val_next")):
        return "evaluation"
    if hook in ("train_dataloader_next", "batch_to_device", "transfer_batch_to_device"):
        return "data"
    return "callbacks" if action.startswith("[Callback]") else None


class PhaseProfiler(Profiler):
    """Counts the wall time of each phase, and keeps a trace for Perfetto (https://ui.perfetto.dev).

    On a GPU it waits for the device wherever the phase changes: a run that is profiled is slower than one that is not.

    Args:
        dirpath: folder of the report and the trace.
        filename: beginning of their names.
    """

    def __init__(self, dirpath: str | Path, filename: str) -> None:
        super().__init__(dirpath=dirpath, filename=filename)
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._began = self._since = time.perf_counter()
        self._open: list[str] = ["other"]
        self._events: list[tuple[str, float, float]] = []  # phase, start and end in seconds

    def watch(self, net: nn.Module) -> None:
        """Tell the body of a network, `forward`, from the rest of the loss."""
        net.register_forward_pre_hook(lambda *_: self.start("forward"))
        net.register_forward_hook(lambda *_: self.stop("forward"), always_call=True)

    def start(self, action_name: str) -> None:
        """Open a phase; inside an evaluation only a checkpoint is one of its own."""
        around = self._open[-1]
        phase = phase_of(action_name) or around
        keeps = around == "checkpoint" or (around == "evaluation" and phase != "checkpoint")
        self._count()
        self._open.append(around if keeps else phase)

    def stop(self, action_name: str) -> None:
        """Close the phase that was opened last."""
        if len(self._open) > 1:
            self._count()
            self._open.pop()

    def _count(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now, phase = time.perf_counter(), self._open[-1]
        self.seconds[phase] += now - self._since
        if self._events and self._events[-1][0] == phase:  # goes on after an action within it
            self._events[-1] = (phase, self._events[-1][1], now - self._began)
        elif len(self._events) < MAX_EVENTS:
            self._events.append((phase, self._since - self._began, now - self._began))
        self._since = now

    def summary(self) -> str:
        """The table: seconds and share of each phase, and their sum."""
        self._count()
        total = sum(self.seconds.values())
        rows = [f"{name:>12}  {seconds:9.2f} s  {seconds / total:6.1%}" for name, seconds in self.seconds.items()]
        return "\n".join([*rows, f"{'in all':>12}  {total:9.2f} s"])

    def describe(self) -> None:
        """Write the table and the trace; called at the end of training, and again of each later test."""
        if self.local_rank != 0 or self.dirpath is None:
            return
        folder = Path(self.dirpath)
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomically(folder / f"{self.filename}.txt", self.summary() + "\n")
        events = [
            {"name": name, "ph": "X", "ts": round(1e6 * start), "dur": round(1e6 * (end - start)), "pid": 0, "tid": 0}
            for name, start, end in self._events
        ]
        write_text_atomically(folder / f"{self.filename}.trace.json", json.dumps({"traceEvents": events}))
