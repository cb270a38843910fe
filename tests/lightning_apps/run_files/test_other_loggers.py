"""MLflow and Trackio: a run is there with its configuration, values and group; without the package a line says so."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_apps.callbacks.step_clock import StepClock
from lightning_apps.errors import ConfigError
from lightning_apps.run_files import other_loggers
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.run_files.other_loggers import TrackioLogger
from lightning_apps.run_files.side_logger import SideLogger
from lightning_apps.runs.experiment_run import run_experiment
from tests.tiny.tiny_runs import LOCATION, directory_of

RUN = [*LOCATION, "trainer.max_steps=2", "callbacks.extra.picture=null", "trainer.evaluate_every=never"]


def test_mlflow_has_configuration_values_and_group(composed, monkeypatch, capsys):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = composed(*RUN, "logger=mlflow", "run.group=rates", name="a")
    assert run_experiment(config)["status"] == "completed"
    assert "MLFlowLogger failed" not in capsys.readouterr().out
    root = Path(config["run"]["output_root"])
    client = mlflow.MlflowClient(f"file:{root / 'mlruns'}")
    (run,) = client.search_runs([client.get_experiment_by_name("location").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.tags["group"]) == ("a", "FINISHED", "rates")
    assert run.data.params["seed"] == "42"
    losses = {row["step"]: row["train/loss"] for row in read_metrics(directory_of(config).metrics)}
    assert {point.step: point.value for point in client.get_metric_history(run.info.run_id, "train/loss")} == losses
    assert not Path("mlruns").exists()


def test_a_resumed_run_goes_on_in_its_run_of_mlflow(composed, monkeypatch, capsys):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = [*RUN, "logger=mlflow", "trainer.save_every=1", "trainer.max_steps=3"]
    stopped = composed(*words, name="a")
    take_step = StepClock.on_train_batch_end

    def kill(clock, trainer, *arguments):
        take_step(clock, trainer, *arguments)
        if trainer.global_step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StepClock, "on_train_batch_end", kill)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run_experiment(stopped)
    stopped["run"]["resume"] = "auto"
    assert run_experiment(stopped)["status"] == "completed"
    assert "MLFlowLogger failed" not in capsys.readouterr().out
    client = mlflow.MlflowClient(f"file:{Path(stopped['run']['output_root']) / 'mlruns'}")
    experiment = client.get_experiment_by_name("location").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert {point.step for point in client.get_metric_history(run.info.run_id, "train/loss")} == {1, 2, 3}
    again = composed(*words, "run.overwrite=true", name="a")
    run_experiment(again)
    assert len(client.search_runs([experiment])) == 2  # another run, another one there


class Recorded:
    """Stands in for the package trackio, whose newer versions do not go with the pinned pandas."""

    def __init__(self):
        self.begun, self.rows, self.ended = [], [], 0

    def init(self, project, **options):
        print("an advertisement")
        self.begun.append((project, options))
        return self

    def log(self, metrics, step):
        self.rows.append((step, metrics))

    def finish(self):
        self.ended += 1


def test_trackio_has_configuration_values_and_group(tmp_path, monkeypatch, capsys):
    there = Recorded()
    monkeypatch.setitem(sys.modules, "trackio", there)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    logger = SideLogger(TrackioLogger(save_dir=tmp_path / "location" / "a", group="rates"))
    assert other_loggers.os.environ["TRACKIO_DIR"] == str(tmp_path / "trackio")
    logger.log_hyperparams({"seed": 1, "model": {"hidden_size": 8}})
    logger.log_metrics({"train/loss": 0.5}, 3)
    logger.finalize("success")
    ((project, options),) = there.begun
    assert (project, options["name"], options["group"], options["resume"]) == ("location", "a", "rates", "allow")
    assert options["config"] == {"seed": 1, "model.hidden_size": 8}
    assert (there.rows, there.ended) == ([(3, {"train/loss": 0.5})], 1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("package", ["mlflow", "trackio"])
def test_a_package_that_is_missing_is_one_line_before_anything_is_written(package, composed, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = composed(*RUN, f"logger={package}", name="a")
    with pytest.raises(ConfigError, match=rf"logger={package} needs .*pip install \"lightning-apps\[{package}\]\"$"):
        run_experiment(config)
    assert not directory_of(config).path.exists()


def test_wandb_groups_runs(composed, monkeypatch):
    config = composed(*RUN, "logger=wandb", "run.group=rates", "logger.wandb.offline=true", name="a")
    assert config["logger"]["wandb"]["group"] == "rates"


def test_an_empty_key_of_wandb_is_none(composed, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = composed(*RUN, "logger=wandb", name="a")
    with pytest.raises(ConfigError, match=r"^logger=wandb needs an account: "):
        run_experiment(config)
