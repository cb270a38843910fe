import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from lightning_apps.config.overrides import quote_value, quoted, run_name


def test_run_names_are_stable_and_distinct():
    assert run_name([]) == "default"
    assert run_name(["experiment=location", "run.resume=auto", "logger=wandb"]) == "default"
    assert run_name(["seed=1", "model.hidden_size=64"]) == "model.hidden_size=64,seed=1"
    assert run_name(["model.hidden_size=64", "seed=1"]) == run_name(["seed=1", "model.hidden_size=64"])
    assert run_name(["data.countries=[FR,DE]"]) == "data.countries=_FR,DE_"
    long = run_name([f"model.x{number}={number}" for number in range(30)])
    assert len(long) < 100
    assert long != run_name([f"model.x{number}={number}" for number in range(1, 31)])


PATHS = [
    "/tmp/données", "/tmp/日本", "/a/b#c", "/a&b", "~/x", "/it's", "/a(b", "/a(b)", "/a,b", "/a;b", "/a!b", "/a{b",
    "/a[b", "/a^b", "/a`b", "/a<b>", 'x"y', "a=b,c=d", "outputs/location/seed=1", "/a\\é\\", "/a b", "C:\\x",
]  # fmt: skip


@pytest.mark.parametrize("value", PATHS)
@pytest.mark.parametrize("key", ["data.path", "+data.path", "run"])
def test_a_path_reaches_the_configuration_as_it_was_typed(key, value):
    override = OverridesParser.create().parse_override(quote_value(f"{key}={value}"))
    assert not override.is_sweep_override()
    assert override.value() == value


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\n", exclude_categories=["Cc", "Cs"])))
def test_quotes_give_back_any_text(text):
    if "${" not in text:
        assert OverridesParser.create().parse_override(f"key={quoted(text)}").value() == text


@pytest.mark.parametrize(
    "same",
    [
        "seed=1", "seed=1,2", "optimizer.lr=1e-3", "data.continents=[EU]", 'run="a=b"', "run='é'", "--cfg=job", "-m",
        "callbacks.early_stopping={a: 1}", "run=outputs/seed\\=1", "data.path=/a\\,b", "~logger", "seed=range(1,3)",
        "seed=choice(1,2)", "data.tokenizer=${model.pretrained}", "a=[b", "a={b", "x=", "model=a,b",
    ],
)  # fmt: skip
def test_what_hydra_reads_or_is_meant_for_it_stays(same):
    assert quote_value(same) == same


def test_words_of_lists_and_of_sweeps_are_quoted_one_by_one():
    assert quote_value("data.label_names=[été,hiver]") == 'data.label_names=["été",hiver]'
    assert quote_value("data.path=/a/é,/b", multirun=True) == 'data.path="/a/é",/b'
    assert quote_value("data.path=/a,/b", multirun=True) == "data.path=/a,/b"
    assert quote_value("run=outputs/seed=1") == 'run="outputs/seed=1"'
