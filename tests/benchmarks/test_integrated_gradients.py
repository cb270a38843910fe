"""Integrated gradients are captum's, where both have converged."""

import numpy as np
import pytest

from benchmarks.integrated_gradients import by_captum, compare, tiny_cases
from lightning_apps.explanations.integrated_gradients import integrated_gradients

pytest.importorskip("captum")
pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("case", tiny_cases(2), ids=lambda case: case[0])
def test_scores_are_those_of_captum(case):
    _, chunks, encoder, target = case
    _, complete, ours = integrated_gradients(chunks, encoder, target, steps=9, tolerance=1e-3, max_steps=201)
    peer = by_captum(chunks, encoder, target, 100)
    assert abs(complete.value - complete.baseline) > 0.5
    np.testing.assert_allclose(ours, peer, atol=0.01 * np.abs(peer).max(), rtol=0)
    coarse = by_captum(chunks, encoder, target, 3)
    assert np.abs(coarse - peer).max() > 0.1 * np.abs(peer).max()  # the tolerance tells three points from a hundred


def test_readings_are_counted_at_the_encoder(capsys):
    found = compare(tiny_cases(1)[0], 0.05)
    assert found["our error"] <= 0.05
    assert 9 <= found["our readings"] <= 401
    assert "document 0: F changes by" in capsys.readouterr().out
