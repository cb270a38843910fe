"""Batched decoding: by continuous batching where a model allows, else through transformers' generate."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from models.decoding.continuous_batching import decode_continuously
from models.kernels.packed_attention import attends_packed

NUCLEUS = 256
"""Probabilities that are sorted at first, where a share of the most probable ones is kept."""


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        tokens: (length,) int64 on the CPU, without the stop token and what follows it.
        finished: whether a stop token ended it; False where it was cut at max_new_tokens.
        stop_token_id: the one that ended it; None where it was cut.
    """

    tokens: Tensor
    finished: bool
    stop_token_id: int | None = None


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens, for generate_answers.

    Attributes:
        temperature: logits are divided by it; above 0.
        top_p: the most probable tokens that together reach this probability are kept; 1 keeps all.
        seeds: one for each prompt; what is drawn depends on nothing else of the batch, where batching is continuous.
    """

    temperature: float
    top_p: float
    seeds: Sequence[int]


def left_pad(prompts: Sequence[Tensor], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Stack prompts of any lengths so that all end in the last column.

    Returns:
        `input_ids` and `attention_mask`, both (n, longest) int64.
    """
    longest = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), longest), pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = prompt
        attention_mask[row, longest - len(prompt) :] = 1
    return input_ids, attention_mask


@torch.inference_mode()
def generate_answers(
    net: PreTrainedModel,
    prompts: Sequence[Tensor],
    *,
    max_new_tokens: int,
    batch_size: int,
    pad_token_id: int,
    stop_token_ids: Sequence[int],
    sampling: Sampling | None = None,
    on_answers: Callable[[int], object] | None = None,
) -> list[Answer]:
    """Answers with a KV cache, in the order of the prompts.

    Models with `packed` attention are decoded by continuous batching: a finished answer makes room for the next
    prompt, and what recurs in a text is guessed. Others decode prompts of like length together, padded on the left.

    Args:
        net: a causal language model; put into eval mode and back.
        prompts: n tensors (length_i,) int64.
        max_new_tokens: longest answer, stop token included.
        batch_size: prompts decoded together; it does not change greedy answers.
        pad_token_id: fills the left of shorter prompts, masked out.
        stop_token_ids: tokens that end an answer.
        sampling: how to draw tokens; None takes the most probable one.
        on_answers: told how many answers have just ended.
    """
    report = on_answers or (lambda count: None)
    stops = list(stop_token_ids)
    produced: list[list[int]] = [[] for _ in prompts]
    with _evaluating(net):
        if prompts and attends_packed(net):
            with _eager(net):
                produced = decode_continuously(
                    net, prompts, max_new_tokens=max_new_tokens, num_slots=batch_size, stop_token_ids=stops,
                    select=_Selection(sampling), on_answers=report,
                    guesses=sampling is None or sampling.temperature < 1,  # guesses.RECURRING says why
                )  # fmt: skip
        else:
            settings = GenerationConfig(
                max_new_tokens=max_new_tokens, pad_token_id=pad_token_id, eos_token_id=stops, do_sample=False
            )
            if sampling is not None:
                settings.update(do_sample=True, temperature=sampling.temperature, top_p=sampling.top_p, top_k=0)
            by_length = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
            for start in range(0, len(prompts), batch_size):
                numbers = by_length[start : start + batch_size]
                with torch.random.fork_rng(enabled=sampling is not None):
                    if sampling is not None:
                        torch.manual_seed(sampling.seeds[numbers[0]])
                    rows = _generate(net, [prompts[number] for number in numbers], settings)
                for number, row in zip(numbers, rows, strict=True):
                    produced[number] = row.tolist()
                report(len(numbers))
    return [_until_stop(tokens, stops) for tokens in produced]


@torch.inference_mode()
def generate_greedy(
    net: PreTrainedModel,
    prompts: Sequence[Tensor],
    *,
    max_new_tokens: int,
    batch_size: int,
    pad_token_id: int,
    eos_token_id: int,
) -> list[Tensor]:
    """Greedy answers with a KV cache, in the order of the prompts, batch by batch through transformers' generate.

    Args:
        net: a causal language model; put into eval mode and back.
        prompts: n tensors (length_i,) int64.
        max_new_tokens: longest answer, end token included.
        batch_size: prompts decoded together; it does not change the answers.
        pad_token_id: fills the left of shorter prompts, masked out.
        eos_token_id: ends an answer.

    Returns:
        n tensors of answer tokens on the CPU, without the end token and what follows it.
    """
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad_token_id, eos_token_id=eos_token_id
    )
    answers: list[Tensor] = []
    with _evaluating(net):
        for start in range(0, len(prompts), batch_size):
            rows = _generate(net, prompts[start : start + batch_size], settings)
            answers += [_until_stop(row.tolist(), [eos_token_id]).tokens for row in rows]
    return answers


