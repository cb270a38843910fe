"""Keys of Lightning's Trainer mean here what they mean there, with an optimizer step for a training batch."""

import json
import subprocess
import sys
import time

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_apps.diagnostics.phases import PHASES
from lightning_apps.diagnostics.sample_log import sample_log_row
from lightning_apps.errors import ConfigError
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.runs.build import build_datamodule, limits_of
from lightning_apps.runs.experiment_run import run_experiment
from tests.tiny.tiny_runs import IMDB, LOCATION, directory_of

RUN = [*LOCATION, "trainer.evaluate_every=3", "callbacks.extra.picture=null"]
"""110 training cities in steps of 8: 14 steps are an epoch; 12 cities of validation."""


def steps_evaluated(files):
    return [row["step"] for row in read_metrics(files.metrics) if "val/loss" in row]


def samples(files, step):
    return sample_log_row(files.sample_log, step).tolist()


@pytest.mark.parametrize(("limit", "steps"), [(2, 2), (0.5, 7), (0.01, 1), (1.0, 14), (1, 1), (99, 14), (None, 14)])
def test_limit_train_batches_cuts_the_epoch(limit, steps):
    assert (limits_of({"limit_train_batches": limit}, epoch_steps=14).epoch_steps or 14) == steps


def test_an_epoch_ends_at_the_limit_and_the_next_one_has_other_samples(composed):
    config = composed(*RUN, "trainer.limit_train_batches=2", "trainer.max_epochs=3", name="cut")
    summary = run_experiment(config)
    files = directory_of(config)
    assert summary["optimizer_steps"] == 6
    assert [row["train/epoch"] for row in read_metrics(files.metrics)] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert len({tuple(samples(files, step)) for step in range(1, 7)}) == 6


def test_overfit_batches_trains_the_same_steps_again_and_again(composed):
    config = composed(*RUN, "trainer.overfit_batches=2", "trainer.max_steps=6", name="overfit")
    run_experiment(config)
    files = directory_of(config)
    assert [samples(files, step) for step in (3, 4, 5, 6)] == [samples(files, step) for step in (1, 2, 1, 2)]
    assert samples(files, 1) != samples(files, 2)
    whole = limits_of({"overfit_batches": 2, "limit_val_batches": 9, "limit_test_batches": 5}, epoch_steps=14)
    assert whole.batches == {"train": 2, "validation": 2, "test": 5}


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("1", [0, 4, 7, 11]), ("2", [0, 2, 3, 5, 6, 8, 9, 11]), ("0.34", [0, 4, 7, 11]), ("0.01", [0, 4, 7, 11]),
     ("1.0", list(range(12))), ("99", list(range(12))), ("null", list(range(12))), ("0", list(range(12)))],
)  # fmt: skip
def test_limit_val_batches_leaves_so_many_batches_of_samples_spread_over_the_split(composed, limit, expected):
    data = build_datamodule(composed(*RUN, "data.evaluation_batch_size=4", f"trainer.limit_val_batches={limit}"))
    assert data.evaluated("validation").tolist() == expected
    found = [index for batch in data.val_dataloader() for index in batch["sample_ids"].tolist()]
    assert sorted(found) == expected


def test_predictions_hold_the_samples_that_the_limits_leave(composed):
    limits = ["trainer.limit_val_batches=2", "trainer.limit_test_batches=1", "data.evaluation_batch_size=3"]
    config = composed(*IMDB, *limits, "callbacks.extra.picture=null", name="few")
    run_experiment(config)
    rows = [json.loads(line) for line in directory_of(config).predictions.read_text().splitlines()]
    assert len(rows) == 3  # the last evaluation is that of the test


def test_no_validation_and_no_test_where_their_limits_are_0(composed):
    limits = ["trainer.limit_val_batches=0", "trainer.limit_test_batches=0", "data.num_test=9"]
    config = composed(*RUN, *limits, "trainer.max_steps=4", name="blind")
    summary = run_experiment(config)
    assert steps_evaluated(directory_of(config)) == []
    assert not any(key.startswith(("val/", "test/")) for key in summary["metrics"])


def test_fast_dev_run_goes_through_everything_and_keeps_nothing(composed, tmp_path, capsys):
    config = composed(*RUN, "data.num_test=9", "trainer.fast_dev_run=2", "logger=tensorboard", name="tried")
    summary = run_experiment(config)
    assert (summary["status"], summary["optimizer_steps"]) == ("completed", 2)
    assert {"val/loss", "test/loss"} <= summary["metrics"].keys()
    assert not (tmp_path / "outputs").exists()
    said = "trainer.fast_dev_run: 2 optimizer step(s) and 2 batch(es) of each evaluation; nothing is kept"
    assert said in capsys.readouterr().out


