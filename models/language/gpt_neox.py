"""GPT-NeoX decoders, the architecture of the Pythia suite (Biderman et al. 2023), with random weights."""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Gt, Le
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel
from transformers.activations import ACT2FN

from models.attention_sizes import check_rotary_heads, checked_by
from models.from_data import FromData
from models.ranges import Count, Dropout, NotNegative, Positive


def check_settings(settings: Mapping[str, Any]) -> None:
    """Sizes that go together, and an activation that there is.

    Raises:
        ValueError: they do not, or there is none of that name.
    """
    check_rotary_heads(settings)
    if settings["hidden_act"] not in ACT2FN:
        raise ValueError(
            f"model.hidden_act={settings['hidden_act']!r}: there is no such activation; such are gelu, gelu_new, relu, "
            "silu, tanh"
        )


@checked_by(check_settings)
def gpt_neox(
    *,
    vocab_size: FromData[int],
    pad_token_id: FromData[int | None],
    eos_token_id: FromData[int | None],
    pad_vocab_to_multiple_of: Count,
    hidden_size: Count,
    num_hidden_layers: Count,
    num_attention_heads: Count,
    intermediate_size: Count,
    hidden_act: str,
    rotary_pct: Annotated[float, Gt(0), Le(1)],
    max_position_embeddings: Count,
    layer_norm_eps: Positive,
    use_parallel_residual: bool,
    tie_word_embeddings: bool,
    attention_dropout: Dropout,
    hidden_dropout: Dropout,
    initializer_range: NotNegative,
    init_scale: NotNegative,
    embedding_std: NotNegative | None,
) -> PreTrainedModel:
    """A GPT-NeoX decoder with random float32 weights.

    Args:
        vocab_size: tokens of the tokenizer.
        pad_token_id: stored in the configuration, for generation; None where there is none.
        eos_token_id: stored in the configuration, ends generation; None where nothing does.
        pad_vocab_to_multiple_of: rows of embedding and output projection are rounded up to such a multiple; 128 makes
            50,304 of the Pythia tokenizer's 50,277.
        hidden_size: width d of the residual stream, a multiple of `num_attention_heads`.
        num_hidden_layers: decoder blocks.
        num_attention_heads: heads of the attention.
        intermediate_size: width of the MLP.
        hidden_act: activation of the MLP, by its name in transformers.
        rotary_pct: share of each head's features that carry rotary positions.
        max_position_embeddings: longest sequence.
        layer_norm_eps: what every layer norm adds to the variance.
        use_parallel_residual: attention and MLP read the same stream and are added together (Wang 2021).
        tie_word_embeddings: whether the output projection is the embedding.
        attention_dropout: dropout on attention weights in training.
        hidden_dropout: dropout behind the embedding, attention and MLP in training.
        initializer_range: standard deviation of the initial matrices.
        init_scale: multiplies that of all of them, the embedding's too.
        embedding_std: standard deviation of the initial embedding before `init_scale`; None for `initializer_range`.
    """
    config = GPTNeoXConfig(
        vocab_size=-(-vocab_size // pad_vocab_to_multiple_of) * pad_vocab_to_multiple_of,
        pad_token_id=pad_token_id,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        intermediate_size=intermediate_size,
        hidden_act=hidden_act,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": rotary_pct},
        max_position_embeddings=max_position_embeddings,
        layer_norm_eps=layer_norm_eps,
        use_parallel_residual=use_parallel_residual,
        tie_word_embeddings=tie_word_embeddings,
        attention_dropout=attention_dropout,
        hidden_dropout=hidden_dropout,
        initializer_range=initializer_range * init_scale,
        dtype=torch.float32,
    )
    net = GPTNeoXForCausalLM(config)
    if embedding_std is not None:
        nn.init.normal_(net.gpt_neox.embed_in.weight, std=embedding_std * init_scale)
    return net
