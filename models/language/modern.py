"""Decoders as fast recipes of today build them (the speedrun of nanoGPT, nanochat), by transformers' own NanoChat."""

import torch
from torch import nn
from transformers import NanoChatConfig, NanoChatForCausalLM, PreTrainedModel

from models.attention_sizes import check_rotary_heads, checked_by
from models.from_data import FromData
from models.ranges import Count, Dropout, NotNegative


@checked_by(check_rotary_heads)
def modern(
    *,
    vocab_size: FromData[int],
    pad_token_id: FromData[int | None],
    eos_token_id: FromData[int | None],
    pad_vocab_to_multiple_of: Count,
    hidden_size: Count,
    num_hidden_layers: Count,
    num_attention_heads: Count,
    num_key_value_heads: Count,
    intermediate_size: Count,
    max_position_embeddings: Count,
    tie_word_embeddings: bool,
    attention_dropout: Dropout,
    initializer_range: NotNegative,
    init_scale: NotNegative,
    zero_init_projections: bool,
) -> PreTrainedModel:
    """A decoder with rotary positions, norms without weights, normed queries and keys, and squared ReLU; no biases.

    Its weights are random and float32. The cap on the logits that NanoChat has is left out: the loss here never holds
    them all (models/kernels/linear_cross_entropy.py), and normed queries and keys keep them small.

    Args:
        vocab_size: tokens of the tokenizer.
        pad_token_id: stored in the configuration, for generation; None where there is none.
        eos_token_id: stored in the configuration, ends generation; None where nothing does.
        pad_vocab_to_multiple_of: rows of embedding and output projection are rounded up to such a multiple.
        hidden_size: width d of the residual stream, a multiple of `num_attention_heads`.
        num_hidden_layers: decoder blocks.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads; divides `num_attention_heads`.
        intermediate_size: width of the MLP.
        max_position_embeddings: longest sequence.
        tie_word_embeddings: whether the output projection is the embedding.
        attention_dropout: dropout on attention weights in training.
        initializer_range: standard deviation of the initial matrices.
        init_scale: multiplies it.
        zero_init_projections: whether what attention and MLP add to the residual stream starts at zero, so that every
            block is the identity in the first step (Goyal et al. 2017; Zhang et al. 2019).
    """
    config = NanoChatConfig(
        vocab_size=-(-vocab_size // pad_vocab_to_multiple_of) * pad_vocab_to_multiple_of,
        pad_token_id=pad_token_id,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=tie_word_embeddings,
        attention_dropout=attention_dropout,
        initializer_range=initializer_range * init_scale,
        final_logit_softcapping=None,
        dtype=torch.float32,
    )
    net = NanoChatForCausalLM(config)
    if zero_init_projections:
        for layer in net.model.layers:
            nn.init.zeros_(layer.self_attn.o_proj.weight)
            nn.init.zeros_(layer.mlp.fc2.weight)
    return net
