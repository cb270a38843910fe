"""A step reads the device once, for the guards: every other read lets a GPU wait for the CPU. It casts weights once."""

import contextlib

import lightning as L
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_apps.callbacks.guards import Guards
from lightning_apps.callbacks.sample_log import SampleLog
from lightning_apps.callbacks.weight_average import ExponentialWeightAverage
from lightning_apps.runs.build import build_datamodule, build_module, build_plan, build_step_callbacks, build_trainer
from lightning_apps.training import optimizer_step
from lightning_apps.training.optimizer_step import weights_cast_once
from lightning_apps.verify import write_files
from tests.tiny.tiny_qwen2 import tiny

pytestmark = pytest.mark.numeric

EXPERIMENTS = ("location", "gsm8k", "arxiv", "imdb", "rating")
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::unique_consecutive",
         "aten::masked_select", "aten::_unique2"}  # fmt: skip
"""Operations whose result, or its size, the CPU must know: `.item()`, float(), bool() and if are the first one."""
COUNTED_STEP = 2  # 1 compares the samples with the order, and the last one is logged


class Reads(TorchDispatchMode):
    """Names of the reads in the order in which they come; `tolist` is no operation, and is patched.

    What would lie on a GPU is told apart from what stays on the CPU by its origin: weights, optimizer, batch, and
    whatever is computed from these. A tensor that is made of Python's numbers is read for nothing.
    """

    def __init__(self):
        super().__init__()
        self.found = []
        self.on_device = {}  # storages, which stay alive, so that no address is used twice

    def begin(self, trainer, module, batch):
        averages = [entry.average for entry in trainer.callbacks if isinstance(entry, ExponentialWeightAverage)]
        states = [list(state.values()) for state in trainer.optimizers[0].state.values()]
        weights = [*module.parameters(), *module.buffers()]
        self.mark([weights, averages, states, batch.micro_batches])
        self.__enter__()

    def end(self):
        self.__exit__(None, None, None)

    def mark(self, found):
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.on_device[storage._cdata] = storage

    def is_marked(self, found):
        tensors = [value for value in tree_leaves(found) if isinstance(value, torch.Tensor)]
        return any(tensor.untyped_storage()._cdata in self.on_device for tensor in tensors)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if self.is_marked([args, kwargs]):
            if func.name().partition(".")[0] in READS:
                self.found.append(func.name())
            self.mark(result)
        return result

    def __enter__(self):
        tolist = self.tolist = torch.Tensor.tolist

        def counted(tensor):
            if self.is_marked(tensor):
                self.found.append("tolist")
            return tolist(tensor)

        torch.Tensor.tolist = counted
        return super().__enter__()

    def __exit__(self, *error):
        torch.Tensor.tolist = self.tolist
        return super().__exit__(*error)


class Begin(L.Callback):
    """First of all callbacks: begins to watch with the counted step."""

    def __init__(self, context):
        self.context = context

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step + 1 == COUNTED_STEP:
            self.context.begin(trainer, pl_module, batch)


class End(Begin):
    """Last of all callbacks: ends when the step is over."""

    on_train_batch_start = L.Callback.on_train_batch_start

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == COUNTED_STEP:
            self.context.end()
            self.seen = True


@pytest.fixture
def train(composed, tmp_path):
    """Three steps of an experiment in small, the second one watched."""

    def run(experiment, context, *overrides):
        whole = composed(f"experiment={experiment}", name="whole")
        made = write_files(whole, tmp_path / "files")
        small = [word for word in whole["verify"] if not word.startswith("trainer.")]
        few = ["trainer.max_steps=3", "trainer.max_tokens=null", "trainer.evaluate_every=never",
               "trainer.save_every=never", "trainer.log_every=1000"]  # fmt: skip
        config = composed(f"experiment={experiment}", *small, *made, *few, *overrides, name="small")
        data = build_datamodule(config)
        plan = build_plan(config, data)
        module = build_module(config, data, plan)
        end = End(context)
        step = build_step_callbacks(config, plan, crash_dumps=None)
        callbacks = [Begin(context), *step, SampleLog(tmp_path / "sample_log.bin"), end]
        build_trainer(config, plan, callbacks=callbacks, loggers=[]).fit(module, data)
        assert end.seen
        return module

    return run


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_between_two_logged_steps_a_step_reads_once(train, experiment):
    reads = Reads()
    train(experiment, reads)
    assert reads.found == ["tolist"]


class NoSynchronization:
    """CUDA raises where the CPU would wait for it, but for the guards' one read."""

    def begin(self, trainer, module, batch):
        self.look = Guards.on_before_optimizer_step

        def allowed(guards, *args):
            torch.cuda.set_sync_debug_mode("default")
            self.look(guards, *args)
            torch.cuda.set_sync_debug_mode("error")

        Guards.on_before_optimizer_step = allowed
        torch.cuda.set_sync_debug_mode("error")

    def end(self):
        torch.cuda.set_sync_debug_mode("default")
        Guards.on_before_optimizer_step = self.look


@pytest.mark.gpu
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_gpu_is_waited_for_once_in_a_step(train, experiment):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA here")
    try:
        train(experiment, NoSynchronization(), "hardware=gpu", "hardware.pin_memory=true")
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Casts(TorchDispatchMode):
    """How often each matrix is cast to bfloat16, by name."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def begin(self, trainer, module, batch):
        assert len(batch.micro_batches) > 1
        self.names = {weight.data_ptr(): name for name, weight in module.named_parameters() if weight.ndim == 2}
        self.__enter__()

    def end(self):
        self.__exit__(None, None, None)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and (name := self.names.get(args[0].data_ptr())):
            self.found[name] = self.found.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("experiment", ["gsm8k", "rating"])
def test_micro_batches_share_the_casts_of_weights_and_learn_the_same(train, experiment, monkeypatch):
    words = ["precision=bf16_mixed", "data.device_batch_size=1"]
    shared = Casts()
    module = train(experiment, shared, *words)
    assert set(shared.found.values()) == {1}
    monkeypatch.setattr(optimizer_step, "weights_cast_once", lambda net: contextlib.nullcontext())
    each = Casts()
    other = train(experiment, each, *words)
    assert set(shared.found) == set(each.found)
    assert min(each.found.values()) > 1
    for name, weight in module.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name


def test_casts_end_with_the_step_and_leave_evaluations_inside_alone():
    net = tiny(tie_word_embeddings=False)
    ids = torch.arange(2, 14)[None]
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        with weights_cast_once(net):
            with torch.no_grad():
                first = net(ids).logits
            net(ids).logits.sum().backward()
            assert all(weight.grad is not None for weight in net.parameters())
        assert not torch.is_autocast_cache_enabled()
        with torch.no_grad():
            net.get_output_embeddings().weight.mul_(2)
        with weights_cast_once(net):
            assert torch.equal(net(ids).logits, 2 * first)
