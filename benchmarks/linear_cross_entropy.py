"""models/kernels/linear_cross_entropy.py against torch's own, chunked: exactness, speed, memory.

    python -m benchmarks.linear_cross_entropy                       all cases, five rounds
    python -m benchmarks.linear_cross_entropy --rounds 3 --case "bf16"

Each case is forward and backward of one summed loss. Ours and torch's alternate, also in who is first; each round gives
one ratio of torch's seconds to ours, and the median is printed with the lowest and highest: above 1, ours is faster.
Errors are largest differences from float64, over the largest value there, for the first 800 tokens. Memory is what the
process takes at its peak beyond what it held before. `chunks` gives torch as many rows at once as ours takes.
"""

import argparse
import gc
import os
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from models.kernels.linear_cross_entropy import CHUNK_BYTES, linear_cross_entropy

LARGE, MIDDLE, TINY = (3200, 512, 50304), (1500, 576, 49152), (64, 32, 500)


@dataclass(frozen=True)
class Case:
    """Sizes (tokens, width, classes), and what differs from float32 with every gradient wanted."""

    name: str
    sizes: tuple[int, int, int]
    dtype: torch.dtype = torch.float32
    autocast: bool = False
    frozen: bool = False
    tied: bool = False
    smoothing: float = 0.0
    grad: bool = True


SORTS = {
    "fp32": {}, "fp32 frozen": {"frozen": True}, "fp32 tied": {"tied": True}, "fp32 smoothing": {"smoothing": 0.1},
    "fp32 no grad": {"grad": False}, "bf16 autocast": {"autocast": True}, "bf16": {"dtype": torch.bfloat16},
}  # fmt: skip
CASES = [
    replace(Case(f"{sort}, {' x '.join(f'{size:,}' for size in sizes)}", sizes), **changes)  # type: ignore[arg-type]
    for sizes in (LARGE, MIDDLE, TINY)
    for sort, changes in SORTS.items()
]


@dataclass(frozen=True)
class Operands:
    """Leaves that gradients are taken of, and labels (N,). Tied, the states are looked up in the weight."""

    case: Case
    states: Tensor
    weight: Tensor
    labels: Tensor

    def loss_and_gradients(self, compute: Callable[["Operands", Tensor], Tensor]) -> tuple[Tensor, ...]:
        """The loss, and the gradients that this case wants."""
        case = self.case
        if not case.grad:
            with torch.no_grad(), autocast(case):
                return (compute(self, self.states),)
        leaves = [self.weight] if case.tied else [self.states] if case.frozen else [self.states, self.weight]
        with autocast(case):
            states = functional.embedding(self.labels.roll(1), self.weight) if case.tied else self.states
            loss = compute(self, states)
        return (loss.detach(), *torch.autograd.grad(loss, leaves))


def autocast(case: Case) -> AbstractContextManager[object]:
    """To bfloat16 where the case says so."""
    return torch.autocast("cpu", torch.bfloat16) if case.autocast else nullcontext()


def operands(case: Case) -> Operands:
    """The same numbers for every type."""
    tokens, width, classes = case.sizes
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(tokens, width, generator=draw)
    weight = torch.randn(classes, width, generator=draw) * 3 * width**-0.5
    labels = torch.randint(0, classes, (tokens,), generator=draw)
    return Operands(
        case,
        states.to(case.dtype).requires_grad_(),
        weight.to(case.dtype).requires_grad_(not case.frozen),
        labels,
    )


def ours(given: Operands, states: Tensor) -> Tensor:
    """Ours."""
    return linear_cross_entropy(states, given.weight, given.labels, label_smoothing=given.case.smoothing)


def by_torch(given: Operands, states: Tensor, rows: int | None = None) -> Tensor:
    """As torch computes it, with its defaults or so many rows at a time; without options where it has no chunks."""
    method = "auto" if rows is None else None
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows, chunking_method=method)
    weight = given.weight
    if given.case.autocast:  # its chunked operator is not autocast: as a caller would have to
        states, weight = states.bfloat16(), weight.bfloat16()
    return functional.linear_cross_entropy(
        states, weight, given.labels, reduction="sum", label_smoothing=given.case.smoothing, options=options
    )


def by_torch_in_our_chunks(given: Operands, states: Tensor) -> Tensor:
    """As by_torch, with our number of rows."""
    return by_torch(given, states, min(len(states), max(CHUNK_BYTES // (4 * given.case.sizes[2]), 1)))


def exact(given: Operands) -> list[Tensor]:
    """float64, by linear and cross_entropy, of the numbers as they are in their type."""
    case = replace(given.case, dtype=torch.float64, autocast=False)
    doubled = Operands(
        case,
        given.states.detach().double().requires_grad_(),
        given.weight.detach().double().requires_grad_(not case.frozen),
        given.labels,
    )

    def plain(given: Operands, states: Tensor) -> Tensor:
        logits = functional.linear(states, given.weight)
        return functional.cross_entropy(logits, given.labels, reduction="sum", label_smoothing=case.smoothing)

    return list(doubled.loss_and_gradients(plain))


def errors(found: tuple[Tensor, ...], truth: list[Tensor]) -> str:
    """Of the loss, then of each gradient."""
    return " ".join(
        f"{float((one.double() - other).abs().max() / other.abs().max()):.1e}"
        for one, other in zip(found, truth, strict=True)
    )


def peak_bytes(work: Callable[[], object]) -> int:
    """What the process takes beyond what it held, by the kernel's high-water mark."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(key: str) -> int:
    """A value of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Of one call, the mean over `repeats`."""
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats


def measure(case: Case, rounds: int) -> None:
    """Print one case."""
    given = operands(case)
    rivals = {"ours": ours, "torch": by_torch, "chunks": by_torch_in_our_chunks}
    works = {name: lambda compute=compute: given.loss_and_gradients(compute) for name, compute in rivals.items()}
    few = operands(replace(case, sizes=(min(case.sizes[0], 800), *case.sizes[1:])))
    truth = exact(few)
    accuracy = {name: errors(few.loss_and_gradients(compute), truth) for name, compute in rivals.items()}
    del few, truth
    memory = {name: peak_bytes(work) / 2**20 for name, work in works.items()}
    repeats = 20 if case.sizes == TINY else 1
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name in list(works) if number % 2 else reversed(list(works)):
            times[name].append(seconds(works[name], repeats))
    print(f"{case.name}: ours {statistics.median(times['ours']) * 1e3:,.1f} ms, {memory['ours']:,.0f} MiB, "
          f"errors {accuracy['ours']}")  # fmt: skip
    for name in ("torch", "chunks"):
        ratios = [other / own for other, own in zip(times[name], times["ours"], strict=True)]
        print(
            f"    {name}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) times ours, "
            f"{memory[name]:,.0f} MiB, errors {accuracy[name]}",
            flush=True,
        )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", default="", help="part of a case's name")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="linear_cross_entropy: ``options`` ignored")  # smoothing has no chunks
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    for case in CASES:
        if options.case in case.name:
            measure(case, options.rounds)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
