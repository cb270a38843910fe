"""Classifier of long documents: an encoder reads chunks, attention pools the chunks of a document, a head classifies.

All chunks of a batch are one flat batch, whichever documents they belong to, so that nothing is computed for chunks
that are not there. They are sorted by length and encoded a few at a time.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    initialization,
)
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from models.attention import first_position_only, use_fast_attention
from models.classifier import cannot_load, check_vocabulary, quiet_report, set_dropouts
from models.document_pooling import DocumentPooling, MultiHeadPooling, document_pooling

ChunkPooling = Literal["first", "mean"]
Recompute = Literal["layers", "chunks"]


class HierarchicalConfig(PreTrainedConfig):
    """Settings of a HierarchicalClassifier.

    Attributes:
        encoder: configuration of the encoder, of any architecture that AutoModel knows.
        chunk_pooling: the vector of a chunk: its `first` token's, or the `mean` over its tokens.
        document_pooling: see document_pooling.
        attention_size: width of additive attention over chunks.
        attention_heads: of multi-head attention over chunks.
        head_size: width inside the head; None for that of the encoder.
        head_dropout: inside the head.
        micro_chunks: chunks encoded at once; what is kept for the backward pass does not depend on it.
        recompute: what gradient checkpointing keeps: the inputs of each of the encoder's `layers`, or of `chunks` only
            the token ids, so that memory is that of one forward pass of `micro_chunks` chunks however many there are.
    """

    model_type = "hierarchical"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "encoder": SubConfigSpec(config_class=AutoConfig, model_type="roberta")
    }

    encoder: PreTrainedConfig | dict[str, Any] | None = None
    chunk_pooling: str = "first"
    document_pooling: str = "additive"
    attention_size: int = 256
    attention_heads: int = 4
    head_size: int | None = None
    head_dropout: float = 0.1
    micro_chunks: int = 8
    recompute: str = "layers"


@dataclass
class HierarchicalOutput(ModelOutput):
    """What the classifier says.

    Attributes:
        loss: () mean cross-entropy, where labels were given.
        logits: (documents, classes).
        chunk_weights: (chunks,) what each chunk weighed in its document; they sum to one over a document.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    chunk_weights: Tensor | None = None


