"""Two ways to compute the same sums differ by rounding: how much is expected follows from the type and the terms."""

import torch


def assert_same_sum(
    actual: torch.Tensor, expected: torch.Tensor, *, terms: int, largest: float | None = None, msg: str | None = None
) -> None:
    """Assert that two orders of the same sums agree as far as their type allows.

    Each addition rounds by at most eps / 2 of what it has, and roundings point anywhere, so after n of them a sum is
    off by about sqrt(n) * eps / 2 of its largest terms. Those are the measure, and not the sum itself, which may cancel
    to nearly nothing. Two sums are rounded, and the worst of thousands of entries lies four standard deviations out:
    4 * sqrt(n) * eps of the tensor's largest entry. What is computed wrongly is off by a thousand times that.

    Args:
        actual: any shape.
        expected: same shape and type.
        terms: additions behind an entry: of one matrix product times those of the sum over tokens or documents.
        largest: of the terms; None takes the largest entry of `expected`, too little where all its sums cancel.
        msg: names the tensor in the message of a failure.
    """
    if largest is None:
        largest = float(expected.detach().abs().max())
    tolerance = largest * relative_rounding(terms, expected.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance, msg=msg)


def relative_rounding(terms: int, dtype: torch.dtype = torch.float32) -> float:
    """How far two orders of a sum of so many additions may be apart, as a share of its largest terms; see above."""
    return float(4 * terms**0.5 * torch.finfo(dtype).eps)
