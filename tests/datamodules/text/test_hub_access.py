"""Proxy settings that no client can use are a hub that is not there."""

import pytest
from huggingface_hub import constants

from datamodules.text import hub_access
from datamodules.text.tokenized_texts import AutoTokenizer

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


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
