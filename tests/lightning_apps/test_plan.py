"""`plan`: exact counts, memory by part, the first setting that fits, and nothing left behind."""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from lightning_apps import plan, train
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.runs import forecast, probe
from lightning_apps.runs.build import build_datamodule, build_module, build_plan
from lightning_apps.runs.memory_estimate import AvailableMemory
from tests.tiny.tiny_runs import ARXIV, IMDB, LOCATION, RATING

STEPS = ["trainer.max_steps=20", "trainer.evaluate_every=8", "trainer.save_every=6", "callbacks.checkpoints.keep=2"]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(probe, "PROBE_S", 0.0)


@pytest.fixture
def call(tmp_path, cache_root, monkeypatch, capsys):
    """Run the command in a folder of its own; returns exit code, stdout and stderr. What it wrote is an error."""
    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def run(*words, command=plan):
        monkeypatch.setattr(sys, "argv", ["plan", *words, f"run.cache_root={cache_root}"])
        code = 0
        try:
            command.main()
        except SystemExit as stopped:
            code = stopped.code
        out, err = capsys.readouterr()
        assert command is not plan or [*Path("../temporary").iterdir()] == []
        return code, out, "".join(line for line in err.splitlines(keepends=True) if "srun" not in line)

    return run


@pytest.fixture
def planned(call):
    """The forecast as JSON."""

    def run(*words):
        code, out, err = call(*words, "format=json")
        assert (code, err) == (0, "")
        assert [*Path.cwd().iterdir()] == []
        return json.loads(out)

    return run


