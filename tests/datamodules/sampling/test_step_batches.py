import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.sampling.step_batches import StepCollator, step_batch
from datamodules.sampling.step_loader import StepLoader, StepSampler, evaluation_loader


def build_batch(epochs, indices):
    rows = torch.from_numpy(indices)
    return {"epochs": torch.from_numpy(epochs), "indices": rows, "labels": rows % 3, "num_tokens": 7 * len(rows)}


def evaluation_batch(indices):
    return {"indices": torch.from_numpy(indices)}


def sampler(**changes):
    settings = {"num_samples": 10, "global_batch_size": 4, "num_steps": 6, "seed": 3}
    return StepSampler(**{**settings, **changes})


def loader(step=0, device_batch_size=4, **changes):
    workers = changes.pop("num_workers", 0)
    return StepLoader(
        sampler(**changes), StepCollator(build_batch, device_batch_size), lambda: step, num_workers=workers
    )


def test_an_epoch_visits_every_sample_once_and_ends_in_a_smaller_step():
    keys = list(sampler())
    assert [len(indices) for _, indices in keys] == [4, 4, 2, 4, 4, 2]
    assert [epoch for epoch, _ in keys] == [0, 0, 0, 1, 1, 1]
    for part in (keys[:3], keys[3:]):
        assert sorted(np.concatenate([indices for _, indices in part]).tolist()) == list(range(10))


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 4), st.integers(0, 12))
def test_ranks_share_each_step_without_overlap(num_samples, global_batch_size, world_size, step):
    _, expected = sampler(num_samples=num_samples, global_batch_size=global_batch_size, seed=1).key(step)
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
    whole = [batch.sample_ids.tolist() for batch in loader()]
    resumed = loader(num_workers=num_workers)
    resumed.load_state_dict(loader(step=step).state_dict())
    assert [batch.sample_ids.tolist() for batch in resumed] == whole[step:]
    assert len(resumed) == 6


@pytest.mark.parametrize("change", [{"num_samples": 11}, {"global_batch_size": 5}, {"seed": 4}])
def test_resuming_on_another_stream_is_refused(change):
    name = next(iter(change))
    with pytest.raises(ValueError, match=f"cannot resume: .*{name}="):
        loader(**change).load_state_dict(loader().state_dict())


def test_micro_batches_split_a_step_in_order():
    step = next(iter(loader(device_batch_size=3)))
    assert [len(batch["indices"]) for batch in step.micro_batches] == [3, 1]
    assert torch.cat([batch["indices"] for batch in step.micro_batches]).tolist() == step.sample_ids.tolist()


def test_iterating_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(loader())
    list(evaluation_loader(evaluation_batch, np.arange(3), batch_size=2))
    assert torch.rand(1) == expected


@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 4))
def test_evaluation_visits_every_sample_once_over_all_ranks(num_samples, batch_size, world_size):
    seen = []
    for rank in range(world_size):
        of_rank = evaluation_loader(
            evaluation_batch, np.arange(num_samples), batch_size=batch_size, rank=rank, world_size=world_size
        )
        batches = list(of_rank)
        assert len(batches) == len(of_rank)
        assert all(len(batch["sample_ids"]) <= batch_size for batch in batches)
        seen += [index for batch in batches for index in batch["sample_ids"].tolist()]
    assert sorted(seen) == list(range(num_samples))


def test_no_sample_is_an_error():
    with pytest.raises(ValueError, match="no training sample"):
        sampler(num_samples=0)


def test_an_empty_share_has_no_micro_batch():
    step = StepCollator(build_batch, 4)((0, np.empty(0, dtype=np.int64)))
    assert step.micro_batches == []
    assert step.sample_ids.dtype == np.int64
    assert step.sample_ids.shape == (0,)
    assert (step.num_targets, step.num_tokens, step.weight_sum, step.token_range) == (0, 0, 0.0, None)


def test_a_step_batch_counts_classes_and_weights():
    step = StepCollator(build_batch, 3, weigh=lambda batch: float((batch["labels"] == 1).sum()) / 2)((0, np.arange(7)))
    assert (step.num_targets, step.num_tokens) == (7, 49)
    assert step.weight_sum == 1.0  # of the labels 0 1 2 0 1 2 0 two are 1


def test_a_step_batch_counts_target_tokens_and_says_where_they_are():
    labels = torch.tensor([[5, 6, -100, 8], [-100, -100, 7, 7]])
    batch = {
        "input_ids": torch.full((2, 4), 4),
        "labels": labels,
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    }
    step = step_batch([batch], np.array([8, 3]))
    assert step.num_targets == 4  # the first column predicts nothing, whatever it holds
    assert batch["target_positions"].tolist() == [0, 2, 4, 5]
    assert labels[:, 1:].flatten()[batch["target_positions"]].tolist() == [6, 8, 7, 7]
    assert (step.num_tokens, step.weight_sum, step.token_range) == (7, 4.0, (4, 8))


def test_labels_of_several_classes_are_no_tokens_even_where_shapes_agree():
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.int64), "labels": torch.ones(2, 3), "num_tokens": 6}
    assert step_batch([batch], np.arange(2)).num_targets == 2
    assert "target_positions" not in batch


def test_epochs_can_be_cut_short_or_repeated():
    cut = list(sampler(epoch_steps=2))
    assert [epoch for epoch, _ in cut] == [0, 0, 1, 1, 2, 2]
    assert [indices.tolist() for _, indices in cut[:2]] == [indices.tolist() for _, indices in list(sampler())[:2]]
    again = list(sampler(epoch_steps=2, repeats_first_epoch=True))
    assert [indices.tolist() for _, indices in again] == 3 * [indices.tolist() for _, indices in cut[:2]]
