import sys
from types import ModuleType
from typing import Annotated, Literal, NotRequired

import pytest
from annotated_types import Ge, Gt, Lt
from typing_extensions import TypedDict, Unpack

from lightning_apps.config.binding import bind, parameters_of, supplied_by_data
from lightning_apps.errors import ConfigError
from models.attention_sizes import checked_by
from models.from_data import FromData


class Loading(TypedDict):
    """Options that several targets share."""

    batch_size: Annotated[int, Ge(1)]
    shuffle: NotRequired[bool]
    label_names: FromData[list[str]]


class Part(TypedDict):
    """A nested setting."""

    rank: Annotated[int, Ge(0)]
    kind: Literal["low", "high"]


def loader(*, path: str, **options: Unpack[Loading]):
    return path, options


def net(
    *,
    vocab_size: FromData[int],
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
    scales: list[Annotated[float, Gt(0)]] = [],  # noqa: B006 (never changed)
    part: Part | None = None,
    parts: list[Part] | None = None,
):
    return vocab_size, dropout


def even(settings):
    if settings["width"] % 2:
        raise ValueError(f"model.width={settings['width']}: must be even")


@checked_by(even)
def even_net(*, width: int):
    return width


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
    module = ModuleType("stand_in")
    module.__dict__.update(loader=loader, net=net, even_net=even_net)
    monkeypatch.setitem(sys.modules, "stand_in", module)


def test_the_fields_of_a_typed_dict_are_parameters():
    names, takes_any = parameters_of(loader)
    assert list(names) == ["path", "batch_size", "shuffle", "label_names"]
    assert not takes_any
    bound = bind("data", {"_target_": "stand_in.loader", "path": "x", "batch_size": 2})
    assert bound(label_names=["a"]) == ("x", {"batch_size": 2, "label_names": ["a"]})


def test_what_comes_from_the_data_is_neither_asked_for_nor_missing():
    assert supplied_by_data(net) == {"vocab_size"}
    assert supplied_by_data(loader) == {"label_names"}
    assert bind("model", {"_target_": "stand_in.net"})(vocab_size=3) == (3, 0.0)


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        (
            "loader",
            {"path": "x", "batch_sise": 2},
            "x.batch_sise does not exist (did you mean batch_size?); allowed: path, batch_size, shuffle",
        ),
        ("loader", {"path": "x", "batch_size": "2"}, "x.batch_size='2': input should be a valid integer; expected int"),
        ("loader", {"path": "x", "batch_size": 0}, "x.batch_size=0: must be at least 1"),
        ("loader", {"path": "x"}, "x.batch_size is missing; stand_in.loader needs it"),
        ("net", {"dropout": 1.0}, "x.dropout=1.0: must be at least 0 and below 1"),
        ("net", {"dropout": float("nan")}, "x.dropout=nan: must be at least 0 and below 1"),
        ("net", {"scales": [1.0, float("inf")]}, "x.scales=[1.0, inf]: must be a finite number"),
        ("net", {"scales": [1.0, 0.0]}, "x.scales=[1.0, 0.0]: must be positive (at scales[1])"),
        ("net", {"part": {"rank": -1, "kind": "low"}}, "x.part.rank=-1: must be a number that is not negative"),
        ("net", {"part": {"rank": 1}}, "x.part.kind is missing"),
        (
            "net",
            {"part": {"rank": 1, "kind": "hihg"}},
            "x.part.kind='hihg' (did you mean high?): allowed are low, high",
        ),
        (
            "net",
            {"parts": [{"rnk": 1, "kind": "low"}]},
            "x.parts[0].rnk does not exist (did you mean rank?); allowed: rank, kind",
        ),
        ("even_net", {"width": 3}, "model.width=3: must be even"),
    ],
)
def test_messages(target, settings, message):
    with pytest.raises(ConfigError) as caught:
        bind("x", {"_target_": f"stand_in.{target}", **settings})
    assert str(caught.value) == message


def test_a_constructor_checks_what_it_is_called_with_as_bind_does():
    assert even_net(width=4) == 4
    with pytest.raises(ValueError, match=r"model\.width=3: must be even"):
        even_net(width=3)


def test_arguments_without_names_are_none_that_a_configuration_lacks():
    parameters, takes_any = parameters_of(lambda *args, size=1, **kwargs: None)
    assert (list(parameters), takes_any) == (["size"], True)
