"""Decoding in slots says what a plain loop says, whatever the number of slots."""

import contextlib

import pytest
import torch

from models.decoding import continuous_batching, generation, guesses
from models.decoding.generation import Sampling, drawn, generate_answers, generate_greedy, nucleus
from models.kernels import packed_linear
from models.kernels.packed_attention import use_packed_attention
from tests.tiny.packed_documents import ARCHITECTURES, tiny

pytestmark = pytest.mark.numeric

OPTIONS = {"max_new_tokens": 17, "pad_token_id": 0}


def prompts(*, prefix=()):
    torch.manual_seed(3)
    drawn = [torch.randint(2, 40, (length,)) for length in (3, 11, 7, 1, 5, 9, 2, 6, 80)]
    return [torch.cat([torch.tensor(prefix, dtype=torch.int64), prompt]) for prompt in drawn]


def answers(net, asked, **changes):
    options = {"batch_size": 3, "stop_token_ids": [1, 5], **OPTIONS, **changes}
    return [(answer.tokens.tolist(), answer.finished) for answer in generate_answers(net, asked, **options)]


@pytest.fixture
def fed(monkeypatch):
    """Tokens of each forward pass since."""
    counts, forward = [], continuous_batching._forward

    def counted(net, ids, *others):
        assert len(ids) == 1
        counts.append(ids.shape[1])
        return forward(net, ids, *others)

    monkeypatch.setattr(continuous_batching, "_forward", counted)
    return counts


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("prefix", [(), (9, 8, 7, 6)])
def test_refilled_slots_say_what_the_plain_loop_says(architecture, prefix):
    net = tiny(architecture, by_documents=False)
    asked = prompts(prefix=prefix)
    plain = [generate_greedy(net, [prompt], batch_size=1, eos_token_id=1, **OPTIONS)[0].tolist() for prompt in asked]
    use_packed_attention(net)
    for slots in (1, 3, 20):
        assert [tokens for tokens, _ in answers(net, asked, batch_size=slots, stop_token_ids=[1])] == plain
    assert len({tuple(tokens) for tokens in plain}) > 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_autocast_keeps_its_answers_where_weights_are_cast_once(architecture, monkeypatch):
    """Rotated keys are float32 there and values are not. To the bit where only the cast differs; else ties may part."""
    net, asked = tiny(architecture, by_documents=False), prompts(prefix=(9, 8, 7, 6))
    short = {**OPTIONS, "max_new_tokens": 4}
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        plain = [generate_greedy(net, [p], batch_size=1, eos_token_id=1, **short)[0].tolist() for p in asked]
        use_packed_attention(net)
        packed = answers(net, asked, stop_token_ids=[1], **short)
        monkeypatch.setattr(packed_linear, "_can_be_laid_out", lambda *_: False)
        cast = [answers(net, asked, batch_size=slots) for slots in (1, 3, 20)]
        monkeypatch.setattr(continuous_batching, "packed_linears", lambda *_, **__: contextlib.nullcontext())
        assert cast == [answers(net, asked, batch_size=slots) for slots in (1, 3, 20)]
    assert sum(tokens == other for (tokens, _), other in zip(packed, plain, strict=True)) >= 7  # of 9
    assert len({tuple(tokens) for tokens in plain}) > 3


def test_stop_tokens_end_answers_in_both_ways_of_decoding():
    net = tiny()
    found = answers(net, prompts())
    net.set_attn_implementation("sdpa")
    assert answers(net, prompts()) == found
    assert all(not {1, 5} & set(tokens) for tokens, _ in found)
    assert {finished for _, finished in found} == {True, False}
    assert all(len(tokens) == 17 for tokens, finished in found if not finished)


def test_a_first_token_may_end_the_answer():
    net = tiny()
    everything = list(range(40))
    assert answers(net, prompts(), stop_token_ids=everything) == [([], True)] * 9
    assert answers(net, [], stop_token_ids=everything) == []


def test_draws_depend_on_the_seed_alone():
    net = tiny()
    asked = prompts()
    sampling = Sampling(temperature=1.0, top_p=0.9, seeds=list(range(9)))
    one, three, twenty = (answers(net, asked, batch_size=size, sampling=sampling) for size in (1, 3, 20))
    assert one == three == twenty
    assert one != answers(net, asked)
    (alone,) = answers(net, asked[4:5], sampling=Sampling(1.0, 0.9, [4]))
    assert alone == one[4]
    assert answers(net, asked, sampling=Sampling(1.0, 0.9, list(range(9, 18)))) != one


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("drawn", [False, True])
def test_guesses_change_no_answer_and_save_passes(architecture, drawn, fed, monkeypatch):
    net, asked = tiny(architecture), prompts(prefix=(9, 8, 7, 6))
    sampling = Sampling(temperature=0.5, top_p=0.9, seeds=list(range(9))) if drawn else None
    said, of_each = [], []
    for most in (8, 2, 0):
        monkeypatch.setattr(guesses, "MOST", most)
        for slots in (1, 3, 20):
            fed.clear()
            options = {"batch_size": slots, "stop_token_ids": [1], "max_new_tokens": 60, "sampling": sampling}
            said.append(answers(net, asked, **options))
            of_each.append(len(fed))
    assert all(answer == said[0] for answer in said)
    alone = slice(0, None, 3)
    eight, two, none = of_each[alone]
    assert none == 1 + sum(len(tokens) + finished for tokens, finished in said[0])
    assert eight <= two < none


