"""The final test may take longer than the training: it is announced, counted, and may be stopped and made up for."""

import itertools
import os
import signal
import sys
import time

import pytest
from transformers import AutoModelForCausalLM

from lightning_apps.experiments.location.generation import LocationGeneration
from lightning_apps.process import console
from lightning_apps.process.console import ProgressCount, open_console
from lightning_apps.run_files.directory import read_summary
from lightning_apps.runs.experiment_run import run_experiment
from tests.tiny.tiny_runs import LOCATION, directory_of

RUN = [*LOCATION, "data.num_test=12", "trainer.max_steps=4", "trainer.evaluate_every=2", "callbacks.extra.picture=null"]


def measured_in_test(summary):
    """Metrics of the test, as text: NaN is no number that equals itself."""
    return {name: repr(value) for name, value in summary["metrics"].items() if name.startswith("test/")}


@pytest.mark.numeric
def test_a_run_stopped_in_its_test_is_complete_but_for_it(composed, monkeypatch, capsys):
    whole = run_experiment(composed(*RUN, name="whole"))
    assert "testing on 12 samples, of which trainer.limit_test_batches would leave fewer" in capsys.readouterr().out

    config = composed(*RUN, name="stopped")
    directory = directory_of(config)
    with monkeypatch.context() as patched:
        patched.setattr(
            LocationGeneration, "on_test_epoch_end", lambda *_: os.kill(os.getpid(), signal.SIGINT) or time.sleep(10)
        )
        with pytest.raises(SystemExit) as end:
            run_experiment(config)
    assert end.value.code == 130
    summary = read_summary(directory)
    assert (summary["status"], summary["reason"]) == (
        "stopped",
        "SIGINT during the test: the run is complete but for its test",
    )
    assert not any(name.startswith("test/") for name in summary["metrics"])
    AutoModelForCausalLM.from_pretrained(directory.model)  # the export is whole

    config["run"]["resume"] = "auto"
    again = run_experiment(config)
    assert again["status"] == "completed"
    assert "test/loss" in whole["metrics"]
    assert measured_in_test(again) == measured_in_test(whole)


def test_the_key_that_bounds_a_test_is_named(composed, small_gsm8k, capsys):
    run_experiment(
        composed(
            "experiment=gsm8k", f"data.path={small_gsm8k}/data", f"model.pretrained={small_gsm8k}/model",
            "data.num_validation=6", "data.global_batch_size=8", "data.max_length=160", "data.max_test_samples=3",
            "trainer.max_epochs=null", "trainer.max_steps=1", "trainer.evaluate_every=1", "hardware=cpu",
            "callbacks.extra.generation.num_samples=2", "callbacks.extra.generation.max_new_tokens=4",
        )
    )  # fmt: skip
    said = capsys.readouterr().out
    assert (
        "testing on 3 samples, of which data.max_test_samples or trainer.limit_test_batches would leave fewer" in said
    )


def test_progress_is_said_every_fifteen_seconds_with_the_time_left(monkeypatch, capsys):
    clock = itertools.count(0, 10)
    monkeypatch.setattr(console.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    open_console()
    progress = ProgressCount(1319, name="test questions", units="answers")  # at 0 s, then at 10, 20, 30 s
    for _ in range(3):
        progress.add(32)
    progress.close()
    assert capsys.readouterr().out == "test questions: 64 of 1,319 answers, 7 min left\n"
