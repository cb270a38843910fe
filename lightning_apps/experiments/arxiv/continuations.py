"""What a language model writes: greedy continuations of evaluation windows after every evaluation."""

from typing import Annotated, Any

import lightning as L
from annotated_types import Ge

from datamodules.arxiv import ArxivDataModule
from datamodules.contract import Split
from lightning_apps.callbacks.gather import gather_in_order
from lightning_apps.experiments.evaluation import Evaluation
from lightning_apps.process.console import say
from lightning_apps.run_files.directory import RunDirectory
from models.decoding.generation import generate_greedy


class Continuations(Evaluation):
    """Continues the first third of some evaluation windows and writes predictions.jsonl.

    `score` is the share of generated tokens that the paper has at the same place.

    Args:
        run_directory: whose predictions.jsonl is written.
        num_samples: windows, spread evenly over the split.
        max_new_tokens: longest continuation.
    """

    needs = ArxivDataModule

    def __init__(
        self, *, run_directory: RunDirectory, num_samples: Annotated[int, Ge(1)], max_new_tokens: Annotated[int, Ge(1)]
    ) -> None:
        super().__init__(run_directory=run_directory)
        self.num_samples = num_samples
        self.max_new_tokens = max_new_tokens

    def evaluate(self, trainer: L.Trainer, pl_module: Any, data: Any, split: Split, prefix: str) -> None:
        """Continue windows of a split."""
        windows = data.evaluation_windows(split)[data.evaluated(split)]
        prompt_length = max(1, data.sequence_length // 3)
        chosen = windows[:: max(1, len(windows) // self.num_samples)][: self.num_samples]
        ending = data.tokenizer.eos_token_id
        answers = generate_greedy(
            pl_module.net,
            list(chosen[trainer.global_rank :: trainer.world_size, :prompt_length]),
            max_new_tokens=min(self.max_new_tokens, data.sequence_length - prompt_length),
            batch_size=len(chosen),
            pad_token_id=data.tokenizer.pad_token_id if data.tokenizer.pad_token_id is not None else ending,
            eos_token_id=ending,
        )
        answers = gather_in_order(answers, len(chosen), trainer.world_size)
        if not trainer.is_global_zero:
            return
        rows = []
        for window, answer in zip(chosen, answers, strict=True):
            truth = window[prompt_length : prompt_length + len(answer)]
            rows.append(
                {
                    "input": data.tokenizer.decode(window[:prompt_length]),
                    "target": data.tokenizer.decode(window[prompt_length:]),
                    "output": data.tokenizer.decode(answer),
                    "score": float((answer == truth).float().mean()) if len(answer) else 0.0,
                }
            )
        self.write_predictions(rows)
        if rows:
            say(f"    …{rows[0]['input'][-60:]!r} -> {rows[0]['output'][:80]!r}")
