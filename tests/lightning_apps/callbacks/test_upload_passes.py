"""Snapshots of a run, and when they are uploaded while it trains."""

import time
from pathlib import Path

import pytest

from lightning_apps.callbacks.checkpoints import RunCheckpoints
from lightning_apps.callbacks.run_upload import RunUpload, _Answer, signatures, take_snapshot
from lightning_apps.process.safe_stop import SafeStop
from lightning_apps.run_files.upload import is_left_out
from tests.tiny.uploaded_runs import TO, small_run


def test_a_snapshot_keeps_what_was_there(tmp_path):
    directory = small_run(tmp_path / "a")
    (directory.checkpoints / ".last.ckpt.part").write_bytes(b"half")
    (directory.path / "metrics.csv.part").write_bytes(b"half")
    first = take_snapshot(directory, {})
    assert set(first) == {"config.yaml", "metrics.csv", "checkpoints/last.ckpt"}
    snapshot = directory.upload_snapshot
    assert (snapshot / "checkpoints/last.ckpt").stat().st_nlink == 2  # costs no space
    with directory.metrics.open("r+") as file:  # in place, as MetricsCSV does
        file.write("STEP")
    aside = directory.checkpoints / "aside"
    aside.write_bytes(b"weights of step 2")
    aside.replace(directory.checkpoints / "last.ckpt")
    assert (snapshot / "metrics.csv").read_text() == "step\n1\n"
    assert (snapshot / "checkpoints/last.ckpt").read_bytes() == b"weights of step 1"
    assert set(signatures(directory)) == set(first)  # the snapshot is no part of the run
    assert take_snapshot(directory, first).keys() == {"metrics.csv", "checkpoints/last.ckpt"}
    assert take_snapshot(directory, signatures(directory)) == {}


def test_a_snapshot_copies_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def no_links(self, target):
        raise OSError("not here")

    directory = small_run(tmp_path / "a")
    monkeypatch.setattr(Path, "hardlink_to", no_links)
    take_snapshot(directory, {})
    assert (directory.upload_snapshot / "checkpoints/last.ckpt").read_bytes() == b"weights of step 1"


@pytest.mark.parametrize(
    ("name", "left_out"),
    [("config.yaml", False), (".upload/config.yaml", True), ("checkpoints/.last.ckpt.part", True), ("a.part", True)],
)
def test_what_stays_at_home(name, left_out):
    assert is_left_out(name) is left_out


class FakePass:
    """A pass that ends when and as the test says."""

    def __init__(self, *arguments):
        self.files = arguments[-1]
        self.begin = time.monotonic()
        self.code = None
        self.process = self
        self.reply = None
        made.append(self)

    def poll(self):
        return self.code

    def stop(self):
        return self.code is None

    def answer(self):
        return self.reply or _Answer([], "", "", 0, 0)

    def end(self, error="", kind=""):
        self.code, self.reply = 0, _Answer([] if error else list(self.files), error, kind, 0, 0)


made = []


@pytest.fixture
def passes(monkeypatch):
    made.clear()
    monkeypatch.setattr("lightning_apps.callbacks.run_upload._Pass", FakePass)
    monkeypatch.setattr("lightning_apps.callbacks.run_upload.REST", 0.0)
    said = []
    monkeypatch.setattr("lightning_apps.callbacks.run_upload.say", said.append)
    return made, said


class FakePlan:
    save_steps = frozenset({7})


class FakeTrainer:
    def __init__(self, step, saving=None):
        self.global_step = step
        self.state = type("State", (), {"fn": "fit"})
        self.callbacks = [] if saving is None else [saving]


def step(callback, number, *, evaluated=False, saving=None):
    trainer = FakeTrainer(number, saving)
    callback.on_train_batch_start(trainer, None, None, number)
    callback.on_train_batch_end(trainer, None, None, None, number)
    if evaluated:
        callback.on_validation_end(trainer, None)


def test_passes_follow_evaluations_and_checkpoints_one_at_a_time(tmp_path, passes):
    started, said = passes
    directory = small_run(tmp_path / "a")
    callback = RunUpload(directory=directory, to=TO, experiment="location", name="a")
    callback.begin(FakePlan())
    assert [set(entry.files) for entry in started] == [{"config.yaml", "metrics.csv", "checkpoints/last.ckpt"}]
    directory.metrics.write_text("step\n1\n2\n")
    step(callback, 2, evaluated=True)
    step(callback, 3)
    assert len(started) == 1  # the first is under way
    started[0].end()
    step(callback, 4)
    assert set(started[1].files) == {"metrics.csv"}
    started[1].end(error="the server is gone", kind="StorageUnavailableError")
    step(callback, 5)  # what failed is due again
    assert set(started[2].files) == {"metrics.csv"}
    started[2].end(error="the server is gone, says another socket", kind="StorageUnavailableError")
    step(callback, 6)
    started[3].end()
    step(callback, 7)  # which is a checkpoint's
    assert len(started) == 4
    directory.metrics.write_text("step\n1\n2\n3\n")
    step(callback, 8)
    assert set(started[4].files) == {"metrics.csv"}
    assert [text.splitlines()[0] for text in said] == [
        "run.upload: the server is gone",
        "run.upload: s3://bucket/runs/location/a takes files again",
    ]


def test_a_pass_waits_for_the_checkpoint_that_is_being_written(tmp_path, passes, monkeypatch):
    started, _ = passes
    directory = small_run(tmp_path / "a")
    callback = RunUpload(directory=directory, to=TO, experiment="location", name="a")
    callback.begin(FakePlan())
    started[0].end()
    directory.metrics.write_text("more")
    saving = RunCheckpoints(plan=None, folder=tmp_path, monitor="val/loss", mode="min", keep=None, loss_ratio=None,
                            stop=SafeStop(None))  # fmt: skip
    monkeypatch.setattr(RunCheckpoints, "is_writing", True)
    step(callback, 2, evaluated=True)
    step(callback, 3, saving=saving)
    assert len(started) == 1
    monkeypatch.setattr(RunCheckpoints, "is_writing", False)
    step(callback, 4, saving=saving)
    assert len(started) == 2


def test_passes_rest(tmp_path, passes, monkeypatch):
    started, _ = passes
    monkeypatch.setattr("lightning_apps.callbacks.run_upload.REST", 1e9)
    directory = small_run(tmp_path / "a")
    callback = RunUpload(directory=directory, to=TO, experiment="location", name="a")
    callback.begin(FakePlan())
    started[0].end()
    directory.metrics.write_text("more")
    for number in range(1, 50):
        step(callback, number, evaluated=True)
    assert len(started) == 1


def test_a_snapshot_that_fails_is_no_matter_for_training(tmp_path, passes, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    started, said = passes
    monkeypatch.setattr("lightning_apps.callbacks.run_upload.take_snapshot", full)
    callback = RunUpload(directory=small_run(tmp_path / "a"), to=TO, experiment="location", name="a")
    callback.begin(FakePlan())
    step(callback, 1, evaluated=True)
    step(callback, 2)
    assert started == []
    assert len(said) == 1
    assert "No space left on device" in said[0]
