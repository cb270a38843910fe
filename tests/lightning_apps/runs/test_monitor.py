"""The metric that selects is known before the first step."""

import pytest

from lightning_apps.errors import ConfigError
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.runs import experiment_run
from lightning_apps.runs.experiment_run import run_experiment
from tests.tiny.tiny_runs import ARXIV, IMDB, LOCATION, RATING, directory_of

SHORT = ["trainer.max_epochs=null", "trainer.max_tokens=null", "trainer.max_steps=1", "trainer.evaluate_every=1"]
RUNS = {
    "location": LOCATION,
    "gsm8k": [
        "experiment=gsm8k", "data.num_validation=4", "data.global_batch_size=8", "data.max_length=160",
        "callbacks.extra.generation.num_samples=2", "callbacks.extra.generation.max_new_tokens=2", "hardware=cpu",
        "callbacks.extra.generation.self_consistency={num_samples: 2, temperature: 0.7, top_p: 0.9}",
        "data.max_test_samples=2",
    ],
    "arxiv": ARXIV,
    "imdb": [*IMDB, "data.multi_label=true"],
    "rating": RATING,
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_what_is_foretold_is_what_an_evaluation_logs(name, composed, small_gsm8k, monkeypatch):
    own = [f"data.path={small_gsm8k}/data", f"model.pretrained={small_gsm8k}/model"] if name == "gsm8k" else []
    config = composed(*RUNS[name], *own, *SHORT, name="run")
    told = set()

    def note(config, plan, module, callbacks, data):
        parts = [part for part in (module, *callbacks) if hasattr(part, "evaluation_metrics")]
        told.update(f"val/{metric}" for part in parts for metric in part.evaluation_metrics(data))

    monkeypatch.setattr(experiment_run, "check_monitor", note)
    run_experiment(config)
    rows = read_metrics(directory_of(config).metrics)
    assert told == {key for row in rows for key in row if key.startswith("val/")}


def test_a_metric_that_nothing_measures_is_refused_before_anything_is_written(composed):
    config = composed(*LOCATION, *SHORT, "callbacks.checkpoints.monitor=val/haversine_km_medain", name="run")
    with pytest.raises(ConfigError) as error:
        run_experiment(config)
    assert str(error.value) == (
        "callbacks.checkpoints.monitor=val/haversine_km_medain (did you mean val/haversine_km_median?): no evaluation "
        "measures it; there are val/collapsed_ratio, val/haversine_km_max, val/haversine_km_mean, "
        "val/haversine_km_mean_penalized, val/haversine_km_median, val/haversine_km_median_penalized, "
        "val/haversine_km_min, val/haversine_km_std, val/loss, val/valid_ratio"
    )
    assert not directory_of(config).path.exists()


def test_a_run_without_evaluations_selects_nothing(composed):
    more = ["trainer.evaluate_every=never", "callbacks.checkpoints.monitor=val/nonsense"]
    assert run_experiment(composed(*LOCATION, *SHORT, *more, name="run"))["status"] == "completed"
