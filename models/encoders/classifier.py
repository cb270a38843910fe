"""Text classifiers: any encoder that AutoModelForSequenceClassification loads, and a small one with random weights."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from models.adapters import Lora, add_adapters
from models.attention_sizes import check_heads, checked_by
from models.from_data import FromData
from models.kernels.attention import first_position_only, use_fast_attention
from models.ranges import Count, Dropout

DROPOUTS = {
    "hidden_dropout": ("hidden_dropout_prob", "hidden_dropout", "dropout", "resid_pdrop"),
    "attention_dropout": ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop"),
    "classifier_dropout": ("classifier_dropout", "seq_classif_dropout", "classifier_dropout_prob", "cls_dropout"),
}
"""What architectures call each dropout."""


def pretrained_classifier(
    *,
    vocab_size: FromData[int],
    pad_token_id: FromData[int],
    label_names: FromData[list[str]],
    multi_label: FromData[bool],
    pretrained: str,
    revision: str | None,
    hidden_dropout: Dropout | None,
    attention_dropout: Dropout | None,
    classifier_dropout: Dropout | None,
    replace_head: bool,
    lora: Lora,
) -> PreTrainedModel:
    """A pretrained encoder in float32 with a head for these classes.

    Args:
        vocab_size: tokens of the tokenizer; the encoder's embedding must have at least as many rows.
        pad_token_id: id of the tokenizer's padding; stored where the encoder's configuration names none.
        label_names: the classes in order; kept in the model's configuration.
        multi_label: whether a text bears any number of labels.
        pretrained: name on the hub, or a folder.
        revision: branch, tag or commit of the weights on the hub; None for the newest.
        hidden_dropout: on hidden states in training, in [0, 1); None keeps the encoder's own.
        attention_dropout: on attention weights in training, in [0, 1); None keeps the encoder's own.
        classifier_dropout: before the head in training, in [0, 1); None keeps the encoder's own.
        replace_head: whether a head that was trained for other classes may be thrown away.
        lora: adapters to train in place of the encoder; rank 0 trains it whole.

    Raises:
        ValueError: the weights cannot be loaded, or do not fit tokenizer, classes or settings.
    """
    try:
        config = AutoConfig.from_pretrained(pretrained, revision=revision)
    except (OSError, ValueError) as error:
        raise cannot_load(pretrained, error) from error
    if not replace_head:
        check_head(pretrained, config, label_names)
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: number for number, name in enumerate(label_names)}
    config.problem_type = problem_type(multi_label=multi_label)
    set_dropouts(
        config,
        hidden_dropout=hidden_dropout,
        attention_dropout=attention_dropout,
        classifier_dropout=classifier_dropout,
    )
    check_vocabulary(pretrained, config, vocab_size)
    if config.pad_token_id is None:
        config.pad_token_id = pad_token_id
    try:
        with quiet_report():
            net: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
                pretrained,
                config=config,
                revision=revision,
                dtype=torch.float32,  # transformers 5 would keep weights in the type in which they were saved
                use_safetensors=True,  # never unpickle
                ignore_mismatched_sizes=replace_head,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise cannot_load(pretrained, error) from error
    use_fast_attention(net)
    first_position_only(net)
    if lora["rank"]:
        adapt(net, lora)
    return net


@checked_by(check_heads)
def random_bert(
    *,
    vocab_size: FromData[int],
    pad_token_id: FromData[int],
    label_names: FromData[list[str]],
    multi_label: FromData[bool],
    hidden_size: Count,
    num_hidden_layers: Count,
    num_attention_heads: Count,
    intermediate_size: Count,
    max_position_embeddings: Count,
    hidden_dropout: Dropout,
    attention_dropout: Dropout,
    classifier_dropout: Dropout,
) -> PreTrainedModel:
    """A BERT encoder with random float32 weights and a head.

    Args:
        vocab_size: rows of the embedding.
        pad_token_id: id of the tokenizer's padding, stored in the configuration.
        label_names: the classes in order; kept in the model's configuration.
        multi_label: whether a text bears any number of labels.
        hidden_size: width, a multiple of `num_attention_heads`.
        num_hidden_layers: encoder blocks.
        num_attention_heads: attention heads.
        intermediate_size: width of the MLP.
        max_position_embeddings: longest sequence.
        hidden_dropout: on hidden states in training, in [0, 1).
        attention_dropout: on attention weights in training, in [0, 1).
        classifier_dropout: before the head in training, in [0, 1).
    """
    net = BertForSequenceClassification(
        BertConfig(
            vocab_size=vocab_size,
            pad_token_id=pad_token_id,
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            intermediate_size=intermediate_size,
            max_position_embeddings=max_position_embeddings,
            hidden_dropout_prob=hidden_dropout,
            attention_probs_dropout_prob=attention_dropout,
            classifier_dropout=classifier_dropout,
            id2label=dict(enumerate(label_names)),
            label2id={name: number for number, name in enumerate(label_names)},
            problem_type=problem_type(multi_label=multi_label),
            dtype=torch.float32,
        )
    )
    use_fast_attention(net)
    first_position_only(net)
    return net


def problem_type(*, multi_label: bool) -> Literal["single_label_classification", "multi_label_classification"]:
    """How transformers calls the task: a saved model says by it what its logits mean."""
    return "multi_label_classification" if multi_label else "single_label_classification"


def check_head(pretrained: str, config: PreTrainedConfig, label_names: Sequence[str]) -> None:
    """Compare a trained head, where the weights bring one, with the classes of the data.

    Raises:
        ValueError: the head is for other classes, or for these in another order.
    """
    architectures = getattr(config, "architectures", None) or []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        return
    id2label: dict[Any, str] = config.id2label or {}
    names = [str(id2label[number]) for number in sorted(id2label)]
    nobody_named_them = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    heads, classes = [name.lower() for name in names], [name.lower() for name in label_names]
    if heads == classes or (nobody_named_them and len(heads) == len(classes)):
        return
    listed = ", ".join(names[:8])
    if sorted(heads) == sorted(classes):
        right_order = sorted(label_names, key=lambda name: heads.index(name.lower()))
        raise ValueError(
            f"model.pretrained={pretrained} has a head for {listed}, the data number their classes as "
            f"{', '.join(label_names)}; set data.label_names=[{','.join(right_order)}]"
        )
    raise ValueError(
        f"model.pretrained={pretrained} has a head for {len(names)} classes ({listed}), the data have "
        f"{len(label_names)} ({', '.join(label_names[:8])}); model.replace_head=true starts with a new head"
    )


def check_vocabulary(pretrained: str, config: PreTrainedConfig, vocab_size: int) -> None:
    """Refuse a tokenizer with more tokens than the embedding has rows.

    Raises:
        ValueError: it has.
    """
    if vocab_size > config.vocab_size:
        raise ValueError(
            f"data.tokenizer has {vocab_size:,} tokens, the embedding of model.pretrained={pretrained} "
            f"{config.vocab_size:,} rows; use the tokenizer of the model, data.tokenizer={pretrained}"
        )


def set_dropouts(config: PreTrainedConfig, **dropouts: float | None) -> None:
    """Write dropouts into an architecture's configuration under the names that it has for them.

    Raises:
        ValueError: it has no such dropout, or a value is not a probability.
    """
    for name, value in dropouts.items():
        if value is None:
            continue
        if not 0 <= value < 1:
            raise ValueError(f"model.{name}={value}: must be at least 0 and below 1")
        known = [alias for alias in DROPOUTS[name] if hasattr(config, alias)]
        if not known:
            raise ValueError(
                f"model.{name}={value}: {type(config).__name__} has no such dropout; set model.{name}=null to keep "
                "what it has"
            )
        setattr(config, known[0], value)


def adapt(net: PreTrainedModel, lora: Lora) -> None:
    """Put adapters into the encoder; only they and the head learn.

    Raises:
        ValueError: a setting is out of range, or no layer has such a name.
    """
    targets = lora["target_modules"]
    linear = sorted(
        {name.rpartition(".")[2] for name, part in net.base_model.named_modules() if isinstance(part, nn.Linear)}
    )
    if targets == "all-linear":  # those of the encoder: the head is new and learns whole
        targets = rf"{net.base_model_prefix}\.(?!pooler).*\.({'|'.join(linear)})"
    elif isinstance(targets, list) and (wrong := [name for name in targets if name not in linear]):
        raise ValueError(f"model.lora.target_modules: there is no layer {wrong[0]!r}; choose from {', '.join(linear)}")
    heads = {name: part for name, part in net.named_children() if name != net.base_model_prefix}
    # a base that was trained without a pooler has none to go with the adapters
    whole = [name for name, part in heads.items() if list(part.parameters())] + ["pooler"]
    add_adapters(net, {**lora, "target_modules": targets}, task_type="SEQ_CLS", saved_whole=whole)
    for part in heads.values():
        part.requires_grad_(requires_grad=True)


def classification_loss(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Loss summed over samples, in float32.

    Args:
        logits: (n, classes) floating point.
        labels: (n,) int64 class numbers: cross-entropy. Or (n, classes) of 0 and 1: binary cross-entropy, the mean
            over classes.
        label_smoothing: share of each target that is spread over the classes, in [0, 1).

    Returns:
        () float32.
    """
    if labels.ndim == 1:
        return nn.functional.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=label_smoothing)
    targets = labels.float() * (1 - label_smoothing) + label_smoothing / 2
    return nn.functional.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum") / labels.shape[1]