def test_a_text_that_repeats_itself_takes_few_passes(fed):
    net = tiny(initializer_range=0.02, tie_word_embeddings=True)  # says its last token again
    ((tokens, finished),) = answers(net, [torch.tensor([3, 4])], batch_size=1, max_new_tokens=60)
    assert (tokens, finished) == ([4] * 60, False)
    # 4 4 is followed by 4 from the third token on; then one guess more each time, and no more than there is room for
    assert fed == [2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 5]


def test_a_guessed_stop_token_ends_the_answer():
    """Of 7 8 1 behind 7 8 the network says 7, 8 and 1, and would say 9 behind it."""
    running = [continuous_batching._Running(number, guesses.Text([7, 8, 1, 9, 7])) for number in range(3)]
    fed = [[8, 1, 9], [8, 4], []]
    following = torch.tensor([8, 1, 9, 2, 8, 3, 2, 5])  # the third text is guessed nothing
    logits = torch.nn.functional.one_hot(following, 10).float()
    asked = []

    def select(logits, requests):
        asked.append(requests)
        return logits.argmax(-1)

    assert continuous_batching._say(running, fed, logits, {1}, select) == [2, 2, 1]
    assert [entry.text.answer for entry in running] == [[8, 1], [8, 3], [5]]
    assert asked == [[0, 1, 2], [0, 1]]


def test_cold_or_narrow_draws_are_greedy():
    net = tiny()
    greedy = answers(net, prompts())
    assert answers(net, prompts(), sampling=Sampling(1e-4, 1.0, [0] * 9)) == greedy
    assert answers(net, prompts(), sampling=Sampling(1.0, 1e-6, [0] * 9)) == greedy


def test_draws_that_begin_together_read_their_prompt_once(fed):
    net, asked = tiny(), [prompt for prompt in prompts()[:3] for _ in range(4)]
    sampling = Sampling(1.0, 1.0, list(range(12)))
    alone = answers(net, asked, batch_size=1, sampling=sampling)
    fed.clear()
    assert answers(net, asked, batch_size=12, sampling=sampling) == alone
    assert fed[0] == 3 + 11 + 7
    assert max(fed[1:]) == 12  # at temperature 1 nothing is guessed
    assert len({tuple(tokens) for tokens, _ in alone}) > 6


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_a_nucleus_is_what_sorting_everything_finds(top_p, monkeypatch):
    monkeypatch.setattr(generation, "NUCLEUS", 4)  # so that it does not suffice
    torch.manual_seed(0)
    probabilities = torch.randn(7, 300).mul(torch.linspace(0.1, 4, 7)[:, None]).softmax(-1)
    ordered, places = probabilities.sort(-1, descending=True)
    ordered[ordered.cumsum(-1) - ordered >= top_p] = 0.0
    assert torch.equal(nucleus(probabilities, top_p), torch.zeros_like(ordered).scatter(-1, places, ordered))
    even = torch.full((1, 8), 0.125)
    assert torch.equal(nucleus(even, top_p), even)  # equals stay, whatever the order of a sort


def test_what_is_drawn_by_a_share_of_the_sum():
    weights = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])

    def places(shares):
        return drawn(weights.expand(len(shares), -1), torch.tensor(shares, dtype=torch.float64)).tolist()

    assert places([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53]) == [1, 1, 3, 3, 4, 4]
    shares = ((torch.arange(1000) + 0.5) / 1000).tolist()
    assert torch.bincount(torch.tensor(places(shares)), minlength=6).tolist() == [0, 250, 0, 500, 250, 0]
    tenth = torch.full((1, 10), 0.1)  # sums to less than 1, and no share may lie behind it
    assert drawn(tenth, torch.tensor([1 - 2**-53], dtype=torch.float64)).tolist() == [9]


def test_nothing_is_drawn_from_what_is_not_finite():
    broken = torch.tensor([[0.5, 0.5], [0.5, torch.nan]])
    with pytest.raises(RuntimeError, match="logits are not finite"):
        drawn(broken, torch.zeros(2, dtype=torch.float64))


def test_sampling_without_slots_leaves_the_random_state_alone():
    net, asked = tiny(by_documents=False), prompts()
    state = torch.get_rng_state()
    sampling = Sampling(1.0, 1.0, list(range(9)))
    assert answers(net, asked, sampling=sampling) == answers(net, asked, sampling=sampling)
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_are_restored():
    net = tiny().train()
    answers(net, prompts())
    assert net.training
