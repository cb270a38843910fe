"""Out of reach, the hub is not asked again and again; proxy settings that no client can use are a hub out of reach."""

import datasets
import pytest
from huggingface_hub import constants
from transformers import AutoTokenizer

from datamodules.labelled.texts import read_hub_dataset
from datamodules.text import hub_access

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture
def unreachable(monkeypatch):
    monkeypatch.setattr(hub_access, "hub_is_reachable", lambda: False)
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


@pytest.mark.parametrize(
    ("name", "value"),
    [("NO_PROXY", "fd00::/8,localhost"), ("NO_PROXY", "::1/128"), ("ALL_PROXY", "socks5://127.0.0.1:9")],
)
def test_proxy_settings_that_cannot_be_used(name, value, monkeypatch, capsys, tmp_path):
    for proxy in PROXIES:
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub_access.hub_is_reachable.cache_clear()
    try:
        assert not hub_access.hub_is_reachable()
        assert not hub_access.hub_is_reachable()
        said = capsys.readouterr().err
        assert said.startswith("the Hugging Face hub is not reachable: the proxy settings of the environment cannot be")
        assert said.count("\n") == 1
        # a name that is cached nowhere: told as offline, not as an error of the proxy
        with pytest.raises(OSError, match=r"offline|cached|connect"):
            AutoTokenizer.from_pretrained("nobody/has-this", cache_dir=tmp_path, local_files_only=True)
    finally:
        hub_access.hub_is_reachable.cache_clear()