def _generate(net: PreTrainedModel, prompts: Sequence[Tensor], settings: GenerationConfig) -> Tensor:
    """What generate appends to left-padded prompts, (n, tokens) on the CPU."""
    input_ids, attention_mask = left_pad(prompts, settings.pad_token_id)
    with _eager(net):
        produced: Tensor = net.generate(  # type: ignore[operator] # Module.__getattr__ hides the mixin's method
            input_ids=input_ids.to(net.device),
            attention_mask=attention_mask.to(net.device),
            generation_config=settings,
            synced_gpus=False,  # ranks have unequal shares, and weights in shards are whole in an evaluation
        )
    return produced[:, input_ids.shape[1] :].cpu()


def _until_stop(tokens: Sequence[int], stops: Sequence[int]) -> Answer:
    end = next((place for place, token in enumerate(tokens) if token in stops), None)
    return Answer(torch.tensor(tokens[:end], dtype=torch.int64), end is not None, None if end is None else tokens[end])


class _Selection:
    """Chooses next tokens: the most probable, or drawn by a generator for each request."""

    def __init__(self, sampling: Sampling | None) -> None:
        self.sampling = sampling
        seeds = [] if sampling is None else sampling.seeds
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, logits: Tensor, requests: list[int]) -> Tensor:
        if self.sampling is None:
            return logits.argmax(-1).cpu()
        # on the CPU: sums on a GPU may end otherwise from run to run
        probabilities = torch.softmax(logits / self.sampling.temperature, -1).cpu()
        if self.sampling.top_p < 1:
            probabilities = nucleus(probabilities, self.sampling.top_p)
        draws = [torch.rand(1, dtype=torch.float64, generator=self.generators[request]) for request in requests]
        return drawn(probabilities, torch.cat(draws))


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """(n, V) with zeros but for the most probable entries that together reach `top_p`, and their equals.

    Sorting all of a vocabulary costs three times what a small model does for a token: only the first are sorted, more
    where they do not suffice.
    """
    size = probabilities.shape[-1]
    count = min(NUCLEUS, size)
    first = probabilities.topk(count).values
    while count < size and bool((first.sum(-1) < top_p).any()):
        count = min(8 * count, size)
        first = probabilities.topk(count).values
    before = first.cumsum(-1) - first  # the most probable one always stays
    least = first.masked_fill(before >= top_p, torch.inf).amin(-1, keepdim=True)
    return probabilities.masked_fill(probabilities < least, 0.0)


def drawn(weights: Tensor, uniform: Tensor) -> Tensor:
    """(n,) int64: for each row of weights (n, V) the entry at a share of their sum, `uniform` (n,) float64 in [0, 1).

    torch.multinomial draws a number for each entry, and a model of 135 million parameters takes as long for its logits.

    Raises:
        RuntimeError: a weight is not finite, as the probabilities of a network that has diverged.
    """
    sums = weights.cumsum(-1, dtype=torch.float64)
    total = sums[:, -1:]
    if not bool(total.isfinite().all()):
        raise RuntimeError("no token can be drawn: the network's logits are not finite")
    # a share just below 1 must not be rounded up to it, behind which there is no entry
    share = torch.minimum(uniform[:, None] * total, total * (1 - 2**-52))
    return torch.searchsorted(sums, share, right=True)[:, 0]


@contextlib.contextmanager
def _evaluating(net: PreTrainedModel) -> Iterator[None]:
    was_training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(was_training)


def _eager(net: PreTrainedModel) -> contextlib.AbstractContextManager[object]:
    """Run a compiled net as it is: the cache grows with every token, so no shape would come twice."""
    is_compiled = net.base_model._compiled_call_impl is not None
    return torch.compiler.set_stance("force_eager") if is_compiled else contextlib.nullcontext()
