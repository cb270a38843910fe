"""Out of reach, the hub is not asked again and again."""

import datasets
import pytest
from huggingface_hub import constants

from datamodules.labelled.texts import read_hub_dataset
from datamodules.text import hub_access


@pytest.fixture
def unreachable(monkeypatch):
    monkeypatch.setattr(hub_access, "hub_is_reachable", lambda: False)
    monkeypatch.setattr("datamodules.labelled.texts.hub_is_reachable", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


def test_clients_look_into_their_caches_only_and_are_as_before_afterwards(unreachable):
    with hub_access.asking_in_vain_avoided():
        assert constants.HF_HUB_OFFLINE
        assert datasets.config.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE


def test_a_data_set_that_is_not_cached_is_one_error_and_nothing_beside_it(unreachable, capfd, caplog):
    with pytest.raises(ValueError, match=r"^data\.dataset=nobody/nothing cannot be loaded \(.*\); without a network"):
        read_hub_dataset("nobody/nothing", revision=None, text_column="text", label_column="label")
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if "Retrying" in record.message or "thrown" in record.message]
