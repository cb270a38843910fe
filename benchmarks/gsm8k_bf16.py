"""What bfloat16 does to the loss of `gsm8k`, on any machine.

    python -m benchmarks.gsm8k_bf16 --data ../shared/data/gsm8k
    python -m benchmarks.gsm8k_bf16 --data small --model small --steps 2      a smoke test of seconds

Three trainings from the same weights on the same windows: float32; `bf16_mixed`, where weights, optimizer and residual
stream are float32 and matrix products and attention bfloat16; and weights that are bfloat16 themselves, as they come
when a model is loaded in the type in which it was saved. Where a processor has no units for it, bfloat16 is emulated to
the bit that matters: what goes into a product and what comes out of it, forward and backward, is rounded to bfloat16,
and sums are kept in float32, as the units keep them.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.gsm8k import SMALL, export_base, open_data
from models.kernels.packed_attention import use_packed_attention
from models.language.causal_lm import target_loss

MODES = ("fp32", "bf16_mixed", "bf16 weights")
PRODUCTS = (nn.functional.linear, torch.matmul, Tensor.matmul, nn.functional.scaled_dot_product_attention)


def rounded(values: Tensor) -> Tensor:
    """The nearest bfloat16 values, in float32."""
    return values.to(torch.bfloat16).to(torch.float32)


class _Round(torch.autograd.Function):
    """Rounds values on the way in and gradients on the way back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return rounded(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return rounded(gradient)


def round_floats(value: Any) -> Any:
    """The value rounded both ways, where it is a tensor of floats."""
    return _Round.apply(value) if isinstance(value, Tensor) and value.is_floating_point() else value


class EmulatedBfloat16(TorchFunctionMode):
    """Matrix products and attention on bfloat16 values."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS:
            return func(*args, **kwargs)
        out = func(*map(round_floats, args), **{name: round_floats(value) for name, value in kwargs.items()})
        return round_floats(out)


def train(options: argparse.Namespace, base: Path, mode: str) -> list[float]:
    """Losses of the first steps, AdamW at a constant learning rate."""
    from transformers import AutoModelForCausalLM

    from datamodules.sampling.step_loader import StepSampler

    data = open_data(options, base)
    net = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    use_packed_attention(net)
    # with a hook on it the output projection is called as a module, and its product is seen here
    net.get_output_embeddings().register_forward_hook(lambda *_: None)
    if mode == "bf16 weights":
        for module in net.modules():
            if not list(module.children()) or hasattr(module, "self_attn"):  # leaves, and the residual stream
                module.register_forward_hook(lambda _module, _inputs, out: round_floats(out))
        round_parameters(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.lr, weight_decay=0.0)
    collate = data.collator(options.batch_size)
    sampler = StepSampler(
        num_samples=data.num_train_samples,
        global_batch_size=options.batch_size,
        num_steps=options.steps,
        seed=options.seed,
    )
    losses = []
    for key in sampler:
        micro_batches = collate(key)["micro_batches"]
        targets = sum(int((batch["labels"] != -100).sum()) for batch in micro_batches)
        total = 0.0
        for batch in micro_batches:
            if mode == "fp32":
                loss, _ = target_loss(net, batch, shared_prefix_length=batch["shared_prefix_length"])
            else:
                with EmulatedBfloat16():
                    loss, _ = target_loss(net, batch, shared_prefix_length=batch["shared_prefix_length"])
            (loss / targets).backward()
            total += float(loss.detach()) / targets
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if mode == "bf16 weights":
            round_parameters(net)
            round_states(optimizer)
        losses.append(total)
    return losses


@torch.no_grad()
def round_parameters(net: nn.Module) -> None:
    """Keep of every weight what bfloat16 keeps."""
    for parameter in net.parameters():
        parameter.copy_(rounded(parameter))


@torch.no_grad()
def round_states(optimizer: torch.optim.Optimizer) -> None:
    """The same for AdamW's moments, which have the type of the weights."""
    for state in optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            state[name].copy_(rounded(state[name]))


def main() -> None:
    """Run the three trainings and print their losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=SMALL, help="folder with train.jsonl; small = made-up sums")
    parser.add_argument("--model", default="smollm2_135m", help="option of model=, or a folder; small = a tiny one")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.rows, options.precision = "1", "fp32"
    with tempfile.TemporaryDirectory() as folder:
        if SMALL in (options.data, options.model):
            from lightning_apps.experiments.gsm8k.small_files import write_small_files

            write_small_files(Path(folder) / "files")
            options.data = str(Path(folder) / "files" / "data") if options.data == SMALL else options.data
            options.model = str(Path(folder) / "files" / "model") if options.model == SMALL else options.model
        base = Path(folder) / "base"
        export_base(options, base)
        reference: list[float] = []
        for mode in MODES:
            losses = train(options, base, mode)
            reference = reference or losses
            off = [100 * (loss / best - 1) for loss, best in zip(losses, reference, strict=True)]
            print(
                f"  {mode:14}",
                *(f"{loss:.4f} ({part:+.2f} %)" for loss, part in zip(losses, off, strict=True)),
                flush=True,
            )


if __name__ == "__main__":
    main()