def test_fast_dev_run_trains_what_is_unfrozen_later(composed, monkeypatch):
    from lightning_apps.experiments import experiment

    trained, take = [], experiment.take_step

    def counted(module, batch):
        trained.append(sum(parameter.requires_grad for parameter in module.parameters()))
        return take(module, batch)

    monkeypatch.setattr(experiment, "take_step", counted)
    late = 'optimizer.unfreeze=[{pattern: "layers.0", at_step: 0.2}]'
    run_experiment(composed(*RUN, late, "trainer.fast_dev_run=true", name="late"))
    run_experiment(composed(*RUN, "trainer.fast_dev_run=true", name="all"))
    assert trained[0] == trained[1] > 0


@pytest.mark.slow
def test_fast_dev_run_of_two_processes_keeps_nothing(tmp_path, cache_root):
    words = [*RUN, "hardware=cpu_ddp", "hardware.num_threads=1", "trainer.fast_dev_run=true"]
    command = [sys.executable, "-m", "lightning_apps.train", *words, f"run.cache_root={cache_root}"]
    done = subprocess.run([*command, f"run.output_root={tmp_path / 'runs'}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "on 2 x cpu" in done.stdout
    assert "nothing is kept" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_others_started_cannot_tell_where_the_first_one_tries(composed, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match=r"^trainer\.fast_dev_run: this process does not know where the first one"):
        run_experiment(composed(*RUN, "hardware=cpu_ddp", "trainer.fast_dev_run=true", name="rank"))


def test_fast_dev_run_true_is_one_step(composed):
    assert run_experiment(composed(*RUN, "trainer.fast_dev_run=true", name="once"))["optimizer_steps"] == 1


def test_detect_anomaly_is_on_while_training_only(composed, monkeypatch):
    from lightning_apps.experiments import experiment

    seen, take = [], experiment.take_step

    def look(*args):
        seen.append(torch.is_anomaly_enabled())
        return take(*args)

    monkeypatch.setattr(experiment, "take_step", look)
    run_experiment(composed(*RUN, "trainer.max_steps=2", "trainer.detect_anomaly=true", name="anomaly"))
    run_experiment(composed(*RUN, "trainer.max_steps=1", name="normal"))
    assert seen == [True, True, False]


def test_the_simple_profiler_leaves_its_table_in_the_run(composed):
    config = composed(*RUN, "trainer.max_steps=3", "trainer.profiler=simple", name="profiled")
    run_experiment(config)
    (report,) = directory_of(config).profile.glob("fit-profile*")
    row = next(line for line in report.read_text().splitlines() if "run_training_batch" in line)
    assert row.split("|")[3].strip() == "3"


@pytest.mark.numeric
def test_the_phases_of_a_run_sum_to_its_time(composed):
    config = composed(*RUN, "trainer.max_steps=4", "trainer.evaluate_every=2", "trainer.profiler=phases", name="phases")
    began = time.perf_counter()
    summary = run_experiment(config)
    elapsed_s = time.perf_counter() - began
    table = (directory_of(config).profile / "phases.txt").read_text().splitlines()
    *rows, (*_, total, _) = (line.split() for line in table)
    seconds, total = {row[0]: float(row[1]) for row in rows}, float(total)
    assert list(seconds) == list(PHASES)
    assert sum(seconds.values()) == pytest.approx(total, abs=0.06)  # each is rounded to hundredths
    assert total <= elapsed_s
    events = json.loads((directory_of(config).profile / "phases.trace.json").read_text())["traceEvents"]
    assert sum(event["name"] == "clip" for event in events) == 4
    assert {event["name"] for event in events if event["dur"]} == set(PHASES)
    assert sum(event["dur"] for event in events) / 1e6 == pytest.approx(total, rel=0.05)
    # the same steps as without it
    plain = composed(*RUN, "trainer.max_steps=4", "trainer.evaluate_every=2", name="plain")
    assert summary["metrics"]["val/loss"] == run_experiment(plain)["metrics"]["val/loss"]


def test_a_step_knows_its_share_of_the_peak(composed):
    config = composed(*RUN, "trainer.max_steps=2", "trainer.log_every=1", name="share")
    summary = run_experiment(config)
    rows = [row["train/mfu"] for row in read_metrics(directory_of(config).metrics) if "train/mfu" in row]
    assert len(rows) == 2
    assert min(rows) <= summary["mfu"] <= max(rows)


def test_the_configuration_reaches_tensorboard_and_wandb(composed):
    loggers = ["logger=[tensorboard,wandb]", "logger.wandb.offline=true"]
    config = composed(*RUN, *loggers, "trainer.max_steps=1", "optimizer.lr=0.00325", name="logged")
    run_experiment(config)
    files = directory_of(config)
    assert yaml.safe_load((files.path / "tensorboard" / "hparams.yaml").read_text()) == config
    events = EventAccumulator(str(files.path / "tensorboard")).Reload()
    assert "_hparams_/session_start_info" in events.summary_metadata

    # a resumed run's checkpoint is that of the whole one, though its configuration says run.resume
    assert not any("hyper" in key for key in torch.load(files.checkpoint("last"), weights_only=True))
    (path,) = files.path.glob("wandb/offline-run-*/*.wandb")
    logged = path.read_bytes()  # records with JSON in them
    for section in ("optimizer", "scheduler", "trainer", "hardware"):
        assert section.encode() in logged
    assert b"0.00325" in logged
