"""`gsm8k` against transformers' Trainer and trl's SFTTrainer, and decoding against a plain generate() loop.

    python -m benchmarks.gsm8k --data ../shared/data/gsm8k                      training in fp32, then generation
    python -m benchmarks.gsm8k --data ../shared/data/gsm8k --precision bf16_mixed --skip-generation
    python -m benchmarks.gsm8k --data small --model small --steps 4             a smoke test of seconds

Side by side in one session: every training is a process of its own that starts from the same float32 weights, reads the
same samples in the same order (SFTTrainer deals them to rows in its own), and takes the same global batch with AdamW at
the same learning rate. Tokens are those of the samples: padding does not count. The first step, which allocates, is
left out of the speed and kept in the losses. Memory is the peak of the whole process.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.rows import add_row

LEARNING_RATE = 1e-4
SMALL = "small"
PEERS = ("trainer", "sft")


def overrides(options: argparse.Namespace, base: Path) -> list[str]:
    """Settings that all of ours share."""
    return [
        "experiment=gsm8k", "hardware=cpu", f"data.path={options.data}", f"model.pretrained={base}",
        "data.num_validation=8", f"data.global_batch_size={options.batch_size}",
        f"data.max_length={options.max_length}", f"data.device_batch_size={options.rows}",
        f"seed={options.seed}", "trainer.max_epochs=null",
        f"trainer.max_steps={options.steps}", "trainer.evaluate_every=never", "trainer.save_every=never",
        "trainer.clip_norm=1.0", "scheduler=constant", "scheduler.warmup_steps=0", f"optimizer.lr={LEARNING_RATE}",
        "callbacks.extra.generation=null", f"precision={options.precision}", f"run.cache_root={base.parent / 'cache'}",
    ]  # fmt: skip


def open_data(options: argparse.Namespace, base: Path) -> Any:
    """The experiment's data."""
    from hydra import compose, initialize_config_dir

    from lightning_apps.config.composition import CONF, plain
    from lightning_apps.runs.build import build_datamodule, quiet_libraries

    quiet_libraries()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return build_datamodule(plain(compose("config", overrides=[*overrides(options, base), "run.name=bench"])))


def export_base(options: argparse.Namespace, base: Path) -> None:
    """Write the weights that everybody starts from, in float32, and the tokenizer."""
    from hydra import compose, initialize_config_dir

    from lightning_apps.config.composition import CONF, plain
    from lightning_apps.runs.build import build_datamodule, build_module, build_plan, quiet_libraries

    quiet_libraries()
    choice = [f"model={options.model}"] if not Path(options.model).exists() else [f"model.pretrained={options.model}"]
    words = [word for word in overrides(options, base) if not word.startswith("model.pretrained=")]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = plain(compose("config", overrides=[*words, *choice, "run.name=bench"]))
    data: Any = build_datamodule(config)
    module: Any = build_module(config, data, build_plan(config, data))
    module.net.save_pretrained(base)
    data.tokenizer.save_pretrained(base)


def training_samples(options: argparse.Namespace, data: Any) -> list[dict[str, list[int]]]:
    """Samples of all steps, in the order in which ours sees them."""
    from datamodules.sampling.step_loader import StepSampler

    sampler = StepSampler(
        num_samples=data.num_train_samples,
        global_batch_size=options.batch_size,
        num_steps=options.steps,
        seed=options.seed,
    )
    samples = []
    for _, indices in sampler:
        for document in data.documents("train", indices):
            samples.append({"input_ids": document.ids.tolist(), "labels": document.labels.tolist()})
    return samples


def our_run(options: argparse.Namespace, base: Path) -> dict[str, Any]:
    """Train with the project's command."""
    from lightning_apps.run_files.metrics_csv import read_metrics

    with tempfile.TemporaryDirectory() as folder:
        only_train = Path(folder) / "data"
        only_train.mkdir()
        (only_train / "train.jsonl").symlink_to((Path(options.data) / "train.jsonl").resolve())  # no test at the end
        words = [*overrides(options, base), f"data.path={only_train}", f"run.output_root={folder}", "run.name=bench"]
        subprocess.run([sys.executable, "-m", "lightning_apps.train", *words], check=True, stdout=subprocess.DEVNULL)
        path = Path(folder) / "gsm8k" / "bench"
        summary = json.loads((path / "summary.json").read_text())
        rows = [row for row in read_metrics(path / "metrics.csv") if "train/loss" in row]
    seconds, tokens, before = [], [], 0.0
    for row in rows:
        tokens.append(row["train/tokens"] - before)
        seconds.append(tokens[-1] / row["train/tokens_per_s"])
        before = row["train/tokens"]
    losses = [row["train/loss"] for row in rows]
    return {"losses": losses, "seconds": seconds, "tokens": tokens, "peak_bytes": summary["peak_memory_bytes"]}


