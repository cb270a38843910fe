"""What tests of packed attention share: a tiny net of each architecture that has it, and documents to pack."""

import numpy as np
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from datamodules.sampling.packing import Document
from models.kernels.packed_attention import use_packed_attention
from models.language.causal_lm import target_states

ARCHITECTURES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
}
SIZES = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "head_dim": 8, "initializer_range": 0.3, "dtype": torch.float32,
}  # fmt: skip
PREFIX = 3
ADDITIONS = SIZES["num_hidden_layers"] * 7 * SIZES["intermediate_size"]
"""Behind a logit: seven products a layer, one after the other, of at most so many terms."""


def tiny(architecture="qwen2", *, by_documents=True, **changes):
    build, configure, options = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    net = build(configure(**{**SIZES, **options, **changes})).eval()
    if by_documents:
        use_packed_attention(net)
    return net


def documents(*lengths, prefix=PREFIX, seed=0):
    draw = np.random.default_rng(seed)
    made = []
    for length in lengths:
        ids = draw.integers(3, 40, length)
        ids[:prefix] = np.arange(4, 4 + prefix)
        labels = ids.copy()
        labels[: prefix + 1] = -100
        made.append(Document(ids, labels))
    return made


def target_logits(net, batch, prefix=0):
    states, _ = target_states(net, batch, shared_prefix_length=prefix)
    return net.get_output_embeddings()(states)
