"""Packing: nothing is lost, rows hold what they can, and no document sees its neighbours."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.sampling.packing import PackingCollator, first_fit_decreasing, packed_batch, padded_batch
from datamodules.sampling.step_batches import micro_batch_ids
from models.kernels.packed_attention import attend_by_document, supports_packed_attention
from models.language.causal_lm import recompute_activations, target_loss
from tests.asserts.rounding import assert_same_sum
from tests.tiny.packed_documents import ADDITIONS, ARCHITECTURES, PREFIX, documents, target_logits, tiny

pytestmark = pytest.mark.numeric

LENGTHS = (9, 14, 6)
"""Tokens of the documents that most tests pack."""

# ---------------------------------------------------------------------- dealing


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(30, 60))
def test_first_fit_decreasing(lengths, capacity):
    rows = first_fit_decreasing(lengths, capacity)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    sizes = [sum(lengths[item] for item in row) for row in rows]
    assert all(0 < size <= capacity for size in sizes)
    # no row could have taken the whole of a later one's first item: else it would have
    for number, row in enumerate(rows):
        assert all(sizes[earlier] + lengths[row[-1]] > capacity for earlier in range(number) if row[0] == row[-1])
    # within 11/9 of the least conceivable, plus one (Johnson 1973; the least is at least the sum over the capacity)
    least = -(-sum(lengths) // capacity)
    assert len(rows) <= 2 * least + 1
    assert rows == first_fit_decreasing(list(lengths), capacity)


def test_an_item_that_fits_nowhere_is_refused():
    with pytest.raises(ValueError, match="an item of 9 does not fit into a bin of 8"):
        first_fit_decreasing([3, 9], 8)


def test_a_known_packing():
    assert first_fit_decreasing([4, 8, 1, 4, 2, 1], 10) == [[1, 4], [0, 3, 2, 5]]


def test_a_packed_batch_holds_its_documents_and_their_borders():
    batch = packed_batch(documents(5, 6, prefix=1))
    assert batch["borders"] == [0, 5, 11]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5]]
    assert batch["attention_mask"].sum() == 11
    first, second = documents(5, 6, prefix=1)
    assert batch["input_ids"][0].tolist() == [*first.ids, *second.ids]
    assert batch["labels"][0, [0, 5]].tolist() == [-100, -100]


def test_a_step_keeps_its_order_and_its_micro_batches_name_their_samples():
    store = documents(*(5 + number for number in range(9)))
    indices = np.array([7, 2, 5, 0, 8, 1])
    collate = PackingCollator(
        lambda rows: [store[row] for row in rows], max_length=24, rows_per_micro_batch=1, shared_prefix_length=PREFIX
    )
    step = collate((3, indices))
    assert step.sample_ids.tolist() == indices.tolist()
    named = micro_batch_ids(step)
    assert sorted(sample for ids in named for sample in ids) == sorted(indices.tolist())
    for batch, ids in zip(step.micro_batches, named, strict=True):
        assert batch["input_ids"].shape[1] <= 24
        assert batch["input_ids"][0].tolist() == [token for sample in ids for token in store[sample].ids.tolist()]
    assert step.token_range == (
        min(batch["input_ids"].min() for batch in step.micro_batches),
        max(batch["input_ids"].max() for batch in step.micro_batches),
    )
    together = PackingCollator(collate.read, max_length=24, rows_per_micro_batch=None, shared_prefix_length=PREFIX)
    assert [sorted(ids) for ids in micro_batch_ids(together((3, indices)))] == [sorted(indices.tolist())]
    assert together((0, indices[:0])).micro_batches == []  # a rank without a sample


# ---------------------------------------------------------------------- attention


@pytest.mark.parametrize("implementation", ["packed", "sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_of_a_packed_document_are_those_of_the_document_alone(architecture, implementation):
    net = tiny(architecture, by_documents=False)
    assert supports_packed_attention(net)
    alone = torch.cat([target_logits(net, padded_batch([entry], pad_token_id=0)) for entry in documents(*LENGTHS)])
    net.set_attn_implementation(implementation)
    for prefix in (0, PREFIX):
        packed = target_logits(net, packed_batch(documents(*LENGTHS)), prefix)
        assert_same_sum(packed, alone, terms=ADDITIONS)


@pytest.mark.parametrize("prefix", [0, PREFIX])
def test_neighbours_change_nothing(prefix):
    net = tiny()
    entries = documents(*LENGTHS)
    first = target_logits(net, packed_batch(entries), prefix)
    (other,) = documents(14, seed=5)
    changed = target_logits(net, packed_batch([entries[0], other, entries[2]]), prefix)
    counts = [int((entry.labels != -100).sum()) for entry in entries]
    kept = [*range(counts[0]), *range(counts[0] + counts[1], sum(counts))]
    assert_same_sum(changed[kept], first[kept], terms=ADDITIONS)
    assert (changed - first).abs().max() > 0.1  # the changed document did change
    swapped = target_logits(net, packed_batch([entries[2], entries[1], entries[0]]), prefix)
    assert_same_sum(swapped[-counts[0] :], first[: counts[0]], terms=ADDITIONS)


@pytest.mark.parametrize("prefix", [0, PREFIX])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_a_packed_batch_are_the_sum_over_its_documents(prefix, recompute):
    gradients, losses = [], []
    for batches in (
        [packed_batch(documents(*LENGTHS))],
        [padded_batch([e], pad_token_id=0) for e in documents(*LENGTHS)],
    ):
        net = tiny().train()
        if recompute:
            recompute_activations(net)
        pairs = [target_loss(net, batch, shared_prefix_length=prefix if "borders" in batch else 0) for batch in batches]
        loss, count = (sum(column) for column in zip(*pairs, strict=True))
        loss.backward()
        assert count == sum(LENGTHS) - 3 * (PREFIX + 1)
        losses.append(loss.detach())
        gradients.append({name: parameter.grad for name, parameter in net.named_parameters()})
    terms = sum(LENGTHS) * ADDITIONS
    assert_same_sum(losses[0], losses[1], terms=terms)
    for name, gradient in gradients[1].items():
        assert_same_sum(gradients[0][name], gradient, terms=terms, msg=name)


def test_padding_changes_nothing():
    net = tiny()
    rows = padded_batch(documents(*LENGTHS), pad_token_id=0)
    alone = torch.cat([target_logits(net, padded_batch([entry], pad_token_id=0)) for entry in documents(*LENGTHS)])
    assert_same_sum(target_logits(net, rows), alone, terms=ADDITIONS)
    assert rows["attention_mask"].sum(1).tolist() == [9, 14, 6]
    assert (rows["labels"][rows["attention_mask"] == 0] == -100).all()


def test_sliding_windows_and_unknown_architectures_are_left_to_others():
    assert not supports_packed_attention(tiny("mistral", by_documents=False, sliding_window=4))
    assert not supports_packed_attention(tiny("qwen2", by_documents=False, use_sliding_window=True))
    net = tiny(by_documents=False)
    net.config.model_type = "novel"
    assert not supports_packed_attention(net)


@pytest.mark.gpu
@pytest.mark.parametrize("prefix", [0, PREFIX])
def test_varlen_kernels_agree_with_sdpa(prefix):
    from models.kernels.packed_attention import Documents

    torch.manual_seed(0)
    rows = Documents(prefix, True, [6, 11, 3])
    total = prefix + 20
    query, key, value = (torch.randn(1, heads, total, 64, device="cuda", dtype=torch.bfloat16) for heads in (4, 2, 2))
    fast = attend_by_document(query, key, value, rows, scaling=None)
    exact = attend_by_document(query.float(), key.float(), value.float(), rows, scaling=None)
    torch.testing.assert_close(fast.float(), exact, rtol=2e-2, atol=2e-2)