class HierarchicalClassifier(PreTrainedModel):
    """See the head of this file; new ones have random weights."""

    config_class = HierarchicalConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: HierarchicalConfig) -> None:
        super().__init__(config)
        self.encoder: Any = AutoModel.from_config(config.encoder)
        if isinstance(getattr(self.encoder, "pooler", None), nn.Module):
            self.encoder.pooler = None  # nothing reads it, and without a gradient it would be in nobody's group
        width: int = self.encoder.config.hidden_size
        self.chunk_attention = document_pooling(
            config.document_pooling,  # type: ignore[arg-type]
            width,
            attention_size=config.attention_size,
            attention_heads=config.attention_heads,
        )
        self.norm = nn.LayerNorm(width)
        head_size: int = config.head_size or width
        self.head = nn.Sequential(
            nn.Linear(width, head_size),
            nn.Tanh(),
            nn.Dropout(config.head_dropout),
            nn.Linear(head_size, config.num_labels),  # type: ignore[arg-type]
        )
        self.recompute_chunks = False
        self.post_init()
        use_fast_attention(self.encoder)
        if config.chunk_pooling == "first":
            first_position_only(self.encoder)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Glorot and Bengio's (2010) for the linear layers here, which stand around tanh."""
        if isinstance(module, nn.Linear):
            initialization.xavier_uniform_(module.weight)
            if module.bias is not None:
                initialization.zeros_(module.bias)
        elif isinstance(module, MultiHeadPooling):
            module.reset_query()
        else:
            super()._init_weights(module)

    # ------------------------------------------------------------------ computing

    def encode(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Vectors of chunks, (chunks, hidden), of a flat batch.

        Args:
            input_ids: (chunks, length) int64, padded on the right.
            attention_mask: (chunks, length), 1 for tokens and 0 for padding; None where nothing is padded.
            inputs_embeds: (chunks, length, width) word embeddings in place of input_ids, without position or type.

        Raises:
            ValueError: not exactly one of input_ids and inputs_embeds was given.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if attention_mask is None:
            attention_mask = torch.ones(given.shape[:2], dtype=torch.int64, device=given.device)
        if self.training:
            self._rest_frozen_layers()
        ends = (attention_mask * torch.arange(1, given.shape[1] + 1, device=given.device)).amax(dim=1)
        order = torch.argsort(ends, descending=True, stable=True)
        lengths = ends[order].tolist()
        vectors = []
        for start in range(0, len(lengths), self.config.micro_chunks):
            rows = order[start : start + self.config.micro_chunks]
            length = max(1, lengths[start])
            micro_batch = given[rows, :length], attention_mask[rows, :length]
            if self.recompute_chunks and self.training and torch.is_grad_enabled():
                vectors.append(checkpoint(self._encode_micro_batch, *micro_batch, use_reentrant=False))
            else:
                vectors.append(self._encode_micro_batch(*micro_batch))
        return torch.cat(vectors)[torch.argsort(order)]

    def _encode_micro_batch(self, given: Tensor, attention_mask: Tensor) -> Tensor:
        key = "inputs_embeds" if given.is_floating_point() else "input_ids"
        hidden: Tensor = self.encoder(attention_mask=attention_mask, **{key: given}).last_hidden_state
        if self.config.chunk_pooling == "first":
            return hidden[:, 0]
        mask = attention_mask[..., None].to(hidden.dtype)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)

    def classify(self, chunk_vectors: Tensor, chunk_counts: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (documents, classes) and weights of chunks (chunks,), which sum to one over each document.

        Args:
            chunk_vectors: (chunks, hidden), those of a document behind one another.
            chunk_counts: (documents,) int64 chunks of each document, at least one.

        Raises:
            ValueError: the counts do not add up to the number of vectors.
        """
        counts = chunk_counts.tolist()
        if sum(counts) != len(chunk_vectors) or min(counts, default=1) < 1:
            raise ValueError(f"{len(chunk_vectors)} chunks cannot be documents of {counts} chunks")
        table = nn.utils.rnn.pad_sequence(list(torch.split(chunk_vectors, counts)), batch_first=True)
        mask = torch.arange(table.shape[1], device=table.device) < chunk_counts.to(table.device)[:, None]
        pooled, weights = self.chunk_attention(table, mask)
        return self.head(self.norm(pooled)), weights[mask]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        chunk_counts: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> HierarchicalOutput:
        """Classify documents.

        Args:
            input_ids: see encode, as the next and `inputs_embeds`.
            attention_mask: likewise.
            chunk_counts: see classify; None for one chunk each.
            labels: (documents,) int64.
            inputs_embeds: see encode.
            **kwargs: of pipelines; nothing here reads them.
        """
        vectors = self.encode(input_ids, attention_mask, inputs_embeds=inputs_embeds)
        if chunk_counts is None:
            chunk_counts = torch.ones(len(vectors), dtype=torch.int64)
        logits, weights = self.classify(vectors, chunk_counts)
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return HierarchicalOutput(loss=loss, logits=logits, chunk_weights=weights)

    # ------------------------------------------------------------------ parts, frozen or not

    @property
    def layers(self) -> nn.ModuleList:
        """Layers of the encoder, the first one first."""
        return next(part for part in self.encoder.modules() if isinstance(part, nn.ModuleList))

    @property
    def embeddings(self) -> nn.Module:
        """All that is embedded: words, positions, types."""
        embeddings: nn.Module = getattr(self.encoder, "embeddings", None) or self.encoder.get_input_embeddings()
        return embeddings

    def freeze(self, *, embeddings: bool, layers: int) -> None:
        """Exclude the embeddings and the bottom `layers` layers from training.

        Raises:
            ValueError: the encoder has not so many layers.
        """
        if not 0 <= layers <= len(self.layers):
            raise ValueError(f"model.freeze_layers={layers}: the encoder has {len(self.layers)} layers")
        for part in [self.embeddings] * embeddings + list(self.layers[:layers]):
            part.requires_grad_(requires_grad=False)

    def _rest_frozen_layers(self) -> None:
        """No dropout in layers that are frozen with all below them; they then compute the same thing every time.

        Autograd keeps nothing of them, as nothing there asks for a gradient, so they cost a forward pass only. Dropout
        on frozen embeddings goes on where the first layer learns: there it regularizes that layer's input.
        """
        resting = not _learns(self.embeddings)
        first = resting and not _learns(self.layers[0])
        self.embeddings.train(not first)
        for layer in self.layers:
            resting = resting and not _learns(layer)
            layer.train(not resting)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Any = None, every_n_layers: int = 1, offload: bool = False
    ) -> None:
        """Keep less for the backward pass and compute it again (Chen et al. 2016); see HierarchicalConfig.recompute.

        Unlike transformers' own this asks for no gradient of the embeddings: with these and the bottom layers frozen,
        the backward pass would run through them for nothing.
        """
        if self.config.recompute == "chunks":
            self.recompute_chunks = True
            return
        function = partial(checkpoint, **(activation_checkpointing_kwargs or {"use_reentrant": False}))
        self._set_gradient_checkpointing(gradient_checkpointing_func=function, every_n_layers=every_n_layers)

    def parameter_counts(self) -> dict[str, tuple[int, int]]:
        """Parameters of each part, and how many of them are trained: embeddings, layers, and what stands behind."""
        embeddings = set(self.embeddings.parameters())
        parts = {
            "embeddings": embeddings,
            "layers": set(self.encoder.parameters()) - embeddings,
            **{name: set(part.parameters()) for name, part in self.named_children() if part is not self.encoder},
        }
        return {
            name: (
                sum(parameter.numel() for parameter in part),
                sum(parameter.numel() for parameter in part if parameter.requires_grad),
            )
            for name, part in parts.items()
            if part
        }


def _learns(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


AutoConfig.register(HierarchicalConfig.model_type, HierarchicalConfig)
AutoModelForSequenceClassification.register(HierarchicalConfig, HierarchicalClassifier)


# ---------------------------------------------------------------------- what model=... makes


def pretrained_hierarchical(
    *,
    vocab_size: int,
    pad_token_id: int,
    label_names: list[str],
    pretrained: str,
    revision: str | None,
    chunk_pooling: ChunkPooling,
    document_pooling: DocumentPooling,
    attention_size: int,
    attention_heads: int,
    head_size: int | None,
    hidden_dropout: float | None,
    attention_dropout: float | None,
    head_dropout: float,
    freeze_embeddings: bool,
    freeze_layers: int,
    micro_chunks: int,
    recompute: Recompute,
) -> HierarchicalClassifier:
    """A pretrained encoder in float32 with new parts above it.

    Args:
        vocab_size: of the tokenizer; the encoder's embedding must have as many rows.
        pad_token_id: of the tokenizer.
        label_names: the classes in order; kept in the model's configuration.
        pretrained: name on the hub, or a folder; of a classifier, such as the model/ of a run of `imdb` or `rating`,
            the encoder is taken.
        revision: of the weights on the hub; None for the newest.
        chunk_pooling: see HierarchicalConfig, as the next four.
        document_pooling: likewise.
        attention_size: likewise.
        attention_heads: likewise.
        head_size: likewise.
        hidden_dropout: on hidden states of the encoder in training; None keeps its own, as for the next.
        attention_dropout: on attention weights of the encoder.
        head_dropout: inside the head.
        freeze_embeddings: exclude the embeddings from training.
        freeze_layers: exclude so many layers from training, from the bottom.
        micro_chunks: see HierarchicalConfig, as the next.
        recompute: likewise.

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
    net = HierarchicalClassifier(
        HierarchicalConfig(
            encoder=inner,
            chunk_pooling=chunk_pooling,
            document_pooling=document_pooling,
            attention_size=attention_size,
            attention_heads=attention_heads,
            head_size=head_size,
            head_dropout=head_dropout,
            micro_chunks=micro_chunks,
            recompute=recompute,
            **_common_settings(label_names, pad_token_id),
        )
    )
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
        encoder: Any = whole.encoder
    else:
        encoder, report = AutoModel.from_pretrained(pretrained, **options)
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ValueError(f"{len(missing)} weights of the encoder are not there, such as {missing[0]}")
    return {name: value for name, value in encoder.state_dict().items() if not name.startswith("pooler.")}


def random_hierarchical(
    *,
    vocab_size: int,
    pad_token_id: int,
    label_names: list[str],
    hidden_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    intermediate_size: int,
    max_position_embeddings: int,
    chunk_pooling: ChunkPooling,
    document_pooling: DocumentPooling,
    attention_size: int,
    attention_heads: int,
    head_size: int | None,
    hidden_dropout: float,
    attention_dropout: float,
    head_dropout: float,
    freeze_embeddings: bool,
    freeze_layers: int,
    micro_chunks: int,
    recompute: Recompute,
) -> HierarchicalClassifier:
    """A BERT encoder with random float32 weights under the same parts.

    Args:
        vocab_size: rows of the embedding.
        pad_token_id: of the tokenizer.
        label_names: the classes in order.
        hidden_size: width, a multiple of `num_attention_heads`.
        num_hidden_layers: encoder blocks.
        num_attention_heads: attention heads of the encoder.
        intermediate_size: width of the MLP.
        max_position_embeddings: longest chunk.
        chunk_pooling: see HierarchicalConfig, as the next four.
        document_pooling: likewise.
        attention_size: likewise.
        attention_heads: likewise.
        head_size: likewise.
        hidden_dropout: on hidden states of the encoder in training.
        attention_dropout: on attention weights of the encoder.
        head_dropout: inside the head.
        freeze_embeddings: see pretrained_hierarchical, as the next three.
        freeze_layers: likewise.
        micro_chunks: likewise.
        recompute: likewise.

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
    net = HierarchicalClassifier(
        HierarchicalConfig(
            encoder=encoder,
            chunk_pooling=chunk_pooling,
            document_pooling=document_pooling,
            attention_size=attention_size,
            attention_heads=attention_heads,
            head_size=head_size,
            head_dropout=head_dropout,
            micro_chunks=micro_chunks,
            recompute=recompute,
            **_common_settings(label_names, pad_token_id),
        )
    )
    net.freeze(embeddings=freeze_embeddings, layers=freeze_layers)
    return net


def _common_settings(label_names: list[str], pad_token_id: int) -> dict[str, Any]:
    return {
        "pad_token_id": pad_token_id,
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: number for number, name in enumerate(label_names)},
        "problem_type": "single_label_classification",
        "dtype": torch.float32,
    }