def peer_run(name: str, options: argparse.Namespace, base: Path) -> dict[str, Any]:
    """Train with a peer in this process."""
    import datasets
    import torch
    from torch.utils.data import SequentialSampler
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    data = open_data(options, base)
    samples = training_samples(options, data)
    tokenizer = AutoTokenizer.from_pretrained(base)
    net = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16 if options.bf16_weights else torch.float32)
    net.config.use_cache = False
    seconds: list[float] = []
    tokens: list[float] = []
    losses: list[float] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seconds.append(time.perf_counter() - self.start)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    def count(batch: dict[str, Any]) -> dict[str, Any]:
        mask = batch.get("attention_mask")
        tokens.append(float(batch["input_ids"].numel() if mask is None else mask.sum()))
        return batch

    with tempfile.TemporaryDirectory() as folder:
        shared: dict[str, Any] = {
            "output_dir": folder, "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "weight_decay": 0.0,
            "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True,
            "max_grad_norm": 1.0, "gradient_checkpointing": False, "seed": options.seed,
            "bf16": options.precision == "bf16_mixed",
        }  # fmt: skip
        table = datasets.Dataset.from_list(samples)
        trainer: Any
        if name == "trainer":

            class InOrder(Trainer):
                def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
                    return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

            arguments = TrainingArguments(
                **shared, per_device_train_batch_size=options.batch_size, max_steps=options.steps
            )
            pad = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
            trainer = InOrder(
                net, arguments, train_dataset=table, data_collator=lambda rows: count(pad(rows)), callbacks=[Watch()]
            )
        else:
            from trl import SFTConfig, SFTTrainer

            # rows that hold as many tokens as our window, and as many steps as there are such groups of rows
            mean = statistics.mean(len(sample["input_ids"]) for sample in samples)
            rows = max(1, round(options.batch_size * mean / options.max_length))
            settings = SFTConfig(
                **shared, per_device_train_batch_size=rows, num_train_epochs=1, packing=True,
                max_length=options.max_length, dataset_num_proc=1,
            )  # fmt: skip
            trainer = SFTTrainer(net, settings, train_dataset=table, processing_class=tokenizer, callbacks=[Watch()])
            collate = trainer.data_collator
            trainer.data_collator = lambda rows: count(collate(rows))
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"losses": losses, "seconds": seconds, "tokens": tokens[: len(seconds)], "peak_bytes": peak}


def generation(options: argparse.Namespace, base: Path) -> dict[str, Any]:
    """Seconds of a plain loop in data-set order and of ours on the same questions, and how many answers differ."""
    import torch
    from transformers import AutoModelForCausalLM

    from models.decoding.generation import generate_answers, generate_greedy
    from models.kernels.packed_attention import use_packed_attention

    data = open_data(options, base)
    prompts = data.prompts("test")[: options.questions]
    shared: dict[str, Any] = {
        "max_new_tokens": options.max_new_tokens, "batch_size": options.generation_batch_size,
        "pad_token_id": data.tokenizer.pad_token_id,
    }  # fmt: skip
    net = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    stop = data.stop_token_ids[0]
    is_mixed = options.precision == "bf16_mixed"
    with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed, cache_enabled=False):  # as in an evaluation
        generate_greedy(net, prompts[:1], **{**shared, "max_new_tokens": 2}, eos_token_id=stop)  # allocate
        start = time.perf_counter()
        plain = generate_greedy(net, prompts, eos_token_id=stop, **shared)
        plain_s = time.perf_counter() - start
        use_packed_attention(net)
        start = time.perf_counter()
        ours = generate_answers(net, prompts, stop_token_ids=[stop], **shared)
        ours_s = time.perf_counter() - start
    different = sum(not one.equal(other.tokens) for one, other in zip(plain, ours, strict=True))
    return {
        "questions": len(prompts), "plain_s": plain_s, "ours_s": ours_s, "different": different,
        "tokens": sum(map(len, plain)), "finished": sum(answer.finished for answer in ours),
    }  # fmt: skip


