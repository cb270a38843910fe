"""Classifier of long documents: an encoder reads chunks, attention pools the chunks of a document, a head classifies.

All chunks of a batch are one flat batch, whichever documents they belong to, so that nothing is computed for chunks
that are not there. They are sorted by length and encoded a few at a time. An encoder of which nothing is trained reads
each chunk alone, so that the chunk's vector never changes and can be looked up the next time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    initialization,
)
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from models.encoders.chunk_vectors import ChunkVectors
from models.encoders.document_pooling import MultiHeadPooling, document_pooling
from models.kernels.asynchronous_copy import to_device
from models.kernels.attention import first_position_only, use_fast_attention
from models.kernels.known_masks import padding_mask


class HierarchicalConfig(PreTrainedConfig):
    """Settings of a HierarchicalClassifier, as its config.json holds them.

    Beside the configuration of the encoder, of any architecture that AutoModel knows, they are those of
    build_hierarchical.AboveEncoder.
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
    """An encoder over chunks, a pooling over the chunks of a document, and a head; new ones have random weights.

    Args:
        config: the encoder's own configuration and the settings of the parts above it.

    Attributes:
        encoder: any architecture that AutoModel knows, without its pooler.
        chunk_attention: the module that pools the vectors of a document's chunks.
        norm: layer norm of the pooled vector; counts, which it would make shares again, pass as they are.
        head: from the pooled vector to the logits.
        recompute_chunks: whether the backward pass computes micro-batches of chunks again from their token ids.
        chunk_vectors: what a frozen encoder has read before, by chunk; None where nobody keeps it.
    """

    config_class = HierarchicalConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: HierarchicalConfig) -> None:
        super().__init__(config)
        self.encoder: PreTrainedModel = AutoModel.from_config(config.encoder)
        if isinstance(getattr(self.encoder, "pooler", None), nn.Module):
            self.encoder.pooler = None  # nothing reads it, and without a gradient it would be in nobody's group
        width: int = self.encoder.config.hidden_size
        self.chunk_attention = document_pooling(
            config.document_pooling,  # type: ignore[arg-type]
            width,
            attention_size=config.attention_size,
            attention_heads=config.attention_heads,
        )
        counts = config.document_pooling == "sum"
        pooled_width = config.attention_size if counts else width
        self.norm = nn.Identity() if counts else nn.LayerNorm(width)
        head_size: int = config.head_size or width
        self.head = nn.Sequential(
            nn.Linear(pooled_width, head_size),
            nn.Tanh(),
            nn.Dropout(config.head_dropout),
            nn.Linear(head_size, config.num_labels),  # type: ignore[arg-type]
        )
        self.recompute_chunks = False
        self.chunk_vectors: ChunkVectors | None = None
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
        chunk_lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Vectors of chunks, (chunks, hidden), of a flat batch.

        Args:
            input_ids: (chunks, length) int64, padded on the right.
            attention_mask: (chunks, length), 1 for tokens and 0 for padding; None where nothing is padded.
            inputs_embeds: (chunks, length, width) word embeddings in place of input_ids, without position or type.
            chunk_lengths: (chunks,) tokens of each chunk, padding left out; None reads them from the mask, for which
                the CPU waits for a GPU.

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
        is_counted = chunk_lengths is not None  # a mask that somebody else made may have holes
        if chunk_lengths is None:
            ends = attention_mask * torch.arange(1, given.shape[1] + 1, device=given.device)
            chunk_lengths = ends.amax(dim=1).tolist()
        if input_ids is not None and self.encoder_is_frozen:
            return self._encode_frozen(input_ids, [max(length, 1) for length in chunk_lengths])
        places = sorted(range(len(chunk_lengths)), key=lambda row: -chunk_lengths[row])  # stable, the longest first
        order = to_device(torch.tensor(places), given.device)
        lengths = [chunk_lengths[row] for row in places]
        spare_calls = self._calls_for_others(-(-len(lengths) // self.config.micro_chunks))
        vectors = []
        for start in range(0, len(lengths), self.config.micro_chunks):
            rows = order[start : start + self.config.micro_chunks]
            length = max(1, lengths[start])
            is_padded = lengths[start : start + self.config.micro_chunks][-1] < length if is_counted else None
            micro_batch = given[rows, :length], attention_mask[rows, :length], is_padded
            if self.recompute_chunks and self.training and torch.is_grad_enabled():
                vectors.append(checkpoint(self._encode_micro_batch, *micro_batch, use_reentrant=False))
            else:
                vectors.append(self._encode_micro_batch(*micro_batch))
        for _ in range(spare_calls):
            spare = given[:1, :1], attention_mask[:1, :1], None
            vectors[0] = vectors[0] + 0.0 * self._encode_micro_batch(*spare).sum()
        return torch.cat(vectors)[torch.argsort(order)]  # (chunks, hidden), in the order given

    @torch.no_grad()
    def _encode_frozen(self, input_ids: Tensor, lengths: list[int]) -> Tensor:
        """Vectors of chunks, each read alone: in a batch their last digits would depend on the others in it."""
        memory = self.chunk_vectors
        on_cpu = input_ids if memory is None else input_ids.cpu()
        known_ones = [
            None if memory is None else memory.find(on_cpu[row, :length]) for row, length in enumerate(lengths)
        ]
        spare = self._calls_for_others(known_ones.count(None))
        vectors = []
        for row, (vector, length) in enumerate(zip(known_ones, lengths, strict=True)):
            if vector is None:
                chunk = input_ids[row : row + 1, :length]
                vector = self._encode_micro_batch(chunk, torch.ones_like(chunk), False)[0]
            vectors.append(vector.to(input_ids.device))
        for _ in range(spare):
            self._encode_micro_batch(input_ids[:1, :1], torch.ones_like(input_ids[:1, :1]), False)
        return torch.stack(vectors)  # (chunks, hidden)

    def _calls_for_others(self, calls: int) -> int:
        """Calls of the encoder that this rank has to make beside its own, as another one has more chunks.

        With weights in shards every rank takes part in each call. Evaluations hold whole weights, and none waits.
        """
        if not (isinstance(self, FSDPModule) and self.training):
            return 0
        most = torch.tensor(calls, device=self.device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        return int(most) - calls

    def _encode_micro_batch(self, given: Tensor, attention_mask: Tensor, is_padded: bool | None) -> Tensor:
        """Vectors (m, hidden) of m chunks.

        Args:
            given: ids (m, length) or embeddings (m, length, width).
            attention_mask: (m, length), 1 for tokens and 0 for padding.
            is_padded: whether the mask has a 0, so that nobody needs to read it; None where that is not known.
        """
        key = "inputs_embeds" if given.is_floating_point() else "input_ids"
        seen = padding_mask(self.encoder, attention_mask, is_padded)
        hidden: Tensor = self.encoder(attention_mask=seen, **{key: given}).last_hidden_state
        if self.config.chunk_pooling == "first":
            return hidden[:, 0]
        mask = attention_mask[..., None].to(hidden.dtype)  # (m, length, 1)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)

    def classify(
        self,
        chunk_vectors: Tensor,
        chunk_counts: Tensor | Sequence[int],
        chunk_sections: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits (documents, classes) and weights of chunks (chunks,), which sum to one over each document.

        Args:
            chunk_vectors: (chunks, hidden), those of a document behind one another.
            chunk_counts: (documents,) chunks of each document, at least one; int64 where it is a tensor.
            chunk_sections: (chunks,) number of the section of each chunk in its document; neighbours of one number are
                averaged, and the document is pooled from its sections. None where each chunk stands alone.

        Raises:
            ValueError: the counts or sections do not add up to the number of vectors.
        """
        counts = chunk_counts.tolist() if isinstance(chunk_counts, Tensor) else list(chunk_counts)
        if sum(counts) != len(chunk_vectors) or min(counts, default=1) < 1:
            raise ValueError(f"{len(chunk_vectors)} chunks cannot be documents of {counts} chunks")
        if chunk_sections is not None:
            sizes = section_sizes(counts, chunk_sections)
            flat = [size for of_document in sizes for size in of_document]
            parts = nn.utils.rnn.pad_sequence(list(torch.split(chunk_vectors, flat)), batch_first=True)
            divisor = to_device(torch.tensor(flat, dtype=chunk_vectors.dtype), chunk_vectors.device)
            of_section = to_device(torch.repeat_interleave(torch.tensor(flat)), chunk_vectors.device)
            means = parts.sum(dim=1) / divisor[:, None]  # (sections, hidden)
            logits, weights = self.classify(means, [len(of_document) for of_document in sizes])
            return logits, (weights / divisor)[of_section]
        # (documents, longest, hidden), zeros where a document has no such chunk
        table = nn.utils.rnn.pad_sequence(list(torch.split(chunk_vectors, counts)), batch_first=True)
        on_cpu = torch.arange(table.shape[1]) < torch.tensor(counts)[:, None]
        mask = to_device(on_cpu, table.device)
        pooled, weights = self.chunk_attention(table, mask)
        places = to_device(on_cpu.flatten().nonzero().squeeze(1), table.device)
        return self.head(self.norm(pooled)), weights.flatten()[places]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        chunk_counts: Tensor | Sequence[int] | None = None,
        labels: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        chunk_lengths: Sequence[int] | None = None,
        chunk_sections: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> HierarchicalOutput:
        """Classify documents.

        Args:
            input_ids: (chunks, length) int64, see encode.
            attention_mask: (chunks, length), see encode.
            chunk_counts: (documents,) chunks of each document; None for one chunk each.
            labels: (documents,) int64.
            inputs_embeds: (chunks, length, width) in place of input_ids, see encode.
            chunk_lengths: (chunks,) tokens of each chunk, see encode.
            chunk_sections: (chunks,) section of each chunk, see classify.
            **kwargs: of pipelines; nothing here reads them.
        """
        vectors = self.encode(input_ids, attention_mask, inputs_embeds=inputs_embeds, chunk_lengths=chunk_lengths)
        if chunk_counts is None:
            chunk_counts = [1] * len(vectors)
        logits, weights = self.classify(vectors, chunk_counts, chunk_sections)
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

    @property
    def encoder_is_frozen(self) -> bool:
        """Whether nothing of the encoder is trained."""
        return not _learns(self.encoder)

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
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Keep less for the backward pass and compute it again (Chen et al. 2016); see HierarchicalConfig.recompute.

        Unlike transformers' own this asks for no gradient of the embeddings: with these and the bottom layers frozen,
        the backward pass would run through them for nothing.

        Args:
            activation_checkpointing_kwargs: for torch's checkpoint; None for the variant that is not reentrant.
            every_n_layers: one layer in so many is checkpointed; read where `recompute` is `layers`.
            offload: of transformers' signature; nothing here reads it.
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


def section_sizes(chunk_counts: Sequence[int], chunk_sections: Sequence[int]) -> list[list[int]]:
    """Chunks of each section of each document, from the number of each chunk's section.

    Raises:
        ValueError: there are more or fewer numbers than chunks.
    """
    if len(chunk_sections) != sum(chunk_counts):
        raise ValueError(f"{len(chunk_sections)} numbers of sections are not those of {sum(chunk_counts)} chunks")
    numbers = iter(chunk_sections)
    return [[len(list(run)) for _, run in groupby(islice(numbers, count))] for count in chunk_counts]


def _learns(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


AutoConfig.register(HierarchicalConfig.model_type, HierarchicalConfig)
AutoModelForSequenceClassification.register(HierarchicalConfig, HierarchicalClassifier)
