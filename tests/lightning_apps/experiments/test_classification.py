import math
from types import SimpleNamespace

import pytest
import torch

from lightning_apps.experiments.imdb.module import ImdbModule

pytestmark = pytest.mark.numeric


def test_an_evaluations_loss_is_a_likelihood_however_training_smooths():
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]).log()
    told = []
    module = SimpleNamespace(
        label_smoothing=0.5, logits=lambda batch: logits, log_loss=lambda loss, count: told.append((float(loss), count))
    )
    batch = {"labels": torch.tensor([0, 1]), "sample_ids": torch.tensor([4, 9])}
    found = ImdbModule.validation_step(module, batch, 0)
    assert told == [(pytest.approx(-math.log(0.7) - math.log(0.8), rel=1e-6), 2)]  # float32
    assert (found["logits"] is logits, found["sample_ids"].tolist()) == (True, [4, 9])