def in_process(what: str, options: argparse.Namespace, base: Path) -> dict[str, Any]:
    """A peer, or generation, in a process of its own."""
    words = [word for word in sys.argv[1:] if not word.startswith("--child")]
    command = [sys.executable, "-m", "benchmarks.gsm8k", *words, "--data", str(options.data), "--model", options.model]
    done = subprocess.run([*command, "--child", what, "--base", str(base)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{what} ended with {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(name: str, run: dict[str, Any], against: dict[str, Any] | None) -> float:
    """Print one run beside ours; returns its real tokens per second."""
    speed = sum(run["tokens"][1:]) / sum(run["seconds"][1:])
    line = f"  {name:22} {speed:8.1f} real tokens/s  {run['peak_bytes'] / 1e9:6.2f} GB peak  losses "
    line += " ".join(f"{loss:.3f}" for loss in run["losses"][:5])
    if against is not None:
        ours = sum(against["tokens"][1:]) / sum(against["seconds"][1:])
        line += (
            f"  | ours: {ours / speed:.2f} x the speed, {against['peak_bytes'] / run['peak_bytes']:.2f} x the memory"
        )
    print(line, flush=True)
    return speed


def main() -> None:
    """Run the comparison, or one child of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=SMALL, help="folder with train.jsonl and test.jsonl; small = made-up sums")
    parser.add_argument("--model", default="smollm2_135m", help="option of model=, or a folder; small = a tiny one")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of each training")
    parser.add_argument("--repeats", type=int, default=1, help="rounds of all trainings, in turn")
    parser.add_argument("--batch-size", type=int, default=8, help="samples in one optimizer step")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--rows", default="1", help="our packed rows in one forward pass, or null for all")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16_mixed"])
    parser.add_argument("--bf16-weights", action="store_true", help="peers load the weights in bf16, as from the hub")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--generation-batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--skip-training", action="store_true")
    parser.add_argument("--skip-generation", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        result = (
            generation(options, options.base)
            if options.child == "generation"
            else peer_run(options.child, options, options.base)
        )
        print(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as folder:
        if SMALL in (options.data, options.model):
            from lightning_apps.experiments.gsm8k.small_files import write_small_files

            write_small_files(Path(folder) / "files")
            options.data = str(Path(folder) / "files" / "data") if options.data == SMALL else options.data
            options.model = str(Path(folder) / "files" / "model") if options.model == SMALL else options.model
        base = Path(folder) / "base"
        export_base(options, base)
        if not options.skip_training:
            compare_training(options, base)
        if not options.skip_generation:
            found = in_process("generation", options, base)
            plain, ours = (found["questions"] / found[key] for key in ("plain_s", "ours_s"))
            add_row(
                f"gsm8k, generation, {options.precision}",
                peer="generate() in a loop",
                unit="answers/s",
                ours=[ours],
                theirs=[plain],
            )
            print(
                f"generation: {found['questions']} questions, batch {options.generation_batch_size}, up to "
                f"{options.max_new_tokens} tokens ({found['finished']} finished, {found['tokens']} tokens in all)\n"
                f"  plain loop {plain:.3f} answers/s, ours {ours:.3f}, ratio {ours / plain:.2f}; "
                f"{found['different']} answers differ"
            )


def compare_training(options: argparse.Namespace, base: Path) -> None:
    """Ours and the peers in turn, as often as asked for."""
    print(f"training: {options.steps} steps of {options.batch_size} samples, {options.precision}", flush=True)
    speeds: dict[str, list[float]] = {name: [] for name in ("ours", *PEERS)}
    shares: dict[str, list[float]] = {name: [] for name in PEERS}
    for _ in range(options.repeats):
        ours = our_run(options, base)
        speeds["ours"].append(report("ours", ours, None))
        for name in PEERS:
            run = in_process(name, options, base)
            speeds[name].append(report(name, run, ours))
            shares[name].append(ours["peak_bytes"] / run["peak_bytes"])
    for name in PEERS:
        values = [mine / theirs for mine, theirs in zip(speeds["ours"], speeds[name], strict=True)]
        add_row(
            f"gsm8k, {options.steps} steps of {options.batch_size}, {options.precision}", peer=name, unit="tokens/s",
            ours=speeds["ours"], theirs=speeds[name], memory_shares=shares[name],
        )  # fmt: skip
        print(f"  ours / {name}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})", flush=True)


if __name__ == "__main__":
    main()
