"""Configurations that nobody meant: each is fine, or refused in one line that names a key."""

import functools
import math
import operator
import os
import re

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_apps.config.checks import check_config
from lightning_apps.config.composition import CONF, plain
from lightning_apps.config.override_value import override_value
from lightning_apps.errors import ConfigError
from lightning_apps.run_files.settings import flat_settings
from tests.asserts.refusals import refusal

EXPERIMENTS = ("location", "gsm8k", "arxiv", "imdb", "rating")
GROUPS = ("callbacks", "data", "experiment", "hardware", "logger", "model", "optimizer", "precision", "run",
          "scheduler", "trainer", "sweep")  # fmt: skip
ODD = [
    "null", "true", "off", "0", "-1", "1", "2", "0.5", "1.5", "-0.0", "1e400", "-.inf", ".nan", "nan", "inf", "1e-400",
    "''", '""', "' '", "[]", "{}", "[[]]", "[null]", "[1,a]", "{a:1}", "{_target_:os.system}", "{a:{b:[1]}}", "???",
    "${seed}", "${nothing}", "${oc.env:HOME}", "${", "a=b", "a,b", "é", "\u2028", "99999999999999999999999", "0x10",
    "1_000", "010", "2020-01-01", "12:30:45", "-", "~", "!!python/object:os.system", "\\", "x" * 300, "'unclosed",
    "os.system", "builtins.print", "sys.exit", "..", "a..b", ".a", "/", "C:\\x", "~/x", "#", "%s", "{}{}", "$(ls)",
]  # fmt: skip


def composed(experiment):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return plain(compose("config", overrides=[f"experiment={experiment}", "run.name=fuzz"]))


KEYS = {}


def keys_of(experiment):
    """Keys of an experiment's configuration, of its leaves and of what is above them."""
    if experiment not in KEYS:
        leaves = list(flat_settings(composed(experiment)))
        above = {leaf.rpartition(".")[0] for leaf in leaves if "." in leaf}
        KEYS[experiment] = [key for key in sorted({*leaves, *above, *GROUPS}) if key]
    return KEYS[experiment]


@st.composite
def mutations(draw):
    """An experiment, and one to three overrides of which nobody would say that they belong there."""
    experiment = draw(st.sampled_from(EXPERIMENTS))
    words = []
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(keys_of(experiment)))
        kind = draw(st.sampled_from(["set", "set", "set", "set", "add", "force", "delete", "typo", "below"]))
        value = draw(
            st.one_of(
                st.sampled_from(ODD),
                st.integers().map(str),
                st.floats().map(repr),
                st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12),
                st.lists(st.integers(-2, 2), max_size=3).map(override_value),
            )
        )
        if kind == "typo":
            place = draw(st.integers(0, len(key) - 1))
            key = key[:place] + key[place + 1 :]
        if kind == "below":
            key = f"{key}.nothing"
        prefix = {"add": "+", "force": "++", "delete": "~"}.get(kind, "")
        words.append(f"{prefix}{key}" if kind == "delete" else f"{prefix}{key}={value}")
    return [f"experiment={experiment}", *words]


def check_outcome(overrides):
    said = refusal(overrides)
    if said is not None:
        assert said.strip(), overrides
        assert "\n" not in said, (overrides, said)
        assert not said.startswith(("Traceback", "<")), (overrides, said)


def test_a_value_of_line_ends_is_quoted():
    said = refusal(["experiment=location", "callbacks=\n\u2028\x1b[1m"])
    assert said.startswith(r"callbacks=\n\u2028\x1b[1m: there is no such option; allowed: arxiv, ")


@given(mutations())
@settings(max_examples=10)  # the slow test takes hundreds
def test_a_mutated_configuration_is_fine_or_refused_in_one_line(overrides):
    check_outcome(overrides)


@pytest.mark.slow
@given(mutations())
@settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "300")))
def test_hundreds_of_mutated_configurations(overrides):
    check_outcome(overrides)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_numbers_that_are_none_are_refused_everywhere(experiment):
    """Every number that may be a fraction as NaN and infinite, set where the configuration is composed already."""
    config = composed(experiment)
    for key, value in flat_settings(config).items():
        if isinstance(value, float) and math.isfinite(value) and not key.startswith("sweep"):
            *sections, name = key.split(".")
            node = functools.reduce(operator.getitem, sections, config)
            for none in (math.nan, math.inf):
                node[name] = none
                with pytest.raises(ConfigError, match=re.escape(name)):
                    check_config(config)
            node[name] = value
    check_config(config)
