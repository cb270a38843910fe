import gc
from collections import Counter

import pytest
import torch

from lightning_apps.callbacks.device_batch_size import FindDeviceBatchSize, fastest, largest_that_fits
from lightning_apps.errors import ConfigError
from lightning_apps.experiments.location.module import LocationModule
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.runs.experiment_run import run_experiment
from tests.asserts.rounding import relative_rounding
from tests.tiny.tiny_runs import LOCATION, directory_of


@pytest.mark.parametrize(("limit", "found"), [(64, 64), (63, 32), (10, 8), (1, 1)])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_halves_until_it_fits(limit, found, error):
    tried = []

    def attempt(size):
        tried.append(size)
        if size > limit:
            raise error

    assert largest_that_fits(attempt, 64) == found
    assert tried == [64 >> number for number in range(len(tried))]


def test_nothing_fits_and_other_errors():
    def too_big(size):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")

    def broken(size):
        raise RuntimeError("shapes do not match")

    with pytest.raises(ConfigError, match="not even one sample fits"):
        largest_that_fits(too_big, 8)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        largest_that_fits(broken, 8)


@pytest.mark.parametrize(
    ("largest", "seconds", "found", "tried"),
    [
        (12, {12: 9.0, 6: 8.0, 3: 7.0, 2: 6.9}, 3, [12, 6, 3, 2]),
        (8, {8: 9.0, 4: 8.6}, 8, [8, 4]),  # not faster by a twentieth
        (2, {2: 9.0, 1: 1.0}, 1, [2, 1]),
        (1, {}, 1, []),
    ],
)
def test_halves_while_that_is_faster(largest, seconds, found, tried):
    asked = []
    assert fastest(lambda size: asked.append(size) or seconds[size], largest) == found
    assert asked == tried


def test_a_step_counts_all_its_micro_batches(composed, monkeypatch, capsys):
    """Eight samples are one micro-batch of eight, or two of four."""
    clock = iter(range(100))
    monkeypatch.setattr("lightning_apps.callbacks.device_batch_size.perf_counter", lambda: float(next(clock)))
    found = []
    step_seconds = FindDeviceBatchSize.step_seconds

    def noted(self, trainer, pl_module, size):
        found.append((size, step_seconds(self, trainer, pl_module, size)))
        return 8.0 / size  # what fits is the fastest

    monkeypatch.setattr(FindDeviceBatchSize, "step_seconds", noted)
    config = composed(*LOCATION, "trainer.max_steps=1", "callbacks.extra.picture=null",
                      "hardware.find_device_batch_size=true", name="clocked")  # fmt: skip
    run_experiment(config)
    assert found == [(8, 1.0), (4, 2.0)]  # a pass takes a tick of the clock
    assert "device_batch_size 8: 1 micro-batch(es)" in capsys.readouterr().out


def test_a_run_keeps_its_global_batch(composed, monkeypatch, capsys):
    """Batches above three samples "do not fit": the losses stay those of the whole batch."""
    run = [*LOCATION, "trainer.max_steps=3", "callbacks.extra.picture=null"]
    whole = composed(*run, name="whole")
    run_experiment(whole)
    loss_sum = LocationModule.loss_sum

    def small_memory(self, batch, **options):
        if self.training and len(batch["input_ids"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss_sum(self, batch, **options)

    monkeypatch.setattr(LocationModule, "loss_sum", small_memory)
    monkeypatch.setattr(FindDeviceBatchSize, "step_seconds", lambda self, trainer, module, size: 1.0)
    searched = composed(*run, "hardware.find_device_batch_size=true", name="searched")
    run_experiment(searched)
    assert "device_batch_size 2: 4 micro-batch(es)" in capsys.readouterr().out
    losses = [[row["train/loss"] for row in read_metrics(directory_of(config).metrics)] for config in (whole, searched)]
    assert losses[1] == pytest.approx(losses[0], rel=relative_rounding(8 * 22))  # tokens of a batch


def test_what_fits_fits_beside_the_optimizers_state(composed, monkeypatch):
    """Before the first step there are no moments and no gradients of earlier micro-batches: as much memory is held."""
    missing, attempt = [], FindDeviceBatchSize.attempt

    def noted(self, trainer, pl_module, size):
        tensors = [entry for entry in gc.get_objects() if type(entry) is torch.Tensor and entry.dtype == torch.uint8]
        wanted = Counter(3 * weight.nbytes for weight in pl_module.net.parameters() if weight.requires_grad)
        missing.append(wanted - Counter(tensor.nbytes for tensor in tensors))  # others, of generators, are there too
        attempt(self, trainer, pl_module, size)

    monkeypatch.setattr(FindDeviceBatchSize, "attempt", noted)
    monkeypatch.setattr(FindDeviceBatchSize, "step_seconds", lambda self, trainer, module, size: 1.0)
    config = composed(*LOCATION, "trainer.max_steps=1", "callbacks.extra.picture=null",
                      "hardware.find_device_batch_size=true", name="beside")  # fmt: skip
    run_experiment(config)
    assert missing == [Counter()]