def test_counts_are_those_of_the_run_and_of_its_parts(planned, composed):
    found = planned(*LOCATION, *STEPS, "optimizer=adamw", "callbacks.weight_average=null")
    config = composed(*LOCATION, *STEPS, "optimizer=adamw")
    data = build_datamodule(config)
    run = build_plan(config, data)
    module = build_module(config, data, run)
    weights = 4 * sum(parameter.numel() for parameter in module.parameters())
    assert found["plan"]["total_steps"] == 20
    assert found["plan"]["total_tokens"] == run.total_tokens
    assert found["plan"]["evaluation_steps"] == [8, 16, 20]
    assert found["plan"]["save_steps"] == [6, 12, 18]
    assert found["epochs"] == 20 / -(-data.num_train_samples // 8)
    assert found["checkpoint_bytes"] == 3 * weights  # and two moments of Adam
    assert found["disk_bytes"] == 3 * weights * 4  # best, last and two periodic ones
    one = found["memory"]["one device"]
    assert (one["weights"], one["gradients"], one["optimizer"]) == (weights, weights, 2 * weights)
    assert "exchange" not in one
    two = found["memory"]["ddp x 2"]
    assert (two["weights"], two["optimizer"], two["exchange"]) == (weights, 2 * weights, weights)
    shards = found["memory"]["fsdp x 8"]
    assert (shards["weights"], shards["optimizer"]) == (-(-weights // 8), -(-weights // 4))
    block = sum(4 * parameter.numel() for parameter in module.net.model.layers[0].parameters())
    assert shards["exchange"] == (weights - block) + block + max(weights - block, block)
    assert list(found["memory"]) == ["one device", "ddp x 2", "ddp x 8", "fsdp x 2", "fsdp x 8"]
    assert found["no_probe"] is None
    assert found["fits"]
    assert found["first_that_fits"] == found["setting"]
    assert sum(one.values()) >= found["probe"]["peak_bytes"] - 1  # beside it only what rounding takes


def test_learning_rates_are_those_that_training_logs(planned, composed, call):
    words = [*LOCATION, *STEPS, "scheduler=cosine", "scheduler.warmup_steps=5", "trainer.log_every=1",
             "optimizer.groups=[{pattern: embed, lr: 0.5, weight_decay: 0.0}]"]  # fmt: skip
    found = planned(*words)
    assert call(*words, "run.name=real", command=train)[0] == 0
    rows = read_metrics(Path("outputs/location/real/metrics.csv"))
    logged = [row["train/learning_rate"] for row in rows if "train/learning_rate" in row]
    assert len(logged) == 20
    expected = {"start": logged[0], "warmup": logged[5], "half": logged[10], "end": logged[19]}
    assert found["learning_rate"] == pytest.approx(expected, rel=1e-12)  # both in float64, in another order
    assert found["learning_rate"]["warmup"] == 0.5
    assert found["curve"] == pytest.approx([logged[round(19 * point / 39)] for point in range(40)], rel=1e-12)


def test_a_checkpoint_has_as_many_bytes_of_tensors_as_was_planned(planned, call):
    words = [*LOCATION, "trainer.max_steps=2", "optimizer=muon", "callbacks.weight_average.decay=0.9"]
    expected = planned(*words)["checkpoint_bytes"]
    assert call(*words, "run.name=real", command=train)[0] == 0
    state = torch.load("outputs/location/real/checkpoints/last.ckpt", weights_only=True)
    found = {}

    def walk(node):
        if isinstance(node, torch.Tensor):
            found[node.untyped_storage().data_ptr()] = node.nbytes if node.dim() else 0  # counters left out
        for value in node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ():
            walk(value)

    walk({key: state[key] for key in ("state_dict", "optimizer_states", "current_model_state") if key in state})
    assert sum(found.values()) == expected


EXPERIMENTS = {
    "location": LOCATION,
    "imdb": IMDB,
    "rating": [*RATING, "trainer.max_steps=4", "trainer.max_epochs=null", "trainer.evaluate_every=2"],
    "arxiv": ARXIV,
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_planned_with_a_probe(name, call):
    code, out, err = call(*EXPERIMENTS[name])
    assert (code, err) == (0, "")
    assert [*Path.cwd().iterdir()] == []
    said = {line[:12].strip(): line[14:] for line in out.splitlines()}
    assert {"length", "budget", "rate", "checkpoints", "speed", "cost", "time", "weights", "a device"} <= set(said)
    assert said["fits"] == "as it is"
    assert max(map(len, out.splitlines())) <= 80


def test_gsm8k_is_planned_with_a_probe(call, small_gsm8k):
    code, out, err = call(
        "experiment=gsm8k", f"data.path={small_gsm8k}/data", f"model.pretrained={small_gsm8k}/model",
        "data.num_validation=6", "data.global_batch_size=4", "trainer.max_steps=4", "trainer.max_epochs=null",
        "hardware=cpu", "precision=fp32",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "tokens/s on one device" in out


@pytest.mark.parametrize("hardware", ["cpu_ddp", "cpu_fsdp"])
def test_several_processes_are_planned_on_one_device(hardware, planned):
    found = planned(*LOCATION, *STEPS, f"hardware={hardware}", "hardware.devices=3")
    kind = hardware.removeprefix("cpu_")
    assert found["setting"] == {
        "device_batch_size": 3, "gradient_checkpointing": False, "strategy": kind, "devices": 3
    }  # fmt: skip
    assert list(found["memory"]) == ["one device", *(f"{name} x {n}" for name in ("ddp", "fsdp") for n in (2, 3, 8))]
    assert found["probe"]["steps"] >= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("words", [["hardware=gpu"], ["hardware=fsdp", "precision=bf16_mixed"],
                                   ["hardware=gpu", "precision=fp16_mixed"]])  # fmt: skip
def test_a_gpu_that_is_not_here_is_counted_and_not_measured(words, planned, call):
    found = planned(*LOCATION, *STEPS, *words)
    assert (found["probe"], found["hours"], found["available"], found["fits"]) == (None, None, None, None)
    assert found["memory"]["one device"]["activations"] > 0
    assert "process" not in found["memory"]["one device"]
    out = call(*LOCATION, *STEPS, *words)[1]
    assert "time  not measured: there is no gpu here" in out
    assert "fits  unknown" in out


def test_a_probe_that_fails_is_one_line_and_the_counts_are_there(call, monkeypatch):
    def fail(*arguments):
        raise torch.OutOfMemoryError("out of memory.\nTried to allocate 3 GiB")

    monkeypatch.setattr(probe.FindDeviceBatchSize, "attempt", fail)
    code, out, err = call(*LOCATION, *STEPS)
    assert (code, err) == (0, "")
    assert "time  not measured: it failed with OutOfMemoryError: out of memory. Tried to allocate 3 GiB\n" in out
    assert "20 optimizer steps" in out


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("format=jsn", "format=jsn (did you mean json?): allowed are text, json"),
        ("model.hiden_size=3", "model.hiden_size does not exist (did you mean hidden_size?)"),
        ("data.device_batch_size=99", "data.device_batch_size=99 is more than a device's share"),
        ("trainer.max_steps=0", "trainer.max_steps"),
    ],
)
def test_a_mistake_is_one_line(word, message, call):
    code, out, err = call(*LOCATION, word)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert [*Path.cwd().iterdir()] == []


def test_data_that_cannot_be_had_are_one_line(call):
    code, _, err = call("experiment=imdb", "data.path=nowhere", "hardware=cpu")
    assert code == 2
    assert (err.startswith("error: "), err.count("\n")) == (True, 1)
    assert "nowhere" in err


def test_a_run_that_is_there_is_not_touched(call):
    words = [*LOCATION, "trainer.max_steps=2"]
    assert call(*words, "run.name=real", command=train)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")}
    assert call(*words, "run.name=real")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")} == before


def test_a_sweep_is_planned_as_one_of_its_jobs(planned):
    assert planned(*LOCATION, *STEPS, "sweep.name=two", "+sweep.grid.seed=[1,2]")["plan"]["total_steps"] == 20


# ---------------------------------------------------------------------- what fits


@pytest.fixture
def memory(composed):
    """Of a network of 1,000 bytes in two blocks of 400, and 100 bytes of activations for each sample."""
    config = composed(*LOCATION, *STEPS, "callbacks.weight_average=null")
    data = build_datamodule(config)
    run = build_plan(config, data)
    made = forecast.DeviceMemory(config, run, data, build_module(config, data, run), process=50)
    made.state = {"weights": 1000, "gradients": 1000, "optimizer": 2000}
    made.blocks, made.activations, made.global_batch_size = [400, 400], {False: (0, 100), True: (0, 10)}, 64
    made._measured = lambda: (0, 10)
    return made


ASKED = forecast.Setting(64, gradient_checkpointing=False, strategy="one device", devices=1)


def test_parts_of_a_device(memory):
    sharded = forecast.Setting(64, gradient_checkpointing=False, strategy="fsdp", devices=4)
    assert memory.parts(ASKED) == {
        "weights": 1000, "gradients": 1000, "optimizer": 2000, "activations": 6400, "other": 0, "process": 50
    }  # fmt: skip
    assert memory.parts(sharded) == {  # 200 around, two blocks of 400, gradients of one
        "weights": 250, "gradients": 250, "optimizer": 500, "exchange": 1400, "activations": 1600, "other": 0,
        "process": 50,
    }  # fmt: skip


def test_what_the_probe_showed_corrects_the_parts(memory):
    memory.correct(ASKED, 11000)
    assert memory.parts(ASKED)["other"] == 11000 - 10450
    memory.other = 0
    memory.correct(ASKED, 7250)  # half of the activations
    assert memory.parts(ASKED)["activations"] == 3200
    assert memory.parts(ASKED)["other"] == 0


@pytest.mark.parametrize(
    ("free", "shared", "expected"),
    [
        (12000, False, (64, False, "one device", 1)),
        (9000, False, (32, False, "one device", 1)),  # 4,000 + 3,200
        (4600, False, (1, False, "one device", 1)),
        (4500, False, (4, True, "one device", 1)),  # 4,050 are free: 4,000 and 40
        (4400, False, (64, True, "fsdp", 2)),  # 2,000 + 1,400 + 320 of 3,960
        (2700, False, (2, True, "fsdp", 4)),  # 1,000 + 1,400 + 20 of 2,430
        (2200, False, (64, True, "fsdp", 8)),  # 500 + 1,400 + 80 of 1,980
        (1900, False, None),
        (4400, True, None),  # two processes take more than one
    ],
)
def test_the_first_setting_that_fits(free, shared, expected, memory):
    available = AvailableMemory(free, free, shared=shared)
    found = forecast._first_that_fits(ASKED, memory, available)
    assert found == (expected and forecast.Setting(*expected))


def test_what_does_not_fit_is_told_with_the_words_that_help(call, monkeypatch):
    available = AvailableMemory(1000, 1000, shared=False)
    monkeypatch.setattr(forecast, "available_memory_bytes", lambda accelerator: available)
    out = call(*LOCATION, *STEPS)[1]
    assert "fits  no: choose a smaller model" in out
    assert "time  not measured: not even one sample fits into the free memory" in out
    monkeypatch.setattr(forecast, "_first_that_fits", lambda *_: forecast.Setting(4, True, "fsdp", 2))
    out = call(*LOCATION, *STEPS)[1]
    assert (
        "fits  not as it is; with data.device_batch_size=4 hardware.gradient_checkpointing=true "
        "hardware=fsdp hardware.devices=2" in out
    )


def test_time_is_that_of_steps_evaluations_and_what_follows_them(composed):
    config = composed(*LOCATION, *STEPS)
    run = build_plan(config, build_datamodule(config))
    seen = probe.Probe(steps=3, tokens_per_s=run.total_tokens / 40, flops_per_token=1, mfu=1, evaluation_s=8,
                       save_s=2, first_s=5, peak_bytes=1)  # fmt: skip
    assert seen.seconds(run, 1) == 40 + 3 * 8 + 3 * 2 + 5
    assert seen.seconds(run, 4) == 10 + 3 * 2 + 3 * 2 + 5


def test_sparkline():
    assert plan.sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert plan.sparkline([0.0]) == "▁"
