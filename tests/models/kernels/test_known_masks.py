"""What is known of a mask changes nothing but the look at it."""

import pytest
import torch
from transformers import BertConfig, BertModel, masking_utils

from models.kernels.known_masks import known


@pytest.mark.parametrize("lengths", [(5, 5), (5, 3)])
def test_an_encoder_answers_the_same_bits(lengths):
    net = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)).eval()
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long()
    ids = torch.arange(10).view(2, 5) % 9
    with known(is_padded=lengths[1] < 5):
        found = net(input_ids=ids, attention_mask=mask).last_hidden_state
    assert found.equal(net(input_ids=ids, attention_mask=mask).last_hidden_state)


def test_rows_of_several_sequences_are_found_where_nothing_is_known():
    positions = torch.tensor([[0, 1, 0, 1, 2]])
    assert masking_utils.find_packed_sequence_indices(positions).tolist() == [[0, 0, 1, 1, 1]]
    with known(is_packed=False):
        assert masking_utils.find_packed_sequence_indices(positions) is None
    assert masking_utils.find_packed_sequence_indices(positions) is not None
