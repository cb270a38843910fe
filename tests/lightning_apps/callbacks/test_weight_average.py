"""The average is torch's to the last bit, without its questions to the device."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_apps.callbacks.weight_average import tensors_of, update_average

pytestmark = pytest.mark.numeric


def test_every_update_is_that_of_torch_with_buffers_of_whole_numbers_too():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))  # counts its batches in an int64
    move = get_ema_multi_avg_fn(0.9)
    theirs = AveragedModel(net, multi_avg_fn=move, use_buffers=True)
    ours = [tensor.detach().clone() for tensor in tensors_of(net)]
    for step in range(4):
        with torch.no_grad():
            for tensor in net.parameters():
                tensor.normal_()
        net(torch.randn(5, 3))
        theirs.update_parameters(net)
        update_average(ours, tensors_of(net), move if step else None)
        assert all(a.equal(b) for a, b in zip(ours, tensors_of(theirs.module), strict=True))
