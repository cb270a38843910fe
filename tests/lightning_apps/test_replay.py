"""The sample log, and steps done again."""

import json
import sys
from dataclasses import replace

import lightning as L
import numpy as np
import pytest
import torch

from datamodules.sampling.step_loader import StepSampler
from lightning_apps import replay as replay_command
from lightning_apps.callbacks.sample_log import check_order
from lightning_apps.diagnostics.sample_log import SampleLogError, SampleLogWriter, sample_log_row
from lightning_apps.errors import GuardError
from lightning_apps.runs import experiment_run
from lightning_apps.runs.build import build_datamodule
from lightning_apps.runs.experiment_run import run_experiment
from tests.tiny.tiny_runs import LOCATION, directory_of

RUN = [
    *LOCATION, "model.attention_dropout=0.1", "data.device_batch_size=3", "trainer.max_steps=25",
    "trainer.evaluate_every=10", "trainer.save_every=6", "callbacks=default",
    "callbacks.weight_average={decay: 0.98}",
]  # fmt: skip
"""Dropout and micro-batches, so that a replay must restore more than weights; 14 steps are an epoch."""


def replay(monkeypatch, capsys, *arguments):
    """Exit code and output of the command."""
    monkeypatch.setattr(sys, "argv", ["replay", *map(str, arguments)])
    code = 0
    try:
        replay_command.main()
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["plain", "averaged"])
def run(request, composed):
    average = "callbacks.weight_average=null" if request.param == "plain" else "callbacks.weight_average.decay=0.9"
    config = composed(*RUN, average, name=request.param)
    run_experiment(config)
    return directory_of(config), config


def test_replayed_steps_equal_the_log_to_the_last_digit_and_nothing_is_written(run, monkeypatch, capsys):
    directory, _ = run
    before = contents(directory.path)
    capsys.readouterr()
    for step, start in ((5, "freshly drawn weights, 5 step"), (20, "step=00000018.ckpt, 2 step"), (25, "24.ckpt, 1")):
        code, said = replay(monkeypatch, capsys, f"run={directory.path}", f"step={step}")
        assert code == 0, said
        assert start in said
        assert "sample log the same 8 samples in the same order" in said
        assert said.count("difference 0: equal") == 2
        assert "loc(c_" in said
    assert contents(directory.path) == before


def test_a_changed_record_is_reported(run, monkeypatch, capsys):
    directory, _ = run
    lines = directory.metrics.read_text().splitlines()
    fields = lines[8].split(",")
    loss = float(fields[1])
    fields[1] = repr(float(np.nextafter(loss, 9.0)))
    directory.metrics.write_text("\n".join([*lines[:8], ",".join(fields), *lines[9:]]) + "\n")
    code, said = replay(monkeypatch, capsys, f"run={directory.path}", "step=8")
    assert code == 1
    assert f"train/loss was logged as {fields[1]} and came out as {loss!r}" in said

    log = bytearray(directory.sample_log.read_bytes())
    log[24 + 6 * 48 + 16] ^= 1  # an id of step 7
    directory.sample_log.write_bytes(log)
    code, said = replay(monkeypatch, capsys, f"run={directory.path}", "step=7")
    assert code == 1
    assert "the record of step 7" in said
    assert replay(monkeypatch, capsys, f"run={directory.path}", "step=9")[0] == 0


def test_another_number_of_threads_is_named_as_the_cause(composed, monkeypatch, capsys):
    config = composed(*RUN, "trainer.max_steps=3", "callbacks.weight_average=null", name="threads")
    threads = run_experiment(config)["num_threads"]
    assert threads == torch.get_num_threads()
    directory = directory_of(config)
    summary = json.loads(directory.summary.read_text())
    directory.summary.write_text(json.dumps({**summary, "num_threads": threads + 3}))
    arguments = (f"run={directory.path}", "step=2")
    assert replay(monkeypatch, capsys, *arguments)[0] == 0  # equal digits need no cause
    rows = directory.metrics.read_text().splitlines()
    step, _, rest = rows[2].split(",", 2)
    directory.metrics.write_text("\n".join([*rows[:2], f"{step},0.5,{rest}", *rows[3:]]) + "\n")
    code, said = replay(monkeypatch, capsys, *arguments)
    assert code == 1
    assert f"the run computed with {threads + 3} CPU threads and this replay with {threads}" in said
    assert f"OMP_NUM_THREADS={threads + 3}" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give run="),
        (["run=there/is/none", "step=1"], "no run is there"),
        (["crash_dump=there/is/none"], "no crash dump is there"),
        (["run=a", "step=1", "crash_dump=b"], "give run="),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(monkeypatch, capsys, arguments, message):
    code, said = replay(monkeypatch, capsys, *arguments)
    assert code == 2
    assert message in said


