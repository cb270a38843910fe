"""What the CPU knows of a batch, told to transformers: else it asks the device, and waits, in every forward pass.

transformers leaves a mask away where no token is padding, and makes another where position ids start anew within a row;
to learn either it reads a tensor. The collator has counted both before the batch went to the device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import masking_utils


@dataclass
class _Known:
    """None where nothing is known, and transformers looks for itself."""

    is_padded: bool | None = None
    is_packed: bool | None = None


_known = _Known()


@contextmanager
def known(*, is_padded: bool | None = None, is_packed: bool | None = None) -> Iterator[None]:
    """Forward passes in here do not look whether tokens are padding, or rows several sequences.

    Args:
        is_padded: whether any token of the batch is padding; None leaves that to be looked at.
        is_packed: False where each row is one sequence; else that is looked at.
    """
    before = _known.is_padded, _known.is_packed
    _known.is_padded, _known.is_packed = is_padded, is_packed
    try:
        yield
    finally:
        _known.is_padded, _known.is_packed = before


_find_packed = masking_utils.find_packed_sequence_indices
_ignore_bidirectional = masking_utils._ignore_bidirectional_mask_sdpa


def find_packed_sequence_indices(position_ids: Any) -> Any:
    """As in transformers, but for rows that are known to be one sequence each."""
    if not torch.compiler.is_compiling() and _known.is_packed is False:
        return None
    return _find_packed(position_ids)


def ignore_bidirectional_mask_sdpa(padding_mask: Any, *args: Any, **kwargs: Any) -> bool:
    """As in transformers, but for a padding that is known."""
    if torch.compiler.is_compiling() or _known.is_padded is None:
        return _ignore_bidirectional(padding_mask, *args, **kwargs)
    return not _known.is_padded and _ignore_bidirectional(None, *args, **kwargs)


masking_utils.find_packed_sequence_indices = find_packed_sequence_indices
masking_utils._ignore_bidirectional_mask_sdpa = ignore_bidirectional_mask_sdpa
