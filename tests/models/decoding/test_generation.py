import pytest
import torch

from models.decoding.generation import generate_greedy, left_pad
from tests.tiny.tiny_qwen2 import tiny

pytestmark = pytest.mark.numeric

OPTIONS = {"max_new_tokens": 9, "pad_token_id": 0, "eos_token_id": 1}


def prompts_of_unequal_length():
    torch.manual_seed(3)
    return [torch.randint(2, 21, (length,)) for length in (3, 11, 7, 1, 5, 9)]


def test_left_padding_is_masked_and_ends_in_the_last_column():
    ids, mask = left_pad([torch.tensor([5, 6]), torch.tensor([7, 8, 9])], 0)
    assert ids.tolist() == [[0, 5, 6], [7, 8, 9]]
    assert mask.tolist() == [[0, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("batch_size", [2, 4, 6])
def test_batched_equals_single(batch_size):
    net = tiny(init_scale=8.0)  # large weights: answers differ from each other
    prompts = prompts_of_unequal_length()
    single = [answer.tolist() for answer in generate_greedy(net, prompts, batch_size=1, **OPTIONS)]
    batched = [answer.tolist() for answer in generate_greedy(net, prompts, batch_size=batch_size, **OPTIONS)]
    assert batched == single
    assert len({tuple(answer) for answer in single}) > 3


def test_cached_decoding_equals_recomputing_every_token():
    net = tiny(init_scale=8.0).eval()
    (prompt, *_) = prompts_of_unequal_length()
    ids = prompt.tolist()
    for _ in range(OPTIONS["max_new_tokens"]):
        following = int(net(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if following == OPTIONS["eos_token_id"]:
            break
        ids.append(following)
    (answer,) = generate_greedy(net, [prompt], batch_size=1, **OPTIONS)
    assert answer.tolist() == ids[len(prompt) :]


def test_answers_end_before_the_end_token():
    net = tiny()
    with torch.no_grad():  # a net that always says the end token: its embedding is the mean direction of all states
        net.model.embed_tokens.weight[1] = 50 * net.model(torch.tensor([[5]])).last_hidden_state[0, 0]
    answers = generate_greedy(net, [torch.tensor([5])], batch_size=1, **OPTIONS)
    assert answers[0].tolist() == []


def test_mode_is_restored():
    net = tiny().train()
    generate_greedy(net, [torch.tensor([4])], batch_size=1, **OPTIONS)
    assert net.training
