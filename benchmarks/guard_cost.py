"""What guards, sample log and logging cost a step of `location` on this machine.

    python -m benchmarks.guard_cost                240 steps, blocks of four with and without them in turn
    python -m benchmarks.guard_cost --steps 480

Two measurements in one run. The share of each callback: time inside its hooks over the time of the step. The
difference: blocks of steps with them and without alternate, each pair of neighbours gives one ratio, and the median of
the ratios is printed with its quartiles; on a busy machine its spread is wider than what is measured, the shares are
not. Without them the gradient norm is still taken and clipped, as training needs it.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning as L
from hydra import compose, initialize_config_dir

from lightning_apps.callbacks.guards import Guards
from lightning_apps.callbacks.sample_log import SampleLog
from lightning_apps.callbacks.step_log import StepLog
from lightning_apps.config.composition import CONF, plain
from lightning_apps.process.safe_stop import SafeStop
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.runs.build import (
    build_callbacks,
    build_datamodule,
    build_loggers,
    build_module,
    build_plan,
    build_trainer,
    quiet_libraries,
)

BLOCK = 4
WARM_UP_BLOCKS = 4
HOOKS = {
    Guards: ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end"),
    SampleLog: ("on_train_batch_start", "on_train_batch_end"),
    StepLog: ("on_train_batch_end",),
}


class Stopwatch(L.Callback):
    """Times whole steps, from its own start hook (first of all callbacks) to its own end hook (last of all)."""

    def __init__(self) -> None:
        self.enabled = True
        self.step_s: dict[bool, list[float]] = {True: [], False: []}
        self.hook_s: dict[str, list[float]] = defaultdict(list)
        self._start = 0.0
        self._inside: dict[str, float] = defaultdict(float)

    def watch(self, callback: L.Callback, hooks: tuple[str, ...]) -> None:
        """Time the hooks of a callback, and leave them out in blocks without."""
        name = type(callback).__name__
        for hook in hooks:
            setattr(callback, hook, self._timed(name, getattr(callback, hook)))

    def _timed(self, name: str, call: Any) -> Any:
        def timed(*args: Any) -> None:
            if not self.enabled:
                return
            start = time.perf_counter()
            call(*args)
            self._inside[name] += time.perf_counter() - start

        return timed

    def begin(self, step: int) -> None:
        """A step starts; every other block goes without."""
        self.enabled = step // BLOCK % 2 == 0
        self._inside.clear()
        self._start = time.perf_counter()

    def end(self, step: int) -> None:
        """A step ends."""
        elapsed = time.perf_counter() - self._start
        if step < WARM_UP_BLOCKS * BLOCK:
            return
        self.step_s[self.enabled].append(elapsed)
        if self.enabled:
            for name, inside in self._inside.items():
                self.hook_s[name].append(inside)


class Begin(L.Callback):
    """First of all callbacks."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the watch."""
        self.watch.begin(batch_idx)


class End(L.Callback):
    """Last of all callbacks."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the watch."""
        self.watch.end(batch_idx)


def measure(num_steps: int, overrides: list[str]) -> Stopwatch:
    """Train `num_steps` steps of `location` in a temporary folder."""
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        fixed = ["hardware=cpu", f"trainer.max_steps={num_steps}", "trainer.evaluate_every=never", "run.name=bench"]
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            config = plain(compose("config", [*fixed, f"run.output_root={folder}", "callbacks=default", *overrides]))
        directory = RunDirectory(Path(folder) / "bench")
        directory.path.mkdir()
        datamodule = build_datamodule(config)
        plan = build_plan(config, datamodule)
        module = build_module(config, datamodule, plan)
        watch = Stopwatch()
        callbacks = build_callbacks(config, directory, plan, SafeStop(None))
        for callback in callbacks:
            if type(callback) in HOOKS:
                watch.watch(callback, HOOKS[type(callback)])
        loggers = build_loggers(config, directory)
        trainer = build_trainer(config, plan, callbacks=[Begin(watch), *callbacks, End(watch)], loggers=loggers)
        trainer.fit(module, datamodule)
    return watch


def blocks(values: list[float]) -> list[float]:
    """Median of each block of steps."""
    return [statistics.median(values[start : start + BLOCK]) for start in range(0, len(values), BLOCK)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=240, help="optimizer steps, half of them with the callbacks")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as model.hidden_size=64")
    options = parser.parse_args()
    watch = measure(options.steps, options.overrides)
    step_ms = {enabled: 1e3 * statistics.median(values) for enabled, values in watch.step_s.items()}
    print(f"step without {step_ms[False]:.2f} ms, with {step_ms[True]:.2f} ms (medians of {len(watch.step_s[True])})")
    whole = 0.0
    for name, values in watch.hook_s.items():
        median_us = 1e6 * statistics.median(values)
        whole += median_us
        slowest = 1e6 * statistics.quantiles(values, n=20)[-1]
        print(f"  {name:13} {median_us:7.1f} µs a step (95 %: {slowest:.1f}), {median_us / step_ms[False] / 10:.3f} %")
    print(f"  {'together':13} {whole:7.1f} µs a step, {whole / step_ms[False] / 10:.3f} %")
    pairs = zip(blocks(watch.step_s[True]), blocks(watch.step_s[False]), strict=False)
    ratios = [100 * (with_them / without - 1) for with_them, without in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"  paired blocks: {middle:+.2f} % (quartiles {low:+.2f} to {high:+.2f} %, {len(ratios)} pairs)")


if __name__ == "__main__":
    main()
