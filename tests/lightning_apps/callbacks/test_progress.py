"""The lines that take the place of progress bars in a log file."""

import io
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from tqdm import tqdm

from lightning_apps.callbacks import progress
from lightning_apps.callbacks.progress import BAR_FORMAT, RunProgress
from lightning_apps.process import console
from lightning_apps.process.console import human_time, with_progress


@pytest.mark.parametrize("starts_an_epoch", [True, False], ids=["a new run", "one that goes on"])
def test_the_time_left_is_told_by_this_process(starts_an_epoch, monkeypatch):
    now, said = [1000.0], []
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(progress, "say", said.append)
    bar = RunProgress(SimpleNamespace(last_loss=1.25, tokens_per_s=300.0))
    bar.is_terminal = False
    trainer = SimpleNamespace(global_step=100, max_steps=200, num_training_batches=200, current_epoch=0, max_epochs=1)
    bar._trainer = trainer
    bar.on_train_start(trainer, None)
    if starts_an_epoch:
        bar.on_train_epoch_start(trainer, None)
    assert bar.train_progress_bar.initial == 100
    trainer.global_step, now[0] = 104, 1020.0
    bar.on_train_batch_end(trainer, None, None, None, 103)
    assert said == ["step 104/200: loss 1.250, 300 tokens/s, 480 s left"]  # four steps in 20 s, 96 to go
    trainer.global_step, now[0] = 105, 1025.0
    bar.on_train_batch_end(trainer, None, None, None, 104)
    assert len(said) == 1  # it is not fifteen seconds since the last


def test_a_run_that_is_stopped_leaves_no_bar(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    bar = RunProgress(SimpleNamespace(last_loss=1.25, tokens_per_s=300.0))
    trainer = SimpleNamespace(global_step=3, max_steps=9, num_training_batches=9, current_epoch=0, max_epochs=1)
    bar._trainer = trainer
    bar.on_exception(trainer, None, KeyboardInterrupt())  # before there is a bar
    bar._train_progress_bar = Tqdm(total=9, desc="training", file=terminal, leave=True, position=0)
    bar.on_exception(trainer, None, KeyboardInterrupt())
    assert "training" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")  # cleared, and no line below it
    assert terminal.getvalue().rsplit("\r", 2)[-2].strip() == ""
    assert bar._train_progress_bar.disable


def test_items_are_counted_in_a_log_file(monkeypatch):
    now, said = [1000.0], []
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(console, "say", said.append)
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: False)
    seen = []
    for item in with_progress({"a": 1, "b": 2, "c": 3, "d": 4}.values(), name="explaining", unit="document"):
        seen.append(item)
        now[0] += 10.0
    assert seen == [1, 2, 3, 4]
    assert said == ["explaining: 2 of 4 documents, 20 s left"]  # after 20 s; the next line would be due after 35 s


def test_times_for_people():
    assert [human_time(seconds) for seconds in (45.4, 720, 12240)] == ["45 s", "12 min", "3.4 h"]


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_the_bar_fits_any_width_and_says_time_and_loss_first(columns):
    postfix = "loss=2.991, tokens/s=12,942, of peak=45%"
    line = tqdm.format_meter(90, 200, 10, ncols=columns, prefix="training", postfix=postfix, bar_format=BAR_FORMAT)
    assert len(line) <= columns
    whole = f"training 90/200, 00:12 left, {postfix}  45% |"
    assert line.startswith(whole[:columns])
