"""Causal language models with random or trained weights, their states and their loss, without work nobody needs."""

import itertools
import logging
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from transformers.cache_utils import DynamicCache

from models.attention_sizes import check_rotary_heads, checked_by
from models.from_data import FromData
from models.kernels.asynchronous_copy import to_device
from models.kernels.known_masks import OneSequenceARow
from models.kernels.linear_cross_entropy import CHUNK_BYTES, linear_cross_entropy
from models.kernels.packed_attention import Documents, attends_packed, no_mask
from models.ranges import Count, Dropout, NotNegative

IGNORED = -100
FEW_LOGITS = 1 << 22
"""Up to so many logits, 16 MB, the plain cross-entropy is as good."""
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Settings of configurations by which a model's forward pass changes logits after the output projection."""


@checked_by(check_rotary_heads)
def qwen2(
    *,
    vocab_size: FromData[int],
    pad_token_id: FromData[int],
    eos_token_id: FromData[int],
    hidden_size: Count,
    num_hidden_layers: Count,
    num_attention_heads: Count,
    num_key_value_heads: Count,
    intermediate_size: Count,
    max_position_embeddings: Count,
    tie_word_embeddings: bool,
    attention_dropout: Dropout,
    init_scale: NotNegative,
) -> PreTrainedModel:
    """A Qwen2 decoder with random float32 weights.

    Args:
        vocab_size: rows of the embedding.
        pad_token_id: stored in the configuration, for generation.
        eos_token_id: stored in the configuration, ends generation.
        hidden_size: width d of the residual stream, a multiple of `num_attention_heads`.
        num_hidden_layers: decoder blocks.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads; divides `num_attention_heads`.
        intermediate_size: width of the gated MLP.
        max_position_embeddings: longest sequence, prompt and answer together.
        tie_word_embeddings: whether the output projection is the embedding.
        attention_dropout: dropout on attention weights in training.
        init_scale: multiplies the standard deviation 0.02 of the initial weights.
    """
    config = Qwen2Config(
        vocab_size=vocab_size,
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
        initializer_range=0.02 * init_scale,
        dtype=torch.float32,
    )
    return Qwen2ForCausalLM(config)


def pretrained_causal_lm(
    *,
    pretrained: str,
    vocab_size: FromData[int],
    pad_token_id: FromData[int | None],
    eos_token_id: FromData[int | None],
) -> PreTrainedModel:
    """A causal language model with its trained weights, in float32.

    Args:
        pretrained: Hugging Face name or path.
        vocab_size: ids that the data may hold.
        pad_token_id: id of the padding; stored where the model's configuration names none.
        eos_token_id: id that ends a text; stored where the model's configuration names none.

    Raises:
        ValueError: it cannot be loaded, or has fewer embeddings than the data have ids.
    """
    try:
        # transformers 5 would load bfloat16 weights as bfloat16
        net: PreTrainedModel = AutoModelForCausalLM.from_pretrained(pretrained, dtype=torch.float32)
    except Exception as error:  # huggingface_hub, safetensors and json each raise their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"model.pretrained={pretrained}: no causal language model could be loaded ({reason}); give a Hugging Face "
            "name, with a network, or a folder with config.json and model.safetensors"
        ) from error
    embeddings: Any = net.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    if rows < vocab_size:
        raise ValueError(f"model.pretrained={pretrained} has {rows:,} embeddings, the data {vocab_size:,} token ids")
    if net.config.pad_token_id is None:
        net.config.pad_token_id = pad_token_id
    if net.config.eos_token_id is None:
        net.config.eos_token_id = eos_token_id
    return net


def hidden_states(
    net: PreTrainedModel, input_ids: Tensor, *, attention_mask: Tensor | None = None, shared_prefix_length: int = 0
) -> Tensor:
    """Last hidden states, computing a prefix that all rows share only once.

    Keys and values of the first tokens do not depend on later ones, so one row's prefix serves the whole batch; its
    gradient is the sum over rows, as it would be without the trick. For `loc(c_` that is 6 of 21 tokens.

    Args:
        net: a causal language model.
        input_ids: (n, T) int64.
        attention_mask: (n, T), 0 at padding; None where there is none.
        shared_prefix_length: P < T leading columns that are equal in all rows and hold no padding; 0 when unknown.

    Returns:
        (n, T - P, d): the states after the prefix.
    """
    decoder = net.base_model
    # a layer that is computed again in the backward pass would append to the cache a second time
    recomputes = net.training and net.is_activation_checkpointing
    # with weights in shards all ranks call the decoder equally often, whatever their batches
    if shared_prefix_length == 0 or len(input_ids) == 1 or recomputes or isinstance(net, FSDPModule):
        once = OneSequenceARow()
        states = decoder(input_ids=input_ids, attention_mask=attention_mask, past_key_values=once, use_cache=False)
        return states.last_hidden_state[:, shared_prefix_length:]
    assert attention_mask is None, "a shared prefix goes with rows of equal length"
    cache = DynamicCache(config=net.config)
    decoder(input_ids=input_ids[:1, :shared_prefix_length], past_key_values=cache, use_cache=True)
    layers: list[Any] = cache.layers
    for layer in layers:
        layer.keys = layer.keys.expand(len(input_ids), -1, -1, -1)
        layer.values = layer.values.expand(len(input_ids), -1, -1, -1)
    rest = input_ids[:, shared_prefix_length:]
    return decoder(input_ids=rest, past_key_values=cache, use_cache=True).last_hidden_state


