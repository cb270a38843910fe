"""Attention with dropout on a CPU, for encoders: what SDPA does there step by step is done here in the core's cache."""

from transformers import PreTrainedModel


def use_cpu_dropout_attention(net: PreTrainedModel) -> None:
    """Placeholder."""
