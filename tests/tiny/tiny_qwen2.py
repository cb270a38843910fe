"""A Qwen2 of two layers with the weights of seed 0, built as the experiments build theirs."""

import torch

from models.language.causal_lm import qwen2

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
    "attention_dropout": 0.0,
    "init_scale": 1.0,
}


def tiny(**changes):
    torch.manual_seed(0)
    return qwen2(vocab_size=21, pad_token_id=0, eos_token_id=1, **{**SIZES, **changes})