def packed_states(
    net: PreTrainedModel, batch: dict[str, Any], *, shared_prefix_length: int = 0
) -> tuple[Tensor, Tensor]:
    """States of documents packed end to end, and where they stand in the row; no document sees another.

    Args:
        net: a causal language model.
        batch: `input_ids` and `position_ids` (1, T) int64, and `borders`, documents + 1 numbers: where each document
            starts, and the end.
        shared_prefix_length: leading tokens that all documents share; they are computed once, where the net has
            `packed` attention. Neither they nor the next token has a label.

    Returns:
        (1, T', d) states, and (T',) int64 ascending places of the tokens that were fed. T' < T: the last token of each
        document predicts nothing and is not fed, nor are repeated prefixes.
    """
    ids, borders = batch["input_ids"], batch["borders"]
    lengths = [stop - start for start, stop in itertools.pairwise(borders)]
    is_packed = attends_packed(net)
    prefix = shared_prefix_length if is_packed and len(lengths) > 1 else 0
    fed = torch.ones(ids.shape[1], dtype=torch.bool)
    fed[torch.tensor(borders[1:]) - 1] = False
    for start in borders[1:-1] if prefix else []:
        fed[start : start + prefix] = False
    places = to_device(fed.nonzero().squeeze(1), ids.device)
    inputs: dict[str, Any] = {"input_ids": ids[:, places], "position_ids": batch["position_ids"][:, places]}
    if is_packed:
        inputs["documents"] = Documents(prefix, True, [length - prefix - 1 for length in lengths])
        inputs["attention_mask"] = no_mask(ids)
    # other implementations see from the positions where documents begin
    return net.base_model(**inputs, use_cache=False).last_hidden_state, places


def target_states(
    net: PreTrainedModel, batch: dict[str, Any], *, shared_prefix_length: int = 0
) -> tuple[Tensor, Tensor]:
    """States (targets, d) that predict a target, and the targets (targets,); see target_loss for the arguments."""
    labels = batch["labels"][:, 1:]  # (n, T - 1): position t predicts token t + 1
    positions = batch.get("target_positions")  # from the collator; looking for them here would make a GPU wait
    if positions is None:
        positions = (labels != IGNORED).flatten().nonzero().squeeze(1)
    rows, columns = positions // labels.shape[1], positions % labels.shape[1]
    wanted = labels[rows, columns]
    if "borders" in batch:
        states, places = packed_states(net, batch, shared_prefix_length=shared_prefix_length)
        return states[rows, torch.searchsorted(places, columns)], wanted
    # the last token has nothing to predict, so it is not fed
    states = hidden_states(net, batch["input_ids"][:, :-1], shared_prefix_length=shared_prefix_length)
    return states[rows, columns - shared_prefix_length], wanted


