import torch

from lightning_apps.runs.build import build_datamodule, build_module, build_plan
from tests.tiny.tiny_runs import LOCATION


def test_a_network_that_is_built_again_is_the_one_that_a_run_starts_from(composed):
    """Random weights too: what a policy must stay near is where it started, whatever was drawn since."""
    config = composed(*LOCATION)
    data = build_datamodule(config)
    module = build_module(config, data, build_plan(config, data))
    torch.rand(7)
    again = module.build_net().state_dict()
    assert again.keys() == module.net.state_dict().keys()
    assert all(torch.equal(value, again[name]) for name, value in module.net.state_dict().items())
