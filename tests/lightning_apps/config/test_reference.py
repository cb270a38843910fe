"""docs/config.md: what the generator writes now, with a meaning for every key of every configuration."""

import re
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Lt
from hydra import compose, initialize_config_dir

from lightning_apps.config.composition import CONF, options, plain
from lightning_apps.config.reference import PAGE, kind_in_words, over, page, sentences
from lightning_apps.config.value_checks import Allowed
from lightning_apps.run_files.settings import flat_settings
from models.from_data import FromData


@pytest.fixture(scope="module")
def written():
    return page()


def test_the_page_is_what_the_command_writes(written):
    assert PAGE.read_text(encoding="utf-8") == written, "run: make config-docs"


def test_every_key_has_a_meaning(written):
    rows = re.findall(r"^\| `([^`]+)` \| .* \| (.*) \|$", written, flags=re.MULTILINE)
    assert len(rows) > 250
    assert [key for key, meaning in rows if not meaning] == [], "write a comment beside the value, or an Args sentence"


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_key_of_an_experiment_is_on_the_page(experiment, written):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = plain(compose("config", overrides=[f"experiment={experiment}", "run.name=x", "~sweep"]))
    known = set(re.findall(r"^\| `([^`]+)` \|", written, flags=re.MULTILINE))
    missing = [
        key
        for key in flat_settings({**config, "verify": []})
        if not key.endswith("_target_") and not any(f"{key}.".startswith(f"{there}.") for there in known)
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Annotated[int, Ge(1)] | None, "int >= 1 or null"),
        (Annotated[float, Ge(0), Lt(1)], "float >= 0, < 1"),
        (Literal["auto"] | Annotated[int, Ge(1)], "auto or int >= 1"),
        (Annotated[str, Allowed(Literal["a", "b"] | None)], "a, b or null"),
        (list[str] | None, "list of text or null"),
        (FromData[int], "int"),
        (dict[str, int], "keys"),
        (bool, "true or false"),
    ],
)
def test_types_as_a_reader_sees_them(annotation, words):
    assert kind_in_words(annotation) == words


def test_sentences_of_a_docstring():
    def call(first, second):
        """Do it.

        Args:
            first: one sentence, that goes on
                in a second line.
            second: another.

        Raises:
            ValueError: never.
        """

    call.__module__ = "models.x"
    assert sentences(call) == {"first": "one sentence, that goes on in a second line.", "second": "another."}
    call.__module__ = "torch.x"
    assert sentences(call) == {}


def test_the_second_mapping_wins():
    assert over({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "d": {"e": 5}}) == {
        "a": {"b": 1, "c": 4},
        "d": {"e": 5},
    }
