from types import SimpleNamespace

import numpy as np
import pytest

from lightning_apps.sweeps.shared_text import shared_text

NAMES = ["a", "b", "c"]


def job(folder, seed, chosen, losses, budget=None):
    path = folder / f"{seed}-{len(chosen)}-{budget}"
    (path / "in_context").mkdir(parents=True)
    table = np.array([[losses[name] - 0.5, losses[name] + 0.5] for name in NAMES])
    flags = np.array([name in chosen for name in NAMES])
    np.savez(path / "in_context" / "test.npz", categories=np.array(NAMES), category_chosen=flags, category_mean=table)
    values = {"data.num_categories": len(chosen), "seed": seed} | ({"trainer.max_tokens": budget} if budget else {})
    return SimpleNamespace(values=values, directory=path)


def results(jobs, budget_key=None, factors=("data.num_categories", "seed")):
    return SimpleNamespace(completed=jobs, factors=list(factors), budget_key=budget_key)


def test_the_same_categories_are_compared_within_a_seed(tmp_path):
    jobs = [
        job(tmp_path, 0, ["a"], {"a": 5.0, "b": 9.0, "c": 9.0}),
        job(tmp_path, 0, ["a", "b"], {"a": 5.2, "b": 3.0, "c": 9.0}),
        job(tmp_path, 0, ["a", "b", "c"], {"a": 5.4, "b": 3.0, "c": 3.0}),
        job(tmp_path, 1, ["c"], {"a": 9.0, "b": 9.0, "c": 4.0}),
        job(tmp_path, 1, ["b", "c"], {"a": 9.0, "b": 1.0, "c": 4.1}),
        job(tmp_path, 1, ["a", "b", "c"], {"a": 1.0, "b": 1.0, "c": 4.2}),
    ]
    found = shared_text(results(jobs))
    assert found.categories == {"0": ["a"], "1": ["c"]}
    assert {k: estimate.value for k, estimate in found.means.items()} == pytest.approx({1: 4.5, 2: 4.65, 3: 4.8})
    assert found.slope.value == pytest.approx(0.15)  # 0.2 and 0.1 for each further category
    assert found.slope.low < 0.15 < found.slope.high


def test_only_the_largest_budget_counts(tmp_path):
    losses = {"a": 5.0, "b": 5.0, "c": 5.0}
    small = [job(tmp_path, 0, NAMES[:k], {**losses, "a": 9.0}, budget=10) for k in (1, 2)]
    large = [job(tmp_path, 0, NAMES[:k], losses, budget=20) for k in (1, 2)]
    found = shared_text(results(small + large, budget_key="trainer.max_tokens"))
    assert [estimate.value for estimate in found.means.values()] == [5.0, 5.0]


def test_null_is_all_categories_and_the_largest_budget(tmp_path):
    losses = {"a": 5.0, "b": 5.0, "c": 5.0}
    jobs = [job(tmp_path, 0, NAMES[:k], {**losses, "a": 5.0 + k}, budget=20) for k in (1, 3)]
    jobs[1].values["data.num_categories"] = None
    found = shared_text(results(jobs))
    assert {k: estimate.value for k, estimate in found.means.items()} == {1: 6.0, 3: 8.0}
    endless = [job(tmp_path, 0, NAMES[:k], losses, budget=40) for k in (1, 2)]
    for entry in endless:
        entry.values["trainer.max_tokens"] = None
    found = shared_text(results(jobs + endless, budget_key="trainer.max_tokens"))
    assert {k: estimate.value for k, estimate in found.means.items()} == {1: 5.0, 2: 5.0}


def test_nothing_to_compare(tmp_path):
    losses = {"a": 5.0, "b": 5.0, "c": 5.0}
    assert shared_text(results([], factors=("seed",))) is None
    assert shared_text(results([job(tmp_path, 0, ["a"], losses)])) is None
    apart = [job(tmp_path, 1, ["a"], losses), job(tmp_path, 1, ["b", "c"], losses)]
    assert shared_text(results(apart)) is None
