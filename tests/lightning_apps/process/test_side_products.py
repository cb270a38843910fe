"""What is made beside the weights fails, each kind of it: it is said once, and the run is as it would have been."""

import io
import sys
import threading
from pathlib import Path

import lightning as L
import pytest
import torch

from lightning_apps.callbacks import run_upload
from lightning_apps.callbacks.after_evaluation import AfterEvaluation
from lightning_apps.errors import GuardError
from lightning_apps.process.console import open_console, say
from lightning_apps.process.safe_stop import StopRun
from lightning_apps.process.side_products import side_product
from lightning_apps.run_files import side_logger
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.run_files.side_logger import TOLERATED_FAILURES, SideLogger
from lightning_apps.runs import experiment_run
from lightning_apps.runs.experiment_run import run_experiment
from tests.fakes.broken_logger import BrokenLogger
from tests.tiny.tiny_runs import ARXIV, directory_of
from tests.tiny.tiny_runs import IMDB as TINY_IMDB

IMDB = [*TINY_IMDB, "trainer.max_epochs=null", "data.max_length=64",
        "+callbacks.extra.history._target_=lightning_apps.experiments.training_history.TrainingHistory"]  # fmt: skip


class InTheWay(L.Callback):
    """Puts folders where files are to be written, and a file where a folder is."""

    def __init__(self, files: list[Path], folders: list[Path]) -> None:
        self.files, self.folders = files, folders

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for path in self.files:
            (path / "in the way").mkdir(parents=True)
        for path in self.folders:
            path.touch()


def run_with(monkeypatch, config, *callbacks):
    build = experiment_run.build_callbacks
    with monkeypatch.context() as patch:
        patch.setattr(experiment_run, "build_callbacks", lambda *args: [*callbacks, *build(*args)])
        return run_experiment(config)


def weights(directory):
    return torch.load(directory.checkpoints / "last.ckpt", weights_only=True)["state_dict"]


def warnings_of(directory):
    lines = directory.log.read_text().splitlines()
    return [line.partition("warning: ")[2] for line in lines if " warning: " in line and "failed (" in line]


def timeless(rows):
    return [
        {key: value for key, value in row.items() if key not in ("train/mfu", "train/tokens_per_s")} for row in rows
    ]


def test_a_classifier_trains_on_whatever_fails_beside_it(composed, monkeypatch):
    sound = directory_of(composed(*IMDB, name="sound"))
    run_experiment(composed(*IMDB, name="sound"))
    config = composed(*IMDB, "+logger.broken._target_=tests.fakes.broken_logger.BrokenLogger", name="broken")
    directory = directory_of(config)
    BrokenLogger.calls.clear()
    report = directory.path / "report.html"
    files = [directory.predictions, directory.baselines, directory.history, directory.picture, report]
    summary = run_with(monkeypatch, config, InTheWay(files, []))
    assert summary["status"] == "completed"
    assert timeless(read_metrics(directory.metrics)) == timeless(read_metrics(sound.metrics))
    assert all(torch.equal(one, other) for one, other in
               zip(weights(sound).values(), weights(directory).values(), strict=True))  # fmt: skip
    assert (directory.model / "model.safetensors").is_file()
    said = warnings_of(directory)
    assert [line.split()[0] for line in said] == [
        "BrokenLogger", "baselines.json", "predictions.jsonl", "summary.png", "training_history.json", "report.html",
    ]  # fmt: skip
    assert said[0] == "BrokenLogger failed (ConnectionError: the server is gone); the run goes on without it"
    assert "IsADirectoryError" in said[2]
    assert "Traceback" in directory.log.read_text()  # for who wants to know
    assert len(BrokenLogger.calls) == TOLERATED_FAILURES
    assert all((path / "in the way").is_dir() for path in files)
    assert not list(directory.path.glob(".predictions*"))


def test_a_language_model_trains_on_without_its_figures(composed, monkeypatch):
    config = composed(*ARXIV, name="broken")
    directory = directory_of(config)
    blocked = InTheWay([directory.predictions, directory.picture], [directory.in_context])
    assert run_with(monkeypatch, config, blocked)["status"] == "completed"
    names = ["predictions.jsonl", "in_context/validation", "summary.png", "in_context/test"]
    assert sorted(line.split()[0] for line in warnings_of(directory)) == sorted(names)


class Witness(AfterEvaluation):
    """Looks at the checkpoints when an evaluation is over, and fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[tuple[int, int, int | None]] = []

    def on_evaluation_saved(self, trainer: L.Trainer, pl_module: L.LightningModule, best_step: int | None) -> None:
        saved = torch.load(self.folder / "last.ckpt", weights_only=True)["global_step"]
        self.seen.append((trainer.global_step, saved, best_step))
        raise RuntimeError("a fault of ours")


def test_the_checkpoint_is_written_before_what_follows_an_evaluation(composed, monkeypatch):
    config = composed(*IMDB, "callbacks.checkpoints.monitor=val/loss", "callbacks.checkpoints.mode=min", name="order")
    directory = directory_of(config)
    witness = Witness(directory.checkpoints)
    run_with(monkeypatch, config, witness)
    losses = {row["step"]: row["val/loss"] for row in read_metrics(directory.metrics) if "val/loss" in row}
    assert witness.seen == [(2, 2, 2), (4, 4, min(losses, key=losses.__getitem__))]
    assert warnings_of(directory) == ["Witness failed (RuntimeError: a fault of ours); the run goes on without it"]
    assert directory.picture.stat().st_size > 10_000  # the others do their work


def test_an_upload_that_fails_stops_nothing(composed, monkeypatch):
    def broken(*args):
        raise TypeError("a fault of ours")

    monkeypatch.setattr(run_upload, "take_snapshot", broken)
    config = composed(*IMDB, "run.upload=s3://bucket/runs", name="upload")
    monkeypatch.setattr(run_upload.RunUpload, "finish", lambda self: None)  # no server to wait for
    assert run_experiment(config)["status"] == "completed"
    assert warnings_of(directory_of(config)) == [
        "run.upload failed (TypeError: a fault of ours); the run goes on without it"
    ]


class ClosedPipe(io.StringIO):
    """Standard output into a pipe whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def isatty(self) -> bool:
        return True


