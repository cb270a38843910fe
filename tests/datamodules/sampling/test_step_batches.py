import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.sampling.step_batches import (
    EvaluationSampler,
    StepCollator,
    StepLoader,
    StepSampler,
    evaluation_loader,
    step_key,
)


def build_batch(epochs, indices):
    return {"epochs": torch.from_numpy(epochs), "indices": torch.from_numpy(indices)}


def sampler(**changes):
    settings = {"num_samples": 10, "global_batch_size": 4, "num_steps": 6, "seed": 3}
    return StepSampler(**{**settings, **changes})


def loader(step=0, device_batch_size=4, **changes):
    workers = changes.pop("num_workers", 0)
    return StepLoader(
        sampler(**changes), StepCollator(build_batch, device_batch_size), lambda: step, num_workers=workers
    )


def test_an_epoch_visits_every_sample_once_and_ends_in_a_smaller_window():
    windows = list(sampler())
    assert [len(indices) for _, indices in windows] == [4, 4, 2, 4, 4, 2]
    assert [epoch for epoch, _ in windows] == [0, 0, 0, 1, 1, 1]
    for part in (windows[:3], windows[3:]):
        assert sorted(np.concatenate([indices for _, indices in part]).tolist()) == list(range(10))


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 4), st.integers(0, 12))
def test_ranks_share_each_window_without_overlap(num_samples, global_batch_size, world_size, step):
    _, expected = step_key(step, num_samples=num_samples, global_batch_size=global_batch_size, seed=1)
    shares = []
    for rank in range(world_size):
        of_rank = sampler(
            num_samples=num_samples,
            global_batch_size=global_batch_size,
            num_steps=step + 1,
            start_step=step,
            seed=1,
            rank=rank,
            world_size=world_size,
        )
        ((_, indices),) = of_rank
        shares += indices.tolist()
    assert sorted(shares) == sorted(expected.tolist())
    assert len(shares) == len(set(shares))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("step", [0, 2, 3, 5])
def test_resuming_continues_the_same_stream(step, num_workers):
    whole = [window["sample_ids"].tolist() for window in loader()]
    resumed = loader(num_workers=num_workers)
    resumed.load_state_dict(loader(step=step).state_dict())
    assert [window["sample_ids"].tolist() for window in resumed] == whole[step:]
    assert len(resumed) == 6


@pytest.mark.parametrize("change", [{"num_samples": 11}, {"global_batch_size": 5}, {"seed": 4}])
def test_resuming_on_another_stream_is_refused(change):
    name = next(iter(change))
    with pytest.raises(ValueError, match=f"cannot resume: .*{name}="):
        loader(**change).load_state_dict(loader().state_dict())


def test_micro_batches_split_a_window_in_order():
    window = next(iter(loader(device_batch_size=3)))
    assert [len(batch["indices"]) for batch in window["micro_batches"]] == [3, 1]
    assert torch.cat([batch["indices"] for batch in window["micro_batches"]]).equal(window["sample_ids"])


def test_iterating_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(loader())
    list(evaluation_loader(build_batch, None, num_samples=3, batch_size=2))
    assert torch.rand(1) == expected


@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 4))
def test_evaluation_visits_every_sample_once_over_all_ranks(num_samples, batch_size, world_size):
    seen = []
    for rank in range(world_size):
        of_rank = EvaluationSampler(num_samples, batch_size, rank, world_size)
        batches = list(of_rank)
        assert len(batches) == len(of_rank)
        seen += [index for _, indices in batches for index in indices.tolist()]
    assert sorted(seen) == list(range(num_samples))


def test_no_sample_is_an_error():
    with pytest.raises(ValueError, match="no training sample"):
        sampler(num_samples=0)


def test_an_empty_share_has_no_micro_batch():
    window = StepCollator(build_batch, 4)((0, np.empty(0, dtype=np.int64)))
    assert window["micro_batches"] == []
    assert window["sample_ids"].dtype == torch.int64
    assert np.asarray(window["sample_ids"]).shape == (0,)