def projected_losses(
    net: PreTrainedModel, states: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, reduce: bool = True
) -> Tensor:
    """Cross-entropy of the output projection of states, with few logits at a time.

    Args:
        net: a causal language model, for its output projection.
        states: (N, d) last hidden states of the positions that have a target.
        labels: (N,) int64 in the vocabulary.
        label_smoothing: share of each target that is spread over the whole vocabulary, in [0, 1).
        reduce: whether to sum; else one loss per position.

    Returns:
        () or (N,) float32.

    Raises:
        ValueError: the model changes logits after its output projection.
    """
    config = net.config.get_text_config()
    for name in LOGIT_CHANGES:
        if getattr(config, name, None) not in (None, 1.0):
            raise ValueError(f"{type(net).__name__} changes its logits by {name}, which this loss would leave out")
    head: Any = net.get_output_embeddings()
    embedding: Any = net.get_input_embeddings()
    reduction: Literal["sum", "none"] = "sum" if reduce else "none"
    num_logits = len(labels) * embedding.num_embeddings
    # an adapted or wrapped projection is more than its weight, and hooks are there to see its output
    is_plain = type(head) is nn.Linear and not head._forward_hooks and not head._forward_pre_hooks
    # the fused one has its gradient before it knows by what each position's will be multiplied
    if is_plain and num_logits > FEW_LOGITS and (reduce or not torch.is_grad_enabled()):
        return linear_cross_entropy(
            states, head.weight, labels, bias=head.bias, label_smoothing=label_smoothing, reduction=reduction
        )

    def loss(states: Tensor, labels: Tensor) -> Tensor:
        logits = head(states).float()  # (rows, V)
        return nn.functional.cross_entropy(logits, labels, reduction=reduction, label_smoothing=label_smoothing)

    if num_logits <= FEW_LOGITS:
        return loss(states, labels)
    rows = max(CHUNK_BYTES // 4 * len(labels) // num_logits, 1)
    losses = [
        checkpoint(loss, *part, use_reentrant=False) if torch.is_grad_enabled() else loss(*part)
        for part in zip(states.split(rows), labels.split(rows), strict=True)
    ]
    return torch.stack(losses).sum() if reduce else torch.cat(losses)


def target_loss(
    net: PreTrainedModel, batch: dict[str, Any], *, shared_prefix_length: int = 0, label_smoothing: float = 0.0
) -> tuple[Tensor, int]:
    """Cross-entropy summed over target tokens; the output projection runs on those positions only, in chunks.

    Args:
        net: a causal language model.
        batch: `input_ids` and `labels` (n, T) int64, labels -100 where nothing is to be learned, and
            `attention_mask` (n, T); `target_positions` where the collator knows them; with `borders`, documents packed
            into one row, see packed_states.
        shared_prefix_length: see hidden_states; no label may lie inside the prefix.
        label_smoothing: share of each target that is spread over the whole vocabulary (Szegedy et al. 2016).

    Returns:
        Sum of the losses, a () float32 tensor, and the number of target tokens.
    """
    states, labels = target_states(net, batch, shared_prefix_length=shared_prefix_length)
    return projected_losses(net, states, labels, label_smoothing=label_smoothing), len(labels)


def target_log_probs(
    net: PreTrainedModel, batch: dict[str, Any], *, shared_prefix_length: int = 0, temperature: float = 1.0
) -> Tensor:
    """Log-probabilities (targets,) float32 of the target tokens, in the order of their places, with a gradient each.

    Args:
        net: a causal language model.
        batch: see target_loss.
        shared_prefix_length: see target_loss.
        temperature: logits are divided by it; above 0.

    Raises:
        ValueError: the output projection has a bias, which a temperature other than 1 would have to divide.
    """
    head: Any = net.get_output_embeddings()
    if temperature != 1.0 and getattr(head, "bias", None) is not None:
        raise ValueError(
            f"temperature={temperature}: the output projection of {type(net).__name__} has a bias; use 1.0"
        )
    states, labels = target_states(net, batch, shared_prefix_length=shared_prefix_length)
    return -projected_losses(net, states / temperature if temperature != 1.0 else states, labels, reduce=False)


@torch.no_grad()
def token_losses(net: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    """The loss of each token, for evaluation: perplexity, loss by position.

    Args:
        net: a causal language model, in evaluation mode.
        batch: `input_ids` and `labels` (n, T) int64, labels -100 where a token is no target; no padding mask is read.

    Returns:
        (n, T - 1) float32: column t is the loss of predicting token t + 1; NaN where that is no target.
    """
    labels = batch["labels"][:, 1:]  # (n, T - 1)
    states = hidden_states(net, batch["input_ids"][:, :-1])  # (n, T - 1, d)
    wanted = labels != IGNORED
    losses = torch.full(labels.shape, float("nan"), device=states.device)
    losses[wanted] = projected_losses(net, states[wanted], labels[wanted], reduce=False)
    return losses


def recompute_activations(net: nn.Module) -> None:
    """Keep only the inputs of each layer and compute the rest again in the backward pass (Chen et al. 2016).

    About a third more time for memory that no longer grows with everything inside a layer.

    Raises:
        ValueError: the network offers no such thing.
    """
    if not isinstance(net, PreTrainedModel):
        raise ValueError(f"{type(net).__name__} offers no activation checkpointing")
    # transformers would say that layers lose their cache: that of hidden_states keeps nothing
    logging.getLogger("transformers.modeling_layers").setLevel(logging.ERROR)
    net.activation_checkpointing_enable({"use_reentrant": False})
