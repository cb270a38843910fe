"""Hierarchical classifiers as `model=...` makes them: over a pretrained encoder, or a small one with random weights."""

from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BertConfig, PreTrainedConfig
from typing_extensions import TypedDict, Unpack  # pydantic refuses typing's before Python 3.12

from models.attention_sizes import check_heads, checked_by
from models.encoders.classifier import cannot_load, check_vocabulary, quiet_report, set_dropouts
from models.encoders.document_pooling import DocumentPooling
from models.encoders.hierarchical import HierarchicalClassifier, HierarchicalConfig
from models.from_data import FromData
from models.ranges import Count, Dropout


class AboveEncoder(TypedDict):
    """What stands above the encoder and how chunks are read; HierarchicalConfig keeps it under the same names.

    Attributes:
        chunk_pooling: a chunk's vector: its `first` token's state, or the `mean` over the states of its tokens.
        document_pooling: how the vectors of a document's chunks become one: `additive` or `multi_head` attention,
            `sum` (learned features are counted), `mean` or `max`.
        attention_size: width of `additive` attention over chunks, or the number of features that `sum` counts; the
            other poolings do not read it.
        attention_heads: heads of `multi_head` attention over chunks, a divisor of the encoder's width; the other
            poolings do not read it.
        head_size: width of the hidden layer of the head; None for the encoder's width.
        head_dropout: on the hidden layer of the head in training, in [0, 1).
        micro_chunks: chunks that the encoder reads at once, at least 1.
        recompute: what activation checkpointing keeps for the backward pass: the inputs of each of the encoder's
            `layers`, or of `chunks` only their token ids, so that memory is that of one forward pass of `micro_chunks`
            chunks however many there are.
    """

    chunk_pooling: Literal["first", "mean"]
    document_pooling: DocumentPooling
    attention_size: Count
    attention_heads: Count
    head_size: Count | None
    head_dropout: Dropout
    micro_chunks: Count
    recompute: Literal["layers", "chunks"]


def pretrained_hierarchical(
    *,
    vocab_size: FromData[int],
    pad_token_id: FromData[int],
    label_names: FromData[list[str]],
    pretrained: str,
    revision: str | None,
    hidden_dropout: Dropout | None,
    attention_dropout: Dropout | None,
    freeze_embeddings: bool,
    freeze_layers: Annotated[int, Ge(0)],
    **above: Unpack[AboveEncoder],
) -> HierarchicalClassifier:
    """A pretrained encoder in float32 with new parts above it.

    Args:
        vocab_size: tokens of the tokenizer; the encoder's embedding must have at least as many rows.
        pad_token_id: id of the tokenizer's padding; stored where the encoder's configuration names none.
        label_names: the classes in order; kept in the model's configuration.
        pretrained: name on the hub, or a folder; of a classifier, such as the model/ of a run of `imdb` or `rating`,
            the encoder is taken.
        revision: branch, tag or commit of the weights on the hub; None for the newest.
        hidden_dropout: on hidden states of the encoder in training, in [0, 1); None keeps the encoder's own.
        attention_dropout: on attention weights of the encoder in training, in [0, 1); None keeps the encoder's own.
        freeze_embeddings: exclude the embeddings from training.
        freeze_layers: exclude so many layers from training, from the bottom.
        **above: see AboveEncoder.

    Raises:
        ValueError: the weights cannot be loaded, or do not fit tokenizer or settings.
    """
    try:
        config = AutoConfig.from_pretrained(pretrained, revision=revision)
    except (OSError, ValueError) as error:
        raise cannot_load(pretrained, error) from error
    inner: Any = config.encoder if isinstance(config, HierarchicalConfig) else config
    check_vocabulary(pretrained, inner, vocab_size)
    set_dropouts(inner, hidden_dropout=hidden_dropout, attention_dropout=attention_dropout)
    if inner.pad_token_id is None:
        inner.pad_token_id = pad_token_id
    try:
        with quiet_report():
            weights = encoder_weights(pretrained, config, revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise cannot_load(pretrained, error) from error
    net = _over(inner, label_names, pad_token_id, above)
    net.encoder.load_state_dict(weights)
    net.freeze(embeddings=freeze_embeddings, layers=freeze_layers)
    return net


def encoder_weights(pretrained: str, config: PreTrainedConfig, revision: str | None) -> dict[str, Tensor]:
    """Weights of a checkpoint's encoder in float32 without its pooler, whatever head the checkpoint has.

    Raises:
        ValueError: some are not there.
    """
    # transformers 5 would keep weights in the type in which they were saved; and never unpickle
    options: dict[str, Any] = {
        "config": config, "revision": revision, "dtype": torch.float32, "use_safetensors": True,
        "output_loading_info": True,
    }  # fmt: skip
    if isinstance(config, HierarchicalConfig):
        whole, report = AutoModelForSequenceClassification.from_pretrained(pretrained, **options)
        encoder: nn.Module = whole.encoder
    else:
        encoder, report = AutoModel.from_pretrained(pretrained, **options)
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ValueError(f"{len(missing)} weights of the encoder are not there, such as {missing[0]}")
    return {name: value for name, value in encoder.state_dict().items() if not name.startswith("pooler.")}


@checked_by(check_heads)
def random_hierarchical(
    *,
    vocab_size: FromData[int],
    pad_token_id: FromData[int],
    label_names: FromData[list[str]],
    hidden_size: Count,
    num_hidden_layers: Count,
    num_attention_heads: Count,
    intermediate_size: Count,
    max_position_embeddings: Count,
    hidden_dropout: Dropout,
    attention_dropout: Dropout,
    freeze_embeddings: bool,
    freeze_layers: Annotated[int, Ge(0)],
    **above: Unpack[AboveEncoder],
) -> HierarchicalClassifier:
    """A BERT encoder with random float32 weights under the same parts.

    Args:
        vocab_size: rows of the embedding.
        pad_token_id: id of the tokenizer's padding, stored in the configuration.
        label_names: the classes in order; kept in the model's configuration.
        hidden_size: width, a multiple of `num_attention_heads`.
        num_hidden_layers: encoder blocks.
        num_attention_heads: attention heads of the encoder.
        intermediate_size: width of the MLP.
        max_position_embeddings: longest chunk.
        hidden_dropout: on hidden states of the encoder in training, in [0, 1).
        attention_dropout: on attention weights of the encoder in training, in [0, 1).
        freeze_embeddings: exclude the embeddings from training, as random as they are.
        freeze_layers: exclude so many layers from training, from the bottom.
        **above: see AboveEncoder.

    Raises:
        ValueError: sizes do not fit each other.
    """
    encoder = BertConfig(
        vocab_size=vocab_size,
        pad_token_id=pad_token_id,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_position_embeddings,
        hidden_dropout_prob=hidden_dropout,
        attention_probs_dropout_prob=attention_dropout,
        dtype=torch.float32,
    )
    net = _over(encoder, label_names, pad_token_id, above)
    net.freeze(embeddings=freeze_embeddings, layers=freeze_layers)
    return net


def _over(
    encoder: PreTrainedConfig, label_names: list[str], pad_token_id: int, above: AboveEncoder
) -> HierarchicalClassifier:
    """A classifier with random weights over an encoder of this configuration."""
    return HierarchicalClassifier(
        HierarchicalConfig(  # type: ignore[call-arg]
            encoder=encoder,
            pad_token_id=pad_token_id,
            id2label=dict(enumerate(label_names)),
            label2id={name: number for number, name in enumerate(label_names)},
            problem_type="single_label_classification",
            dtype=torch.float32,
            **above,
        )
    )
