"""Signals, time budgets, damaged checkpoints, full disks: a run ends saved and goes on as if nothing had been."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from datamodules.storage import atomic_files
from lightning_apps.errors import CheckpointWriteError, ConfigError
from lightning_apps.process import safe_stop
from lightning_apps.process.safe_stop import SIGNALS, SafeStop, StopRun, heeded_signals, max_time_seconds
from lightning_apps.run_files.checkpoint_files import AtomicCheckpointIO, newest_whole_checkpoint
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.run_files.weights import damage
from lightning_apps.runs import experiment_run
from lightning_apps.runs.experiment_run import run_experiment
from tests.asserts.killed_runs import KillAt, assert_same, final_state, killed, resumed
from tests.asserts.patience import PATIENCE_S, wait_until
from tests.tiny.tiny_runs import LOCATION, directory_of

RUN = [
    *LOCATION,
    "trainer.max_steps=12",
    "trainer.evaluate_every=4",
    "trainer.save_every=3",
    "callbacks.extra.picture=null",
]


class SignalAt(KillAt):
    signum = signal.SIGTERM

    def _die(self, trainer, *args, **kwargs):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signum)


@pytest.fixture(scope="module")
def whole_once():
    return []


@pytest.fixture
def whole(whole_once, composed):
    """How the run ends that nobody stops; it is made once."""
    if not whole_once:
        config = composed(*RUN, name="whole")
        run_experiment(config)
        whole_once.append(final_state(config))
    return whole_once[0]


def signalled(monkeypatch, config, hook, step):
    build = experiment_run.build_callbacks
    with monkeypatch.context() as patch:
        patch.setattr(experiment_run, "build_callbacks", lambda *args: [SignalAt(hook, step), *build(*args)])
        with pytest.raises(SystemExit) as stopped:
            run_experiment(config)
    return stopped.value.code


@pytest.mark.parametrize(
    ("hook", "step", "saved_at"),
    [
        ("on_train_batch_start", 4, 4),  # before step 5
        ("on_before_optimizer_step", 4, 5),  # in step 5, gradients ready
        ("on_train_batch_start", 5, 6),  # in step 6, which a periodic checkpoint is due after
        ("on_train_batch_start", 7, 8),  # in step 8, which is evaluated first
        ("on_validation_start", 4, 4),  # in an evaluation
    ],
)
def test_a_signal_ends_the_step_saves_and_loses_nothing(hook, step, saved_at, composed, whole, monkeypatch, capsys):
    config = composed(*RUN, name="signalled")
    assert signalled(monkeypatch, config, hook, step) == 128 + signal.SIGTERM
    directory = directory_of(config)
    summary = json.loads(directory.summary.read_text())
    assert (summary["status"], summary["reason"], summary["optimizer_steps"]) == ("stopped", "SIGTERM", saved_at)
    assert torch.load(directory.checkpoint("last"), weights_only=True)["global_step"] == saved_at
    assert "run.resume=auto" in capsys.readouterr().out
    assert run_experiment(resumed(config))["status"] == "completed"
    (state, rows, _), (expected_state, expected_rows, _) = final_state(config), whole
    assert repr(rows) == repr(expected_rows)
    assert_same(state, expected_state)


def test_handlers_are_given_back(composed):
    before = [signal.getsignal(number) for number in SIGNALS]
    run_experiment(composed(*LOCATION, "trainer.max_steps=1", "callbacks.extra.picture=null", name="handlers"))
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_after_nohup_a_closed_terminal_is_nothing():
    assert signal.SIGHUP in heeded_signals()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in heeded_signals()
        stop = SafeStop(None)
        stop.install()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        stop.restore()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_saves(composed, monkeypatch):
    monkeypatch.setattr(SignalAt, "signum", signal.SIGHUP)
    config = composed(*RUN, name="hung up")
    assert signalled(monkeypatch, config, "on_train_batch_start", 5) == 128 + signal.SIGHUP
    summary = json.loads(directory_of(config).summary.read_text())
    assert (summary["status"], summary["reason"], summary["optimizer_steps"]) == ("stopped", "SIGHUP", 6)


def test_all_processes_stop_for_the_reason_that_one_of_them_knows():
    signalled, other, late = SafeStop(None), SafeStop(None), SafeStop(0)
    signalled.in_training = True
    signalled._handle(signal.SIGTERM, None)
    assert (signalled.asked, other.asked, late.asked) == (True, False, True)
    code = max(signalled.code, other.code, late.code)
    for process in (signalled, other, late):
        with pytest.raises(StopRun, match=r"^SIGTERM$") as stopped:
            process.raise_stop(code)
        assert stopped.value.signum == signal.SIGTERM
    asked = SafeStop(None, Path(__file__))  # a file that is there
    with pytest.raises(StopRun, match=r"^pruned$"):
        late.raise_stop(max(late.code, asked.code))
    with pytest.raises(StopRun, match=r"^trainer\.max_time: 0 s are over$") as stopped:
        late.raise_stop(max(other.code, late.code))
    assert stopped.value.signum is None


@pytest.mark.slow
def test_a_signal_that_reaches_one_of_two_processes(tmp_path, cache_root):
    """The one that Lightning started, not the first: what it knows, both do."""
    command = [
        sys.executable, "-m", "lightning_apps.train", *LOCATION, "hardware=cpu_ddp", "hardware.num_threads=1",
        "trainer.max_steps=100000", "trainer.evaluate_every=never", f"run.output_root={tmp_path}",
        f"run.cache_root={cache_root}", "run.name=two", "callbacks.weight_average=null",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "location" / "two" / "metrics.csv"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 5)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "Traceback" not in err
    assert "stopped (SIGTERM)" in out
    summary = json.loads((tmp_path / "location" / "two" / "summary.json").read_text())
    assert (summary["status"], summary["reason"]) == ("stopped", "SIGTERM")


def test_a_second_ctrl_c_stops_at_once():
    stop = SafeStop(None)
    stop.in_training = True
    stop._handle(signal.SIGINT, None)
    assert stop.asked
    with pytest.raises(StopRun, match="second signal"):
        stop._handle(signal.SIGINT, None)


def test_outside_of_training_there_is_no_step_to_wait_for():
    with pytest.raises(StopRun, match="SIGINT"):
        SafeStop(None)._handle(signal.SIGINT, None)


def test_a_signal_while_data_are_prepared_ends_at_once_with_its_code(composed, monkeypatch):
    def interrupted(config):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(experiment_run, "build_datamodule", interrupted)
    config = composed(*RUN, name="early")
    with pytest.raises(SystemExit) as stopped:
        run_experiment(config)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert not directory_of(config).path.exists()


def test_the_time_budget_stops_cleanly_and_the_run_goes_on_later(composed, capsys):
    config = composed(*RUN, "trainer.max_time='00:00:00'", name="timed")
    summary = run_experiment(config)
    assert (summary["status"], summary["optimizer_steps"]) == ("stopped", 1)
    assert summary["reason"].startswith("trainer.max_time")
    config["trainer"]["max_time"] = "00:10:00"
    assert run_experiment(resumed(config))["optimizer_steps"] == 12


class RequestAt(KillAt):
    def _die(self, trainer, *args, **kwargs):
        if trainer.global_step == self.step:
            (Path(trainer.checkpoint_callback.folder).parent / ".stop").touch()


def test_a_search_asks_by_a_file_and_the_run_ends_saved(composed, whole, monkeypatch):
    monkeypatch.setattr(safe_stop, "LOOK_S", 0.0)
    build = experiment_run.build_callbacks
    config = composed(*RUN, name="pruned")
    with monkeypatch.context() as patch:
        patch.setattr(
            experiment_run, "build_callbacks", lambda *args: [RequestAt("on_validation_start", 4), *build(*args)]
        )
        summary = run_experiment(config)
    assert (summary["status"], summary["reason"], summary["optimizer_steps"]) == ("stopped", "pruned", 4)
    # the next start takes the request away, and ends as the run that nobody stopped
    config = resumed(config)
    run_experiment(config)
    assert_same(final_state(config), whole)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("00:30:00", 1800), ("01:00:05", 3605), ("00:59:59", 3599), ("02:00:00:00", 172800), (None, None)],
)
def test_max_time(text, seconds):
    assert max_time_seconds(text) == seconds


@pytest.mark.parametrize("text", ["30", "00:30", "1h", "00:60:00", "00:00:60"])
def test_bad_max_time(text):
    with pytest.raises(ConfigError, match=r"trainer\.max_time"):
        max_time_seconds(text)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_damage_is_seen(tmp_path):
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.randn(1000)}, path)
    assert damage(path) is None
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert damage(path) is not None
    path.write_bytes(whole)
    flip_a_byte(path)
    assert "checksum" in damage(path)
    torch.load(path, weights_only=True)  # torch itself does not notice


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(composed, whole, monkeypatch, capsys):
    config = composed(*RUN, name="damaged")
    killed(monkeypatch, config, "on_train_batch_end", 7)
    directory = directory_of(config)
    flip_a_byte(directory.checkpoint("6"))  # last.ckpt is the same file
    reports = []
    assert newest_whole_checkpoint(directory.checkpoints, reports.append) == directory.checkpoint("3")
    assert len(reports) == 2
    with pytest.raises(ConfigError, match=r"is damaged \(checksum"):
        run_experiment({**config, "run": {**config["run"], "resume": "last"}})
    run_experiment(resumed(config))
    assert_same(final_state(config)[0], whole[0])


def open_full(path):
    """/dev/full answers every write with the real "No space left on device"."""
    return os.open("/dev/full", os.O_WRONLY)


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    target = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, target)
    monkeypatch.setattr(atomic_files, "open_new", open_full)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"step": 2, "weights": torch.zeros(100_000)}, target)
    assert torch.load(target, weights_only=True) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("write", ["foreground", "background"])
@pytest.mark.parametrize(("failing", "fails"), [(range(4, 7), False), (range(4, 99), True)])
def test_a_disk_that_fills_up(failing, fails, write, composed, monkeypatch, capsys):
    """The evaluation of step 4 is the best one, and its weights are not there."""
    config = composed(*RUN, "callbacks.checkpoints.keep=1", "callbacks.checkpoints.monitor=val/loss",
                      "callbacks.checkpoints.mode=max", f"callbacks.checkpoints.write={write}",
                      name="full")  # fmt: skip
    save = AtomicCheckpointIO.save_checkpoint

    def save_or_fail(self, checkpoint, path, storage_options=None):
        if checkpoint["global_step"] in failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save_or_fail)
    if fails:
        with pytest.raises(CheckpointWriteError, match=r"3 checkpoint.*No space left.*run\.resume=auto"):
            run_experiment(config)
        summary = json.loads(directory_of(config).summary.read_text())
        assert (summary["status"], summary["best"]) == ("failed", None)
        state = torch.load(directory_of(config).checkpoint("last"), weights_only=True)
        assert state["global_step"] == 3
    else:
        summary = run_experiment(config)
        assert (summary["status"], summary["best"]["step"]) == ("completed", 8)
        names = ["best.ckpt", "last.ckpt", "step=00000012.ckpt"]
        assert sorted(path.name for path in directory_of(config).checkpoints.iterdir()) == names
    said = capsys.readouterr().out
    assert [f"checkpoint of step {step} could not be written: No space left on device" in said for step in (4, 6)] == [
        True,
        True,
    ]


def test_best_is_evaluated_again_and_is_the_same(composed, capsys):
    config = composed(*RUN, "callbacks.checkpoints.monitor=val/loss", "callbacks.checkpoints.mode=max", name="a")
    assert run_experiment(config)["best"]["step"] < 12  # not simply the last weights
    assert "evaluated again: val/loss is the same" in capsys.readouterr().out


def test_best_that_changed_on_disk_is_said_loudly(composed, monkeypatch, capsys):
    finish = experiment_run.finish

    def tamper_then_finish(trainer, module, datamodule, callbacks, directory, *, tests):
        state = torch.load(directory.checkpoint("best"), weights_only=True)
        for tensor in state["state_dict"].values():
            tensor.mul_(3)
        torch.save(state, directory.checkpoint("best"))
        finish(trainer, module, datamodule, callbacks, directory, tests=tests)

    monkeypatch.setattr(experiment_run, "finish", tamper_then_finish)
    config = composed(*RUN, "callbacks.checkpoints.monitor=val/loss", name="tampered")
    run_experiment(config)
    rows = read_metrics(directory_of(config).metrics)
    assert "WARNING: best.ckpt gives val/loss=" in capsys.readouterr().out
    assert len(rows) == 12


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_real_process_stops_with_the_signals_code(signum, tmp_path, cache_root):
    command = [
        sys.executable, "-m", "lightning_apps.train", *LOCATION,
        "trainer.max_steps=100000", "trainer.evaluate_every=never",
        f"run.output_root={tmp_path}", f"run.cache_root={cache_root}", "run.name=real",
        "callbacks.weight_average=null",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "location" / "real" / "metrics.csv"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 20)
    process.send_signal(signum)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + signum, err
    assert "Traceback" not in err
    assert "run.resume=auto" in out
    summary = json.loads((tmp_path / "location" / "real" / "summary.json").read_text())
    assert summary["reason"] == signal.Signals(signum).name
    assert read_metrics(metrics)[-1]["step"] == summary["optimizer_steps"]
