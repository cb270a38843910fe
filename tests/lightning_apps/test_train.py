"""Whole runs of the location experiment, seconds long."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from PIL import Image

from lightning_apps import evaluate as evaluate_command
from lightning_apps.errors import ConfigError
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.runs.experiment_run import run_experiment
from tests.asserts.rounding import relative_rounding
from tests.tiny.tiny_runs import LOCATION

SHORT = [*LOCATION, "trainer.max_steps=6", "trainer.evaluate_every=3", "trainer.save_every=2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache_root):
    """One short run that several tests look at."""
    from hydra import compose, initialize_config_dir

    from lightning_apps.config.composition import CONF, plain

    root = tmp_path_factory.mktemp("outputs")
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose(
            "config",
            overrides=[
                *SHORT,
                "precision=fp32",
                "data.num_test=9",
                f"run.output_root={root}",
                f"run.cache_root={cache_root}",
                "run.name=a",
            ],
        )
    config = plain(cfg)
    return RunDirectory(root / "location" / "a"), config, run_experiment(config)


def test_the_run_directory_is_complete(finished):
    directory, config, _ = finished
    assert yaml.safe_load(directory.config.read_text()) == config
    assert sorted(path.name for path in directory.checkpoints.iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "step=00000002.ckpt",
        "step=00000004.ckpt",
        "step=00000006.ckpt",
    ]
    with Image.open(directory.picture) as picture:
        assert picture.format == "PNG"
    assert "lightning_apps.evaluate" in directory.log.read_text()
    assert (
        "completed: reached trainer.max_steps=6; 6 of 6 optimizer steps" in (directory.path / "report.html").read_text()
    )


def test_every_step_is_logged_once_and_evaluations_at_their_step(finished):
    directory, _, _ = finished
    rows = read_metrics(directory.metrics)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "val/loss" in row] == [3, 6]
    assert all(
        {"train/loss", "train/learning_rate", "train/grad_norm", "train/param_norm"} <= row.keys() for row in rows
    )
    # no answer of these five thousand parameters is a place: a median of nothing is not logged
    evaluated = {"val/loss", "val/valid_ratio", "val/haversine_km_median_penalized"}
    assert all(evaluated <= row.keys() for row in rows if row["step"] in (3, 6))


def test_summary_says_what_happened(finished):
    directory, _, summary = finished
    assert json.loads(directory.summary.read_text())["optimizer_steps"] == 6
    assert (summary["status"], summary["reason"]) == ("completed", "reached trainer.max_steps=6")
    assert summary["tokens_seen"] == 6 * 8 * 22
    assert summary["target_tokens_seen"] == 6 * 8 * 10
    assert summary["parameters"]["total"] == summary["parameters"]["trainable"] > 1000
    assert summary["best"]["metric"] == "val/haversine_km_median_penalized"
    assert {"val/loss", "test/loss", "test/valid_ratio"} <= summary["metrics"].keys()
    assert summary["metrics"]["val/loss"] == read_metrics(directory.metrics)[-1]["val/loss"]
    for key in ("git_commit", "versions", "command", "wall_s", "tokens_per_s", "mfu", "peak_memory_bytes"):
        assert key in summary


def test_predictions_hold_every_city(finished):
    directory, config, _ = finished
    rows = [json.loads(line) for line in directory.predictions.read_text().splitlines()]
    assert len(rows) == config["data"]["num_test"] == 9  # the last evaluation is that of the test split
    assert {"input", "target", "output", "score"} <= rows[0].keys()


def test_checkpoints_load_without_pickle(finished):
    directory, _, _ = finished
    for path in directory.checkpoints.glob("*.ckpt"):
        assert "state_dict" in torch.load(path, weights_only=True)


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_evaluate_equals_training_to_the_last_digit(finished, checkpoint, monkeypatch, capsys):
    directory, _, _ = finished
    step = torch.load(directory.checkpoint(checkpoint), weights_only=True)["global_step"]
    trained = next(row for row in read_metrics(directory.metrics) if row["step"] == step)
    monkeypatch.setattr(sys, "argv", ["evaluate", f"run={directory.path}", f"checkpoint={checkpoint}"])
    evaluate_command.main()
    capsys.readouterr()
    written = json.loads((directory.evaluations / f"validation-{checkpoint}" / "metrics.json").read_text())
    expected = {key: value for key, value in trained.items() if key.startswith("val/") and value == value}
    measured = {key: value for key, value in written["metrics"].items() if value is not None}
    assert measured == expected
    assert len(measured) >= 5


def test_the_exported_model_gives_the_same_answers(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory, _, _ = finished
    net = AutoModelForCausalLM.from_pretrained(directory.model)
    tokenizer = AutoTokenizer.from_pretrained(directory.model)
    rows = [json.loads(line) for line in directory.predictions.read_text().splitlines()]
    batch = tokenizer([row["input"] for row in rows], return_tensors="pt", padding=True)
    answers = net.generate(
        **{key: batch[key] for key in ("input_ids", "attention_mask")}, max_new_tokens=10, do_sample=False
    )
    texts = tokenizer.batch_decode(answers[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert texts == [row["output"] for row in rows]


def test_a_second_start_in_the_same_place_is_refused_and_resume_shows_the_result(finished, capsys):
    _, config, summary = finished
    with pytest.raises(ConfigError, match="holds another run"):
        run_experiment(config)
    again = run_experiment({**config, "run": {**config["run"], "resume": "auto"}})
    assert again["wall_s"] == summary["wall_s"]
    assert "is complete" in capsys.readouterr().out


def test_resuming_with_other_settings_is_refused(finished):
    _, config, _ = finished
    other = {**config, "run": {**config["run"], "resume": "auto"}, "seed": 7}
    with pytest.raises(ConfigError, match=r"other settings \(seed: 42 then, 7 now\)|data\.seed"):
        run_experiment(other)


def test_overwrite_trains_anew(composed, capsys):
    config = composed(*LOCATION, "trainer.max_steps=2", "callbacks.extra.picture=null", name="again")
    first = run_experiment(config)
    second = run_experiment({**config, "run": {**config["run"], "overwrite": True}})
    assert repr(second["metrics"]) == repr(first["metrics"])  # repr: NaN is equal to NaN here
    assert second["best"]["step"] == first["best"]["step"]


def test_overwrite_where_no_run_is(composed):
    config = composed(
        *LOCATION, "trainer.max_steps=1", "callbacks.extra.picture=null", "run.overwrite=true", name="fresh"
    )
    assert run_experiment(config)["status"] == "completed"


def test_same_seed_same_weights_and_other_seed_other_weights(composed):
    def weights(name, *overrides):
        config = composed(*LOCATION, "trainer.max_steps=3", "callbacks.extra.picture=null", *overrides, name=name)
        run_experiment(config)
        directory = RunDirectory(_root(config) / name)
        return torch.load(directory.checkpoint("last"), weights_only=True)["state_dict"]

    first, second, other = weights("one"), weights("two"), weights("three", "seed=1")
    assert all(first[key].equal(second[key]) for key in first)
    assert not all(first[key].equal(other[key]) for key in first)


def _root(config):
    from pathlib import Path

    return Path(config["run"]["output_root"]) / config["experiment"]


@pytest.mark.parametrize("device_batch_size", [1, 3, 8])
def test_micro_batches_do_not_change_the_loss(composed, device_batch_size):
    def losses(name, size):
        config = composed(
            *LOCATION, "trainer.max_steps=4", "data.loss_mask=none", "callbacks=default",
            f"data.device_batch_size={size}", name=name,
        )  # fmt: skip
        run_experiment(config)
        return [row["train/loss"] for row in read_metrics(RunDirectory(_root(config) / name).metrics)]

    assert losses(f"by{device_batch_size}", device_batch_size) == pytest.approx(losses("whole", "null"), rel=1e-5)


def _losses(config):
    run_experiment(config)
    return [row["train/loss"] for row in read_metrics(RunDirectory(_root(config) / config["run"]["name"]).metrics)]


def test_an_epoch_shorter_than_the_accumulation_is_one_smaller_step(composed):
    """110 cities, steps of 500: each step sees all of them once, whatever the micro-batches."""
    run = [*LOCATION, "trainer.max_steps=3", "data.global_batch_size=500", "callbacks.extra.picture=null"]
    whole = composed(*run, name="whole")
    split = composed(*run, "data.device_batch_size=50", name="split")
    assert _losses(split) == pytest.approx(_losses(whole), rel=relative_rounding(110 * 10))  # targets
    summary = json.loads(RunDirectory(_root(split) / "split").summary.read_text())
    assert summary["tokens_seen"] == 3 * 110 * 22


def test_the_number_of_workers_changes_nothing(composed):
    run = [*LOCATION, "trainer.max_steps=16", "callbacks.extra.picture=null", "model.attention_dropout=0.3"]
    alone = _losses(composed(*run, name="alone"))
    assert _losses(composed(*run, "hardware.num_workers=2", name="workers")) == alone


@pytest.mark.slow
def test_the_command_line_end_to_end(tmp_path, cache_root):
    arguments = [*SHORT, f"run.output_root={tmp_path}", f"run.cache_root={cache_root}", "logger=[tensorboard,wandb]"]
    done = subprocess.run(
        [sys.executable, "-m", "lightning_apps.train", *arguments, "logger.wandb.offline=true", "run.name=cli"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert list((tmp_path / "location/cli/tensorboard").glob("events*"))
    assert list((tmp_path / "location/cli/wandb").glob("offline-run-*"))