def test_a_bar_that_nobody_reads_stops_nothing(composed, monkeypatch):
    monkeypatch.setattr(sys, "stdout", ClosedPipe())
    monkeypatch.setattr(sys, "stderr", ClosedPipe())
    config = composed(*IMDB, name="pipe")
    assert run_experiment(config)["status"] == "completed"
    assert warnings_of(directory_of(config)) == [
        "the progress bar failed (BrokenPipeError: [Errno 32] Broken pipe); the run goes on without it"
    ]


def test_what_ends_a_run_passes():
    for error in (GuardError("loss_spike", "x"), StopRun("SIGTERM"), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(error)), side_product("x"):
            raise error


def test_a_failure_is_said_once_a_run(capsys):
    for _ in range(2):
        open_console()
        for name in ("a", "b", "a"):
            with side_product(name):
                raise ValueError
    lines = [f"warning: {name} failed (ValueError); the run goes on without it" for name in "abab"]
    assert capsys.readouterr().out.splitlines() == lines


class Recovering(BrokenLogger):
    """Fails twice, then works, then fails for good."""

    def log_metrics(self, metrics, step=None):
        self.calls.append(step)
        if step not in (2, 3):
            raise ConnectionError


def test_a_logger_that_recovers_is_asked_again(tmp_path):
    BrokenLogger.calls.clear()
    logger = SideLogger(Recovering(save_dir=tmp_path))
    for step in range(10):
        logger.log_metrics({"a": 1.0}, step)
    assert BrokenLogger.calls == [0, 1, 2, 3, 4, 5, 6]
    assert (logger.name, logger.version, logger.save_dir) == ("broken", "", None)


class NeverBegun(BrokenLogger):
    """Lightning asks each logger for its experiment before a run."""

    @property
    def experiment(self):
        raise PermissionError("the key is refused")


def test_a_logger_that_cannot_begin_stops_nothing(tmp_path, capsys):
    logger = SideLogger(NeverBegun(save_dir=tmp_path))
    open_console()
    assert logger.experiment is None
    assert capsys.readouterr().out == (
        "warning: NeverBegun failed (PermissionError: the key is refused); the run goes on without it\n"
    )


class Hanging(BrokenLogger):
    """Its second call never returns."""

    def log_metrics(self, metrics, step=None):
        self.calls.append((step, threading.current_thread().name))
        if step == 2:
            threading.Event().wait()


def test_a_logger_that_hangs_is_left_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(side_logger, "LONGEST_CALL_S", 0.5)
    BrokenLogger.calls.clear()
    logger = SideLogger(Hanging(save_dir=tmp_path))
    open_console()
    for step in (1, 2, 3):
        logger.log_metrics({"a": 1.0}, step)
    logger.finalize("success")
    assert BrokenLogger.calls == [(1, "Hanging"), (2, "Hanging")]
    assert capsys.readouterr().out == (
        "warning: Hanging failed (TimeoutError: no answer for 0 s); the run goes on without it\n"
    )


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("utf-8", "é … 😀 \\ud800"), ("latin-1", "é \\u2026 \\U0001f600 \\ud800"),
     ("ascii", "\\xe9 \\u2026 \\U0001f600 \\ud800")],
)  # fmt: skip
def test_a_terminal_that_cannot_show_a_character_gets_its_escape(encoding, expected, tmp_path, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    open_console(tmp_path / "train.log")
    say("é … 😀 \ud800")
    assert stream.buffer.getvalue().decode(encoding) == expected + "\n"
    assert (tmp_path / "train.log").read_text(encoding="utf-8").endswith("é … 😀 \\ud800\n")


def test_a_terminal_that_is_gone_stops_nothing(tmp_path, monkeypatch):
    stream = io.StringIO()
    stream.close()
    for gone in (stream, None):
        monkeypatch.setattr(sys, "stdout", gone)
        open_console(tmp_path / "train.log")
        say("still here")
    assert (tmp_path / "train.log").read_text().count("still here") == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("full\nand more", "OSError: full"),
        ("\n  full\nand more", "OSError: full"),
        ("", "OSError"),
        (" \n", "OSError"),
    ],
)
def test_a_fault_is_said_by_the_first_line_that_is_not_blank(text, said, capsys):
    open_console()
    with side_product("summary.png"):
        raise OSError(text)
    assert f"summary.png failed ({said}); the run goes on" in capsys.readouterr().out
