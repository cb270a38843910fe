import torch
from torch import nn

from lightning_apps.diagnostics.first_non_finite import bad_gradient


def test_of_several_bad_gradients_the_one_nearest_to_the_loss_is_named():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert bad_gradient(net) is None
    net[0].weight.grad[1, 0] = float("nan")
    net[1].bias.grad[0] = float("inf")
    assert bad_gradient(net) == "Inf in the gradient of 1.bias (2 of 6 gradients are not finite)"
