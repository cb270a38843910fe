"""What the CPU knows of a batch, told to transformers: else it asks the device, and waits, in every forward pass.

transformers leaves a mask away where no token is padding, and makes another where position ids start anew within a row;
to learn either it reads a tensor. The collator has counted both before the batch went to the device.
"""

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from models.kernels.attention import FIRST_POSITION_PARTS, NAME, architecture


def padding_mask(net: PreTrainedModel, attention_mask: Tensor, is_padded: bool | None) -> Tensor | None:
    """What to pass as the attention mask of an encoder, so that transformers does not read it.

    Args:
        net: an encoder, with a head or without.
        attention_mask: (n, T), 1 for tokens and 0 for padding.
        is_padded: whether that has a 0; None leaves it to be looked at.

    Returns:
        None where nothing is padded; where something is the (n, 1, T, T) bool mask that transformers would make, for
        architectures whose layers take it as it is; else the attention mask.
    """
    if is_padded is False:
        return None
    if is_padded is None or architecture(net) not in FIRST_POSITION_PARTS or net.config._attn_implementation != NAME:
        return attention_mask
    return attention_mask.bool()[:, None, None].expand(-1, -1, attention_mask.shape[1], -1)


class OneSequenceARow(Cache):
    """A cache that keeps nothing: beside one, transformers does not look for several sequences in a row."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The keys and values (n, heads, T, d) of this pass, which are all that there are."""
        return key_states, value_states