def test_a_step_beyond_the_run_is_refused(run, monkeypatch, capsys):
    code, said = replay(monkeypatch, capsys, f"run={run[0].path}", "step=26")
    assert code == 2
    assert "the run has the steps 1 to 25" in said


# ---------------------------------------------------------------------------------------------------- the sample log


def planned(config, step):
    data = build_datamodule(config)
    seed = config["data"]["seed"]
    sampler = StepSampler(num_samples=data.num_train_samples, global_batch_size=8, num_steps=step, seed=seed)
    return sampler.key(step - 1)[1].tolist()


class Crash(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 16:
            raise OSError("the power failed")


def test_the_sample_log_equals_the_order_and_survives_a_resume(composed, monkeypatch):
    whole = composed(*RUN, name="whole")
    run_experiment(whole)
    for step in range(1, 26):
        assert sample_log_row(directory_of(whole).sample_log, step).tolist() == planned(whole, step)
    assert {len(sample_log_row(directory_of(whole).sample_log, step)) for step in (13, 14)} == {8, planned_rest(whole)}

    broken = composed(*RUN, name="broken")
    with monkeypatch.context() as patch:
        build = experiment_run.build_callbacks
        # behind the sample log, before the checkpoints
        patch.setattr(experiment_run, "build_callbacks", lambda *args: [*build(*args), Crash()])
        with pytest.raises(OSError, match="power"):
            run_experiment(broken)
    log = directory_of(broken).sample_log
    assert sample_log_row(log, 16).tolist() == planned(whole, 16)  # beyond the checkpoint of step 12
    run_experiment({**broken, "run": {**broken["run"], "resume": "auto"}})
    assert log.read_bytes() == directory_of(whole).sample_log.read_bytes()


def planned_rest(config):
    return build_datamodule(config).num_train_samples % 8 or 8


def write(path, steps, start=0, width=4):
    writer = SampleLogWriter(path, ids_per_step=width, num_samples=1000)
    writer.start_after(start)
    for step in steps:
        writer.append(step, np.arange(step, step + min(width, step)))
    writer.close()


def test_resuming_cuts_the_sample_log_back_and_marks_gaps(tmp_path):
    path, other = tmp_path / "sample_log.bin", tmp_path / "other.bin"
    write(path, range(1, 10))
    write(path, range(5, 8), start=4)
    write(other, range(1, 8))
    assert path.read_bytes() == other.read_bytes()
    assert sample_log_row(path, 2).tolist() == [2, 3]
    with pytest.raises(SampleLogError, match="holds the steps 1 to 7, not 8"):
        sample_log_row(path, 8)
    write(path, [11], start=10)
    assert sample_log_row(path, 9) is None
    assert sample_log_row(path, 11).tolist() == [11, 12, 13, 14]
    with pytest.raises(SampleLogError, match="another batch size"):
        write(path, [], width=5)


def test_a_half_written_record_is_dropped(tmp_path):
    path, other = tmp_path / "sample_log.bin", tmp_path / "other.bin"
    write(path, range(1, 6))
    path.write_bytes(path.read_bytes()[:-7])
    write(path, [5], start=4)
    write(other, range(1, 6))
    assert path.read_bytes() == other.read_bytes()


def test_every_byte_of_a_record_counts(tmp_path):
    path = tmp_path / "sample_log.bin"
    write(path, range(1, 4))
    original = path.read_bytes()
    for position in range(24 + 32, 24 + 64):
        changed = bytearray(original)
        changed[position] ^= 4
        path.write_bytes(changed)
        with pytest.raises(SampleLogError):
            sample_log_row(path, 2)


def test_a_loader_that_delivers_something_else_is_caught(composed, monkeypatch):
    check_order(1, np.array([1, 2]), np.array([1, 2]))
    with pytest.raises(GuardError, match=r"delivered \[\] at position 2, the order says \[3\]"):
        check_order(1, np.array([1, 2]), np.array([1, 2, 3]))
    from datamodules.sampling.step_batches import StepCollator

    collate = StepCollator.__call__

    def swap(self, keys):
        batch = collate(self, keys)
        return replace(batch, sample_ids=np.roll(batch.sample_ids, 1))

    monkeypatch.setattr(StepCollator, "__call__", swap)
    with pytest.raises(GuardError, match="step 1: the loader delivered"):
        run_experiment(composed(*RUN, name="swapped"))
