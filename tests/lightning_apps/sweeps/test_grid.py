import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from lightning_apps.config.override_value import override_value
from lightning_apps.errors import ConfigError
from lightning_apps.sweeps.grid import (
    SweepSettings,
    check_overrides,
    check_settings,
    describe_grid,
    expand,
    flat_grid,
    short_keys,
    time_left,
)

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())


def test_the_last_key_changes_fastest():
    jobs = expand({"seed": [0, 1], "trainer": {"max_tokens": [10, 20]}, "data": {"num_categories": [1, 2]}})
    assert [tuple(job.values.values()) for job in jobs] == [
        (0, 10, 1), (0, 10, 2), (0, 20, 1), (0, 20, 2), (1, 10, 1), (1, 10, 2), (1, 20, 1), (1, 20, 2),
    ]  # fmt: skip
    assert jobs[1].name == "max_tokens=10,num_categories=2,seed=0"
    assert jobs[1].overrides == ["seed=0", "trainer.max_tokens=10", "data.num_categories=2"]
    assert jobs[1].size == 10.0


def test_names_do_not_depend_on_the_order_of_the_grid():
    one = expand({"seed": [0, 1], "optimizer": {"lr": [1e-3]}})
    other = expand({"optimizer": {"lr": [1e-3]}, "seed": [1, 0]})
    assert {job.name for job in one} == {job.name for job in other} == {"lr=0.001,seed=0", "lr=0.001,seed=1"}


def test_dots_and_trees_are_the_same_and_null_takes_a_key_out():
    assert flat_grid({"trainer.max_steps": [1], "data": {"x": {"y": [2]}}, "seed": None}) == {
        "trainer.max_steps": [1],
        "data.x.y": [2],
    }


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ({}, "sweep.grid is empty"),
        ({"seed": None}, "sweep.grid is empty"),
        ({"seed": 3}, r"sweep\.grid\.seed=3: give a list of values, sweep\.grid\.seed=\[3\]"),
        ({"seed": []}, r"sweep\.grid\.seed=\[\]: give at least one value"),
        ({"seed": [0, 1, 0]}, r"sweep\.grid\.seed lists 0 twice"),
        ({"trainer": {"max_steps": [1]}, "trainer.max_steps": [2]}, "names trainer.max_steps twice"),
        ({"experiment": ["location", "arxiv"]}, "experiment cannot be swept"),
        ({"run": {"name": ["a", "b"]}}, "run cannot be swept"),
        ({"data": {"path": ["a b", "a:b"]}}, "two jobs would be called"),
    ],
)
def test_flawed_grids_get_one_line(grid, expected):
    with pytest.raises(ConfigError, match=expected):
        expand(grid)


def test_short_keys_tell_keys_apart():
    assert short_keys(["data.seed", "seed", "trainer.max_steps"]) == {
        "data.seed": "data.seed",
        "seed": "seed",
        "trainer.max_steps": "max_steps",
    }
    assert short_keys(["model.a.lr", "optimizer.lr"]) == {"model.a.lr": "a.lr", "optimizer.lr": "optimizer.lr"}


@given(
    st.one_of(
        SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.from_regex(r"[a-z]+", fullmatch=True), SCALARS)
    )
)
def test_hydra_reads_back_what_is_written(value):
    parsed = OverridesParser.create().parse_override(f"key={override_value(value)}").value()
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "a/b"}, "sweep.name='a/b'"),
        ({"name": "../x"}, "sweep.name="),
        ({"parallel": 0}, "sweep.parallel=0"),
        ({"retries": -1}, "sweep.retries=-1"),
        ({"devices": []}, r"sweep\.devices=\[\]"),
        ({"devices": [0, "0"]}, "name each device once"),
    ],
)
def test_settings_out_of_range(changes, expected):
    whole = {
        "name": "a", "grid": {}, "overrides": [], "parallel": None, "devices": None, "retries": 0,
        "retry_failed": False, "on_failure": "continue",
    }  # fmt: skip
    check_settings(SweepSettings(**whole))
    with pytest.raises(ConfigError, match=expected):
        check_settings(SweepSettings(**{**whole, **changes}))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=7", r"the grid sets seed; change it with 'sweep\.grid\.seed"),
        ("+seed=7", "the grid sets seed"),
        ("run.name=x", "names and resumes its jobs itself"),
        ("run.overwrite=true", "names and resumes its jobs itself"),
    ],
)
def test_overrides_that_the_sweep_decides(override, expected):
    check_overrides(["run.output_root=/x", "data.seed=3"], {"seed": [0]}, "")
    with pytest.raises(ConfigError, match=expected):
        check_overrides([override], {"seed": [0]}, "")


def test_the_grid_in_words():
    assert describe_grid({"seed": [0, 1, 2], "data.num_categories": [1, 2]}) == "3 seed x 2 num_categories"


def test_time_left_follows_the_size_of_the_jobs():
    assert time_left([], [(1.0, 3.0)], [1.0], 1) is None
    # ten seconds for a job of size 1: 30 of the running one are left, 20 wait
    assert time_left([(1.0, 10.0)], [(4.0, 10.0)], [2.0], 1) == 50.0
    assert time_left([(1.0, 10.0)], [(4.0, 10.0)], [2.0], 2) == 30.0  # no sooner than the longest running job
    assert time_left([(1.0, 10.0)], [(1.0, 99.0)], [], 1) == 0.0
