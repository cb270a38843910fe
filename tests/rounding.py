"""Two ways to compute the same sums differ by rounding: how much is expected follows from the type and the terms."""

import torch


def assert_same_sum(actual: torch.Tensor, expected: torch.Tensor, *, terms: int, msg: str | None = None) -> None:
    """Assert that two orders of the same sums agree as far as their type allows.

    Each addition rounds by at most eps / 2 of what it has, and roundings point anywhere, so after n of them a sum is
    off by about sqrt(n) * eps / 2 of its largest terms. Those are the measure, and not the sum itself, which may cancel
    to nearly nothing. Two sums are rounded, and the worst of thousands of entries lies four standard deviations out:
    4 * sqrt(n) * eps of the tensor's largest entry. What is computed wrongly is off by a thousand times that.

    Args:
        actual: any shape.
        expected: same shape and type.
        terms: additions behind an entry: of one matrix product times those of the sum over tokens or documents.
        msg: names the tensor in the message of a failure.
    """
    eps = torch.finfo(expected.dtype).eps
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=4 * terms**0.5 * eps * largest, msg=msg)