def weighted_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor, *, label_smoothing: float = 0.0, focal_gamma: float = 0.0
) -> Tensor:
    """Weighted loss summed over samples, in float32; divided by the sum of their weights it is torch's weighted mean.

    Args:
        logits: (n, classes).
        labels: (n,) int64 class numbers.
        weights: (classes,) float32, what a sample of each class counts.
        label_smoothing: share of each target that is spread over the classes, in [0, 1).
        focal_gamma: each sample counts (1 - p) ** gamma, p being the probability of its class: the easy ones less (Lin
            et al. 2017, "Focal loss for dense object detection"); 0 counts all alike.

    Returns:
        () float32.
    """
    logits = logits.float()
    losses = nn.functional.cross_entropy(
        logits, labels, weight=weights, reduction="none", label_smoothing=label_smoothing
    )  # (n,)
    if focal_gamma:
        true = torch.log_softmax(logits, dim=-1).gather(1, labels[:, None])[:, 0].exp()  # (n,)
        losses = losses * (1 - true).clamp_min(torch.finfo(logits.dtype).tiny) ** focal_gamma
    return losses.sum()


def cannot_load(pretrained: str, error: Exception) -> ValueError:
    """The error for weights that are not there, or are others."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(
        f"model.pretrained={pretrained} cannot be loaded ({reason}); without a network name a folder, or use "
        "model=minilm (rating: hierarchical_minilm), whose weights come as a package"
    )


@contextlib.contextmanager
def quiet_report() -> Iterator[None]:
    """Without the table of weights that are new: it is the head, and check_head has said whether that is meant."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
