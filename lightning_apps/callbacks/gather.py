"""Results of all processes, in the order of the samples."""

from typing import TypeVar

import torch

Result = TypeVar("Result")


def gather_in_order(results: list[Result], total: int, world_size: int) -> list[Result]:
    """All ranks' results in the order of the samples, rank r having had the samples r, r + world_size, ..."""
    if world_size == 1:
        return results
    shares: list[list[Result]] = [[] for _ in range(world_size)]
    torch.distributed.all_gather_object(shares, results)
    return [shares[number % world_size][number // world_size] for number in range(total)]
