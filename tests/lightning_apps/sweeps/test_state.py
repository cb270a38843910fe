from dataclasses import replace

import pytest

from lightning_apps.errors import ConfigError
from lightning_apps.sweeps.state import (
    JobRecord,
    SweepState,
    continue_state,
    read_state,
)


def state_of(*seeds, **changes):
    jobs = [JobRecord(f"seed={seed}", {"seed": seed}, [f"seed={seed}"], f"outputs/x/s-seed={seed}") for seed in seeds]
    whole = SweepState(
        "s", "x", "python", {"seed": list(seeds)}, {"trainer": {"max_steps": 5}, "run": {"name": None}}, jobs
    )
    return replace(whole, **changes)


def test_a_state_is_read_back(tmp_path):
    state = state_of(0, 1)
    state.job("seed=1").status = "failed"
    state.job("seed=1").wall_s = 0.1 + 0.2
    state.write(tmp_path)
    assert read_state(tmp_path) == state
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]
    assert read_state(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"jobs": [{"name": 1}]}', '{"jobs": []}'])
def test_a_damaged_state_is_one_line(text, tmp_path):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ConfigError, match=r"sweep\.json is no state.*delete it") as error:
        read_state(tmp_path)
    assert "\n" not in str(error.value)


def test_a_grown_grid_adds_jobs_and_keeps_what_is_known(tmp_path):
    before = state_of(0, 1)
    before.job("seed=0").status, before.job("seed=0").attempts = "done", 2
    grown = continue_state(before, state_of(2, 0), tmp_path)
    assert [job.name for job in grown.jobs] == ["seed=2", "seed=0", "seed=1"]
    assert [job.status for job in grown.jobs] == ["pending", "done", "pending"]
    assert grown.job("seed=0").attempts == 2
    assert grown.grid == {"seed": [2, 0]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"experiment": "y"}, "is a sweep of experiment=x, not y; choose another sweep.name"),
        ({"grid": {"seed": [0], "lr": [1]}}, "has the grid keys seed, now they are lr, seed"),
        ({"settings": {"trainer": {"max_steps": 6}}}, r"other settings \(trainer\.max_steps: 5 then, 6 now\)"),
    ],
)
def test_contradictions_are_refused(changes, expected, tmp_path):
    with pytest.raises(ConfigError, match=expected):
        continue_state(state_of(0), state_of(0, **changes), tmp_path)


def test_where_and_how_a_sweep_runs_may_change(tmp_path):
    settings = {"trainer": {"max_steps": 5}, "run": {"name": "b"}, "hardware": {"devices": 2}, "logger": {"wandb": {}}}
    assert continue_state(state_of(0), state_of(0, settings=settings), tmp_path).settings == settings


def test_settings_survive_json(tmp_path):
    settings = {"module": {"a": (1, 2), "b": float("inf"), "c": 1e-3}}
    first = state_of(0, settings=settings)
    first.write(tmp_path)
    assert continue_state(read_state(tmp_path), first, tmp_path).settings == settings
