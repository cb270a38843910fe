"""Losses of 20 optimizer steps against transformers' Trainer and a float64 reference.

    python -m benchmarks.loss_parity

Same initial weights, same batches in the same order, AdamW, constant rate, float32, accumulation 4, sequences of 6 to
48 tokens padded to the longest of each micro-batch of 8. An epoch has 9 micro-batches, so every third window is a
partial one of a single micro-batch. The reference computes each window as one batch in float64.
"""

import copy
import tempfile
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from datamodules.sampling.step_batches import StepCollator
from lightning_apps.experiments.location.module import LocationModule
from lightning_apps.runs.build import quiet_libraries
from lightning_apps.training.optimizers import adamw
from lightning_apps.training.plan import plan_run
from lightning_apps.training.schedules import constant
from models.language.causal_lm import IGNORED, qwen2, target_loss

STEPS, MICRO, ACCUMULATION, SAMPLES, VOCABULARY = 20, 8, 4, 72, 50
RATE = 1e-3


def make_sequences() -> list[Tensor]:
    """SAMPLES token sequences of very unequal lengths."""
    source = np.random.default_rng(0)
    return [
        torch.from_numpy(source.integers(2, VOCABULARY, source.integers(6, 49)).astype(np.int64))
        for _ in range(SAMPLES)
    ]


def collate(sequences: list[Tensor]) -> dict[str, Any]:
    """Right-padded batch; the first third of each sequence is a prompt without labels."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
        labels[row, len(sequence) // 3 : len(sequence)] = sequence[len(sequence) // 3 :]
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def make_net() -> Any:
    """A small net with fixed weights."""
    torch.manual_seed(0)
    return qwen2(
        vocab_size=VOCABULARY, pad_token_id=0, eos_token_id=1, hidden_size=64, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, intermediate_size=128, max_position_embeddings=64,
        tie_word_embeddings=True, attention_dropout=0.0, init_scale=1.0,
    )  # fmt: skip


def windows() -> list[list[int]]:
    """Sample numbers of each window, in order, epoch after epoch."""
    size = MICRO * ACCUMULATION
    epoch = [list(range(start, min(start + size, SAMPLES))) for start in range(0, SAMPLES, size)]
    return (epoch * (STEPS // len(epoch) + 1))[:STEPS]


def ours(sequences: list[Tensor]) -> list[float]:
    """Losses of this project's training step under Lightning."""
    losses: list[float] = []
    plan = plan_run(
        num_train_samples=SAMPLES,
        tokens_per_sample=1.0,
        global_batch_size=MICRO * ACCUMULATION,
        trainer={
            "max_steps": STEPS,
            "max_epochs": None,
            "max_tokens": None,
            "evaluate_every": "never",
            "save_every": "never",
        },
        warmup=0,
    )

    def build_batch(epochs: NDArray[np.int64], indices: NDArray[np.int64]) -> dict[str, Any]:
        return {**collate([sequences[index] for index in indices]), "shared_prefix_length": 0}

    class Record(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
            losses.append(float(outputs["loss"]))

    module = LocationModule(
        build_net=make_net,
        build_optimizer=lambda net: adamw(
            net, lr=RATE, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0, groups=[], layer_decay=None, fused=True
        ),
        label_smoothing=0.0,
        schedule=constant(warmup_steps=0, total_steps=STEPS),
        plan=plan,
    )
    keys: Any = [(0, np.array(window, dtype=np.int64)) for window in windows()]
    loader = torch.utils.data.DataLoader(keys, batch_size=None, collate_fn=StepCollator(build_batch, MICRO))
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, max_steps=STEPS, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Record()],
    )  # fmt: skip
    trainer.fit(module, loader)
    return losses


def peer(sequences: list[Tensor]) -> list[float]:
    """Losses that transformers' Trainer logs."""
    losses: list[float] = []

    class Sequences(Dataset):
        def __len__(self) -> int:
            return SAMPLES

        def __getitem__(self, index: int) -> Tensor:
            return sequences[index]

    class InOrder(Trainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return SequentialSampler(range(SAMPLES))

    class Record(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=MICRO, gradient_accumulation_steps=ACCUMULATION,
            learning_rate=RATE, lr_scheduler_type="constant", max_steps=STEPS, logging_steps=1, save_strategy="no",
            report_to=[], use_cpu=True, disable_tqdm=True, max_grad_norm=0.0, weight_decay=0.0,
            remove_unused_columns=False, logging_nan_inf_filter=False,
        )  # fmt: skip
        trainer = InOrder(
            model=make_net(), args=arguments, train_dataset=Sequences(), data_collator=collate, callbacks=[Record()]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return losses


def reference(sequences: list[Tensor]) -> list[float]:
    """Each window as one batch, in float64."""
    net = make_net().double()
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.0)
    losses = []
    for window in windows():
        batch = collate([sequences[index] for index in window])
        states = net.base_model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state[:, :-1]
        wanted = batch["labels"][:, 1:] != IGNORED
        logits = net.get_output_embeddings()(states[wanted])
        loss = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:][wanted])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Print the table."""
    quiet_libraries()
    sequences = make_sequences()
    first, _ = target_loss(copy.deepcopy(make_net()), collate(sequences[:2]))
    assert torch.isfinite(first)
    mine, theirs, exact = ours(sequences), peer(sequences), reference(sequences)
    print("step  micro-batches       ours    Trainer  reference   ours/ref-1  Trainer/ref-1")
    for step, (a, b, c) in enumerate(zip(mine, theirs, exact, strict=True), start=1):
        parts = -(-len(windows()[step - 1]) // MICRO)
        print(f"{step:4}  {parts:13}  {a:9.6f}  {b:9.6f}  {c:9.6f}  {a / c - 1:11.1e}  {b / c - 1:13.1e}")
    for name, losses in (("ours", mine), ("Trainer", theirs)):
        worst = max(abs(value / true - 1) for value, true in zip(losses, exact, strict=True))
        print(f"largest relative difference from the float64 reference, {name}: {worst:.1e}")
    worst = max(abs(a / b - 1) for a, b in zip(mine, theirs, strict=True))
    print(f"largest relative difference between ours and the Trainer: {worst:.1e}")


if __name__ == "__main__":
    main()
