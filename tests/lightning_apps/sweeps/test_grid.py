import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from lightning_apps.config.composition import CONF
from lightning_apps.config.override_value import override_value
from lightning_apps.errors import ConfigError
from lightning_apps.sweeps.grid import (
    Axis,
    SweepSettings,
    check_overrides,
    check_settings,
    corners,
    default_name,
    describe_axes,
    expand,
    grid_axes,
    job_size,
    read_axis,
    short_keys,
    time_left,
)
from tests.fakes.fake_sweep import SETTINGS

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())


def test_the_last_key_changes_fastest():
    grid = {"seed": [0, 1], "trainer": {"max_tokens": [10, 20]}, "data": {"num_categories": [1, 2]}}
    jobs = expand(grid_axes(grid))
    assert [tuple(job.values.values()) for job in jobs] == [
        (0, 10, 1), (0, 10, 2), (0, 20, 1), (0, 20, 2), (1, 10, 1), (1, 10, 2), (1, 20, 1), (1, 20, 2),
    ]  # fmt: skip
    assert jobs[1].name == "max_tokens=10,num_categories=2,seed=0"
    assert jobs[1].overrides == ["seed=0", "trainer.max_tokens=10", "data.num_categories=2"]
    assert job_size(jobs[1].values) == 10.0


def test_names_do_not_depend_on_the_order_of_the_grid():
    one = expand(grid_axes({"seed": [0, 1], "optimizer": {"lr": [1e-3]}}))
    other = expand(grid_axes({"optimizer": {"lr": [1e-3]}, "seed": [1, 0]}))
    assert {job.name for job in one} == {job.name for job in other} == {"lr=0.001,seed=0", "lr=0.001,seed=1"}


def test_dots_and_trees_are_the_same_and_null_takes_a_key_out():
    axes = grid_axes({"trainer.max_steps": [1], "data": {"x": {"y": [2]}}, "seed": None})
    assert {key: axis.values for key, axis in axes.items()} == {"trainer.max_steps": (1,), "data.x.y": (2,)}


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ({}, r"nothing is swept: list values, --multirun seed=0,1,2"),
        ({"seed": None}, "nothing is swept"),
        ({"seed": 3}, r"sweep\.grid\.seed=3: give a list of values, sweep\.grid\.seed=\[3\]"),
        ({"seed": []}, r"sweep\.grid\.seed=\[\]: give at least one value"),
        ({"seed": [0, 1, 0]}, r"sweep\.grid\.seed=\[0,1,0\] lists 0 twice"),
        ({"trainer": {"max_steps": [1]}, "trainer.max_steps": [2]}, "names trainer.max_steps twice"),
        ({"seed": "7"}, r"sweep\.grid\.seed='7': give a list of values"),
        ({"seed": "range(0,0)"}, r"sweep\.grid\.seed: give at least one value"),
        ({"seed": "range(0,3,0)"}, r"seed=range\(0,3,0\): "),
        ({"optimizer.lr": "interval(0,1)"}, r"optimizer\.lr=interval\(0,1\): an interval has no values to list"),
        ({"logger": [["csv"], []]}, "logger cannot be swept"),
        ({"run": {"name": ["a", "b"]}}, "run cannot be swept"),
        ({"data": {"path": ["a b", "a:b"]}}, "two jobs would be called"),
    ],
)
def test_flawed_grids_get_one_line(grid, expected):
    with pytest.raises(ConfigError, match=expected):
        expand(grid_axes(grid))


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("seed=0,1,2", (0, 1, 2)),
        ("seed=range(0,3)", (0, 1, 2)),
        ("optimizer.lr=range(0.25,1,0.25)", (0.25, 0.5, 0.75)),
        ("model=choice(qwen2_tiny,pythia_14m)", ("qwen2_tiny", "pythia_14m")),
        ("data.countries=[FR,DE],null", (["FR", "DE"], None)),
        ("+module.x='a b',\"c,d\"", ("a b", "c,d")),
    ],
)
def test_hydras_grammar_makes_axes(word, values):
    axis = read_axis(word, None)
    assert (axis.values, axis.bounds) == (values, None)
    assert read_axis("seed=7", None) is None
    # what was read is written as words that read the same
    for job in expand({axis.key: axis}):
        override = OverridesParser.create().parse_override(job.overrides[0])
        assert (override.get_key_element(), override.value()) == (word.split("=")[0], job.values[axis.key])


