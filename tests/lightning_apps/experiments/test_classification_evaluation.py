"""What is said of a classifier beside its baselines."""

import numpy as np
import torch

from lightning_apps.experiments.classification_evaluation import ahead, right_answers


def test_right_answers_of_one_label_and_of_several():
    probabilities = torch.tensor([[0.9, 0.2], [0.6, 0.7], [0.5, 0.5]])
    assert right_answers(probabilities, torch.tensor([0, 0, 0]), multi_label=False).tolist() == [True, False, True]
    targets = torch.tensor([[1, 0], [1, 0], [1, 1]])
    assert right_answers(probabilities, targets, multi_label=True).tolist() == [True, False, True]


def test_the_lead_is_that_of_the_texts_that_were_evaluated():
    """Samples 1 and 3 of four: the model is right in both, the linear one in neither; sample 0 was not asked."""
    rows = [{"index": index, "output": "a", "target": "a"} for index in (1, 3)]
    linear_right = np.array([True, False, True, False])
    assert ahead(rows, linear_right) == ", the model +1.000 (paired 95 % +1.000 to +1.000)"
    rows = [{"index": index, "output": "a", "target": "ab"[index // 2]} for index in range(4)]  # right in 0 and 1
    said = ahead(rows, linear_right)
    assert said.startswith(", the model +0.000 (paired 95 % -")
    assert said.endswith(")")
