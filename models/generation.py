"""Batched greedy decoding through transformers' generate."""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel


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
def generate_greedy(
    net: PreTrainedModel,
    prompts: Sequence[Tensor],
    *,
    max_new_tokens: int,
    batch_size: int,
    pad_token_id: int,
    eos_token_id: int,
) -> list[Tensor]:
    """Greedy answers with a KV cache, in the order of the prompts.

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
    was_training = net.training
    net.eval()
    answers: list[Tensor] = []
    try:
        for start in range(0, len(prompts), batch_size):
            input_ids, attention_mask = left_pad(prompts[start : start + batch_size], pad_token_id)
            with _eager(net):
                produced = net.generate(  # type: ignore[operator] # Module.__getattr__ hides the mixin's method
                    input_ids=input_ids.to(net.device),
                    attention_mask=attention_mask.to(net.device),
                    generation_config=settings,
                )
            for row in produced[:, input_ids.shape[1] :].cpu():
                stop = (row == eos_token_id).nonzero()
                answers.append(row[: int(stop[0, 0])] if len(stop) else row)
    finally:
        net.train(was_training)
    return answers


def _eager(net: PreTrainedModel) -> contextlib.AbstractContextManager[object]:
    """Run a compiled net as it is: the cache grows with every token, so no shape would come twice."""
    is_compiled = net.base_model._compiled_call_impl is not None
    return torch.compiler.set_stance("force_eager") if is_compiled else contextlib.nullcontext()