def test_glob_knows_the_options_of_a_group():
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        axis = read_axis("model=glob(pythia*,exclude=*1*)", GlobalHydra.instance().config_loader())
    assert axis.values == ("pythia_70m",)


def test_spaces_of_a_search():
    assert read_axis("optimizer.lr=tag(log,interval(1e-4,1e-2))", None) == Axis(
        key="optimizer.lr", bounds=(1e-4, 1e-2), tags=frozenset({"log"}), text="tag(log,interval(1e-4,1e-2))"
    )
    assert read_axis("model.num_hidden_layers=int(interval(1,8))", None).bounds == (1, 8)
    assert read_axis("model.hidden_size=range(16,65,16)", None).step == 16


def test_the_corners_of_a_space_are_told_apart():
    space = grid_axes({"optimizer.lr": "interval(0.1,1)", "model.pretrained": ["org/x_y", "org/x-y"]})
    assert [tuple(job.values.values()) for job in corners(space)] == [
        (0.1, "org/x_y"), (1, "org/x_y"), (0.1, "org/x-y"),
    ]  # fmt: skip
    # a name has no slash: both would be one job, whose result each of them gets
    space = grid_axes({"optimizer.lr": "interval(0.1,1)", "model.pretrained": ["org/x_y", "org_x/y"]})
    with pytest.raises(ConfigError, match=r"^two jobs would be called lr=0\.1,pretrained=org_x_y; change one of their"):
        corners(space)


def test_a_sweep_without_a_name_gets_one_that_more_values_do_not_change():
    one, more = (grid_axes({"seed": seeds, "optimizer.lr": [1e-3]}) for seeds in ([0], [0, 1]))
    name = default_name(["experiment=location", "trainer.max_steps=5", "run.output_root=/x"], one)
    assert name.startswith("lr+seed-")
    assert default_name(["trainer.max_steps=5", "experiment=location"], more) == name
    assert default_name(["trainer.max_steps=6", "experiment=location"], one) != name
    assert default_name(["experiment=location", "trainer.max_steps=5"], {"seed": one["seed"]}) != name


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
        ({"job_time": "5 min"}, "sweep.job_time='5 min'"),
        ({"max_time": "00:61:00"}, "sweep.max_time='00:61:00'"),
    ],
)
def test_settings_out_of_range(changes, expected):
    check_settings(SweepSettings(**SETTINGS))
    with pytest.raises(ConfigError, match=expected):
        check_settings(SweepSettings(**{**SETTINGS, **changes}))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=7", r"the sweep sets seed; change it with 'sweep\.grid\.seed"),
        ("+seed=7", "the sweep sets seed"),
        ("run.name=x", "names and resumes its jobs itself"),
        ("run.overwrite=true", "names and resumes its jobs itself"),
    ],
)
def test_overrides_that_the_sweep_decides(override, expected):
    check_overrides(["run.output_root=/x", "data.seed=3"], {"seed": [0]}, "")
    with pytest.raises(ConfigError, match=expected):
        check_overrides([override], {"seed": [0]}, "")


def test_the_grid_in_words():
    axes = grid_axes({"seed": [0, 1, 2], "data.num_categories": [1, 2], "optimizer.lr": "interval(0,1)"})
    assert describe_axes(axes) == "3 seed x 2 num_categories x interval(0,1) lr"


def test_time_left_follows_the_size_of_the_jobs():
    assert time_left([], [(1.0, 3.0)], [1.0], 1) is None
    # ten seconds for a job of size 1: 30 of the running one are left, 20 wait
    assert time_left([(1.0, 10.0)], [(4.0, 10.0)], [2.0], 1) == 50.0
    assert time_left([(1.0, 10.0)], [(4.0, 10.0)], [2.0], 2) == 30.0  # no sooner than the longest running job
    assert time_left([(1.0, 10.0)], [(1.0, 99.0)], [], 1) == 0.0
